"""A broker's webhooks: what it is told about, and where."""

from uuid import UUID

from django.http import HttpRequest

from exchange.errors import WebhookNotFound
from exchange.http.api import ExchangeView, Response
from exchange.http.schema import documented
from exchange.rules import Scope
from webhooks import services
from webhooks.bodies import WebhookBody, WebhookListBody, WebhooksBody, webhook_list_body
from webhooks.models import Subscription
from webhooks.serializers import SubscribeForm, WebhooksQuery

TRADERS = (Scope.TRADE,)


class WebhooksView(ExchangeView):
    scopes = {"GET": (Scope.READ,), "POST": TRADERS}
    body_class = SubscribeForm
    query_class = WebhooksQuery

    @documented("list_webhooks", "A broker's webhooks, oldest first", {200: WebhookListBody})
    def get(self, request: HttpRequest) -> Response:
        mine = Subscription.objects.alive().filter(broker=self.query["broker_id"]).order_by("created_at", "id")
        return Response(webhook_list_body(list(mine)))

    @documented(
        "subscribe",
        "Send events to a URL: one per event, a new one replaces the old one",
        {201: WebhooksBody, 200: WebhooksBody},
    )
    def post(self, request: HttpRequest) -> Response:
        subscriptions, any_new = services.subscribe(**self.body)
        body = WebhooksBody([WebhookBody.of(subscription) for subscription in subscriptions])
        return Response(body, status=201 if any_new else 200)


class WebhookView(ExchangeView):
    scopes = {"DELETE": TRADERS}

    @documented("unsubscribe", "Send nothing there any more", {204: None}, [WebhookNotFound])
    def delete(self, request: HttpRequest, webhook_id: UUID) -> Response:
        assert self.principal.broker_id is not None  # the scope is a broker's
        services.unsubscribe(self.principal.broker_id, webhook_id)
        return Response(status=204)
