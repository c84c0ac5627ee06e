"""The transactional outbox: the only way to publish events, in the transaction of the change that they describe.

The same statement inserts the events and a delivery for each matching subscription.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from exchange.json_codec import encode_json
from webhooks.models import EventType


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event of a broker. Its sequence number was taken from the broker's stream under the broker's lock."""

    broker_id: str
    sequence: int
    type: EventType
    occurred_at: datetime
    data: msgspec.Struct


# SQL expression for the statement that commits the change. Returns the number of deliveries; if there are any, the
# caller wakes the dispatcher.
PUBLISH = "webhooks_publish(%(events)s::json)"


def encode_events(events: Sequence[NewEvent]) -> str | None:
    """Encode events for `PUBLISH`, including the body that receivers get."""
    return encode_json([_Row.of(event) for event in events]).decode() if events else None


class _Payload(msgspec.Struct, frozen=True):
    event: EventType
    timestamp: datetime
    data: msgspec.Struct


class _Row(msgspec.Struct, frozen=True):
    broker_id: str
    sequence: int
    type: EventType
    occurred_at: datetime
    body: str

    @classmethod
    def of(cls, event: NewEvent) -> "_Row":
        body = encode_json(_Payload(event.type, event.occurred_at, event.data)).decode()
        return cls(event.broker_id, event.sequence, event.type, event.occurred_at, body)
