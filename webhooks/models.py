"""Events, numbered per broker, subscriptions to them, and deliveries."""

import uuid_utils.compat as uuid_utils
from django.db import models
from django.db.models import Q

from exchange.models import Broker
from exchange.rules import ChoicesEnum

MAX_URL_LENGTH = 2_048
TOLERATED_FAILURES = 3  # in a row, after which a subscription that has worked is failing


class EventType(ChoicesEnum):
    """Type of an event."""

    TRADE_EXECUTED = "trade.executed"
    ORDER_CANCELLED = "order.cancelled"
    ORDER_EXPIRED = "order.expired"


class DeliveryError(ChoicesEnum):
    """The reason why a delivery was not sent, or its response not read."""

    TIMEOUT = "timeout"
    BLOCKED_ADDRESS = "blocked_address"
    NAME_NOT_RESOLVED = "name_not_resolved"
    NOT_CONNECTED = "not_connected"
    TLS_FAILED = "tls_failed"
    DISCONNECTED = "disconnected"
    INVALID_ANSWER = "invalid_answer"
    SUBSCRIPTION_DELETED = "subscription_deleted"
    FAILED = "failed"


class Event(models.Model):
    """Something that happened to a broker, written in the transaction of the change that it describes."""

    id = models.UUIDField(primary_key=True, default=uuid_utils.uuid7, editable=False)
    broker = models.ForeignKey(Broker, models.PROTECT, related_name="events", db_index=False, db_constraint=False)
    sequence = models.BigIntegerField()
    type = models.CharField(max_length=32, choices=EventType.choices())
    occurred_at = models.DateTimeField()
    body = models.TextField()  # exactly as sent to receivers

    class Meta:
        constraints = [models.UniqueConstraint(fields=["broker", "sequence"], name="event_once_per_sequence")]

    def __str__(self) -> str:
        return str(self.pk)


class SubscriptionState(ChoicesEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    DELETED = "deleted"


class SubscriptionQuerySet(models.QuerySet["Subscription"]):
    """Queries of subscriptions."""

    def alive(self) -> "SubscriptionQuerySet":
        return self.filter(deleted_at=None)


class Subscription(models.Model):
    """A broker's subscription to one type of event, sent to a URL.

    Rows are only marked as deleted, so that a concurrent transaction that inserts a delivery does not fail on commit.
    """

    id = models.UUIDField(primary_key=True, default=uuid_utils.uuid7, editable=False)
    broker = models.ForeignKey(Broker, models.PROTECT, related_name="subscriptions", db_index=False)
    event_type = models.CharField(max_length=32, choices=EventType.choices())
    url = models.CharField(max_length=MAX_URL_LENGTH)
    created_at = models.DateTimeField()
    deleted_at = models.DateTimeField(null=True)
    paused_at = models.DateTimeField(null=True)  # by an operator; due deliveries wait until it is resumed
    last_success_at = models.DateTimeField(null=True)
    last_failure_at = models.DateTimeField(null=True)
    # Failures in a row until it is failing: 1 for a new URL, `TOLERATED_FAILURES` after a success, 0 once it is.
    failures_left = models.SmallIntegerField(default=1, db_default=1)

    objects = SubscriptionQuerySet.as_manager()

    class Meta:
        permissions = [("pause_subscription", "Can pause and resume a subscription")]
        constraints = [
            models.UniqueConstraint(
                fields=["broker", "event_type"], name="subscription_once_per_event", condition=Q(deleted_at=None)
            ),
        ]

    def __str__(self) -> str:
        return str(self.pk)

    @property
    def state(self) -> SubscriptionState:
        if self.deleted_at:
            return SubscriptionState.DELETED
        return SubscriptionState.PAUSED if self.paused_at else SubscriptionState.ACTIVE

    @property
    def is_failing(self) -> bool:
        """True if the latest attempts failed: `TOLERATED_FAILURES`, or one at a URL that has not worked yet."""
        return self.failures_left == 0


class DeliveryState(ChoicesEnum):
    DUE = "due"
    IN_FLIGHT = "in_flight"
    DELIVERED = "delivered"
    FAILED = "failed"
    DISCARDED = "discarded"


# An attempted delivery without a response, or with one that is not 2xx.
IS_FAILED = Q(completed_at__isnull=False) & (
    ~Q(error__in=["", DeliveryError.SUBSCRIPTION_DELETED.value]) | Q(status_code__lt=200) | Q(status_code__gte=300)
)


class Delivery(models.Model):
    """One event for one subscription, sent at most once: it is marked as claimed before it is sent.

    A delivery that is neither claimed nor completed is due. A claimed delivery without an outcome is in flight, or was
    when its dispatcher died. A redelivery by an operator is another row.
    """

    id = models.UUIDField(primary_key=True, default=uuid_utils.uuid7, editable=False)
    event = models.ForeignKey(Event, models.PROTECT, related_name="deliveries", db_index=False, db_constraint=False)
    subscription = models.ForeignKey(
        Subscription, models.PROTECT, related_name="deliveries", db_index=False, db_constraint=False
    )
    claimed_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)
    status_code = models.SmallIntegerField(null=True)  # the receiver's response, if any
    error = models.CharField(max_length=32, choices=DeliveryError.choices(), blank=True, db_default="")
    duration_ms = models.IntegerField(null=True)
    redelivery_of = models.ForeignKey(
        "self", models.PROTECT, related_name="+", null=True, db_index=False, db_constraint=False
    )

    class Meta:
        indexes = [
            models.Index(fields=["subscription", "id"], name="delivery_due", condition=Q(claimed_at=None)),
            models.Index(fields=["id"], name="delivery_failed", condition=IS_FAILED),
            models.Index(
                fields=["redelivery_of"], name="delivery_redelivered", condition=Q(redelivery_of__isnull=False)
            ),
        ]
        permissions = [("redeliver_delivery", "Can have events delivered again")]
        verbose_name_plural = "deliveries"

    def __str__(self) -> str:
        return str(self.pk)

    @property
    def state(self) -> DeliveryState:
        if self.completed_at is None:
            return DeliveryState.DUE if self.claimed_at is None else DeliveryState.IN_FLIGHT
        if self.error == DeliveryError.SUBSCRIPTION_DELETED:
            return DeliveryState.DISCARDED
        has_succeeded = not self.error and self.status_code is not None and self.status_code // 100 == 2
        return DeliveryState.DELIVERED if has_succeeded else DeliveryState.FAILED


class Answer(models.Model):
    """The beginning of a receiver's response, as text. Retention: `WEBHOOK_RESPONSE_RETENTION`."""

    delivery = models.OneToOneField(
        Delivery, models.CASCADE, primary_key=True, related_name="answer", db_constraint=False
    )
    body = models.TextField()

    def __str__(self) -> str:
        return str(self.pk)


class SubscriptionHour(models.Model):
    """Counts of a subscription's completed and failed deliveries in the hour that starts at `hour`."""

    id = models.BigAutoField(primary_key=True)
    subscription = models.ForeignKey(
        Subscription, models.PROTECT, related_name="hours", db_index=False, db_constraint=False
    )
    hour = models.DateTimeField()
    completed = models.BigIntegerField(default=0)
    failed = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["subscription", "hour"], name="subscription_hour_once")]

    def __str__(self) -> str:
        return f"{self.subscription_id} {self.hour:%Y-%m-%d %H}:00"
