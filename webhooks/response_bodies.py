"""Response bodies about subscriptions."""

from typing import Any, Self
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
    def of(cls, row: Subscription, **more: Any) -> Self:
        return cls(row.pk, row.broker_id, EventType(row.event_type), row.url, **more)


class WebhooksBody(msgspec.Struct, frozen=True):
    """The subscriptions of the request, one per event."""

    webhooks: list[WebhookBody]


class ListedWebhookBody(WebhookBody, frozen=True):
    """A subscription, with its time of creation."""

    created_at: Instant


class WebhookListBody(msgspec.Struct, frozen=True):
    """All subscriptions of a broker, oldest first."""

    webhooks: list[ListedWebhookBody]
