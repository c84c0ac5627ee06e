"""What happened, numbered per broker, in the very bytes a receiver gets."""

import uuid_utils.compat as uuid_utils
from django.db import models

from exchange.models import Broker
from exchange.rules import Words


class EventType(Words):
    TRADE_EXECUTED = "trade.executed"
    ORDER_CANCELLED = "order.cancelled"
    ORDER_EXPIRED = "order.expired"


class Event(models.Model):
    """One thing that happened to one broker: written with the change it tells, in the same transaction."""

    id = models.UUIDField(primary_key=True, default=uuid_utils.uuid7, editable=False)
    broker = models.ForeignKey(Broker, models.PROTECT, related_name="events", db_index=False)
    sequence = models.BigIntegerField()
    type = models.CharField(max_length=32, choices=EventType.choices())
    occurred_at = models.DateTimeField()
    body = models.TextField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["broker", "sequence"], name="event_once_per_sequence")]

    def __str__(self) -> str:
        return str(self.pk)
