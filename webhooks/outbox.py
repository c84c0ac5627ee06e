"""The one door through which events come in: written in the transaction of the change they tell.

With them, in the same statement, goes a delivery for each that its broker subscribes to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from webhooks.models import EventType


@dataclass(frozen=True, slots=True)
class NewEvent:
    """What happened to a broker, under the number taken from its stream while its lock was held."""

    broker_id: str
    sequence: int
    type: EventType
    occurred_at: datetime
    data: msgspec.Struct


# For the statement that commits the change, which then wakes the dispatcher: gives how many deliveries are due.
PUBLISH = "webhooks_publish(%(events)s::json)"


def encode_events(events: Sequence[NewEvent]) -> str | None:
    """`events` as `PUBLISH` takes them: with the bytes that will tell them."""
    return _ENCODER.encode([_Row.of(event) for event in events]).decode() if events else None


class _Body(msgspec.Struct, frozen=True):
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
        body = _ENCODER.encode(_Body(event.type, event.occurred_at, event.data)).decode()
        return cls(event.broker_id, event.sequence, event.type, event.occurred_at, body)


_ENCODER = msgspec.json.Encoder(decimal_format="number")
