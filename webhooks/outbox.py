"""The one door through which events come in: written in the transaction of the change they tell.

With them, in the same statement, goes a delivery for each that its broker subscribes to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from django.db import transaction
from django.db.backends.utils import CursorWrapper

from webhooks import wakeup
from webhooks.models import EventType


@dataclass(frozen=True, slots=True)
class NewEvent:
    """What happened to a broker, under the number taken from its stream while its lock was held."""

    broker_id: str
    sequence: int
    type: EventType
    occurred_at: datetime
    data: msgspec.Struct


def publish(cursor: CursorWrapper, events: Sequence[NewEvent]) -> None:
    """Write `events`, the bytes that will tell them, and their deliveries; these are sent after the commit."""
    cursor.execute(_INSERT_EVENTS, [_ENCODER.encode([_Row.of(event) for event in events]).decode()])
    if cursor.rowcount:
        transaction.on_commit(wakeup.ask, robust=True)


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

_INSERT_EVENTS = """
WITH event AS (
  INSERT INTO webhooks_event (id, broker_id, sequence, type, occurred_at, body)
  SELECT uuidv7(), broker_id, sequence, type, occurred_at, body
  FROM json_to_recordset(%s::json)
    AS row(broker_id text, sequence bigint, type text, occurred_at timestamptz, body text)
  RETURNING id, broker_id, sequence, type
)
INSERT INTO webhooks_delivery (id, event_id, subscription_id)
SELECT uuidv7(), event.id, subscription.id
FROM event JOIN webhooks_subscription subscription
  ON subscription.broker_id = event.broker_id AND subscription.event_type = event.type
     AND subscription.deleted_at IS NULL
ORDER BY event.broker_id, event.sequence
"""
