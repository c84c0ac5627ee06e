"""What goes out about subscriptions."""

from uuid import UUID

import msgspec

from exchange.json_codec import Instant
from webhooks.models import EventType, Subscription


class WebhookBody(msgspec.Struct, frozen=True):
    """One type of event, and where it is sent."""

    webhook_id: UUID
    broker_id: str
    event: EventType
    url: str

    @classmethod
    def of(cls, subscription: Subscription) -> "WebhookBody":
        return cls(subscription.pk, subscription.broker_id, EventType(subscription.event_type), subscription.url)


class WebhooksBody(msgspec.Struct, frozen=True):
    webhooks: list[WebhookBody]


class ListedWebhookBody(WebhookBody, frozen=True):
    created_at: Instant


class WebhookListBody(msgspec.Struct, frozen=True):
    """All of a broker's webhooks, oldest first."""

    webhooks: list[ListedWebhookBody]


def webhook_list_body(subscriptions: list[Subscription]) -> WebhookListBody:
    return WebhookListBody(
        [
            ListedWebhookBody(each.pk, each.broker_id, EventType(each.event_type), each.url, each.created_at)
            for each in subscriptions
        ]
    )
