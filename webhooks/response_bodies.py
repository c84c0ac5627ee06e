"""Response bodies about subscriptions."""

from uuid import UUID

import msgspec

from exchange.json_codec import Instant
from webhooks.models import EventType, Subscription


class WebhookBody(msgspec.Struct, frozen=True):
    """A subscription: one type of event, sent to one URL."""

    webhook_id: UUID
    broker_id: str
    event: EventType
    url: str

    @classmethod
    def of(cls, subscription: Subscription) -> "WebhookBody":
        return cls(subscription.pk, subscription.broker_id, EventType(subscription.event_type), subscription.url)


class WebhooksBody(msgspec.Struct, frozen=True):
    """The subscriptions of the request, one per event."""

    webhooks: list[WebhookBody]


class ListedWebhookBody(WebhookBody, frozen=True):
    """A subscription, with its time of creation."""

    created_at: Instant


class WebhookListBody(msgspec.Struct, frozen=True):
    """All subscriptions of a broker, oldest first."""

    webhooks: list[ListedWebhookBody]


def webhook_list_body(subscriptions: list[Subscription]) -> WebhookListBody:
    return WebhookListBody(
        [
            ListedWebhookBody(each.pk, each.broker_id, EventType(each.event_type), each.url, each.created_at)
            for each in subscriptions
        ]
    )
