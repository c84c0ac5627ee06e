"""View set of a broker's webhooks."""

from uuid import UUID

from drf_spectacular.utils import OpenApiResponse
from rest_framework.request import Request
from rest_framework.response import Response

from exchange.errors import BrokerNotFound, WebhookNotFound
from exchange.http.schema import documented
from exchange.http.viewsets import ExchangeViewSet
from exchange.rules import Scope
from exchange.services import require_broker
from webhooks import services
from webhooks.models import Subscription
from webhooks.response_bodies import ListedWebhookBody, WebhookBody, WebhookListBody, WebhooksBody
from webhooks.serializers import SubscribeSerializer, WebhooksQuerySerializer

TRADERS = (Scope.TRADE,)


class WebhookViewSet(ExchangeViewSet[Subscription]):
    """A broker's subscriptions to events."""

    queryset = Subscription.objects.alive()
    lookup_url_kwarg, lookup_value_converter = "webhook_id", "id"
    pagination_class = None  # a broker has one webhook for each event
    scopes = {"list": (Scope.READ,), "create": TRADERS, "destroy": TRADERS}
    body_serializers = {"create": SubscribeSerializer}
    query_serializers = {"list": WebhooksQuerySerializer}

    @documented("list_webhooks", "List webhooks", {200: WebhookListBody}, [BrokerNotFound])
    def list(self, request: Request) -> Response:
        """Return all subscriptions of the broker, oldest first."""
        require_broker(self.query["broker_id"])
        mine = self.get_queryset().filter(broker=self.query["broker_id"]).order_by("created_at", "id")
        return Response(WebhookListBody([ListedWebhookBody.of(each, created_at=each.created_at) for each in mine]))

    @documented(
        "subscribe",
        "Subscribe to events",
        {201: WebhooksBody, 200: OpenApiResponse(WebhooksBody, description="All of these subscriptions existed.")},
    )
    def create(self, request: Request) -> Response:
        """Send these types of events to the URL, which replaces the URL of an existing subscription to them.

        [webhooks.md](/static/docs/webhooks.md) describes the deliveries and contains a complete receiver.
        """
        subscriptions, any_new = services.subscribe(**self.body)
        body = WebhooksBody([WebhookBody.of(subscription) for subscription in subscriptions])
        return Response(body, status=201 if any_new else 200)

    @documented("unsubscribe", "Delete a webhook", {204: None}, [WebhookNotFound])
    def destroy(self, request: Request, webhook_id: UUID) -> Response:
        """End a subscription. Pending deliveries are not sent any more; one in flight may still arrive."""
        assert self.principal.broker_id is not None  # the scope is a broker's
        services.unsubscribe(self.principal.broker_id, webhook_id)
        return Response(status=204)
