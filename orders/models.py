"""Orders, trades, bars and reconciliation runs. Only the write path writes orders and trades.

Foreign keys of orders and trades have no database constraints: the write path locks the rows they name, these rows are
not deleted afterwards, and checking them again took a fifth of PostgreSQL's time per order. `manage.py reconcile`
checks them.
"""

from datetime import datetime

import uuid_utils.compat as uuid_utils
from django.db import models
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Now

from exchange.models import CASH_DIGITS, DECIMALS, PRICE_DIGITS, Broker, Instrument
from exchange.rules import ChoicesEnum
from orders.enums import WORKING, CancelReason, OrderStatus, OrderType, Side, TimeInForce

_IS_WORKING = Q(status__in=[status.value for status in WORKING])


class OrderQuerySet(models.QuerySet["Order"]):
    """Queries on orders."""

    def working(self) -> "OrderQuerySet":
        """Orders that are not closed, including those past their `expires_at` that the sweep has not expired yet."""
        return self.filter(_IS_WORKING)

    def due(self, now: datetime | Now) -> "OrderQuerySet":
        """Working orders past their `expires_at`, which the sweep is going to expire."""
        return self.working().filter(expires_at__isnull=False, expires_at__lte=now)


class Order(models.Model):
    """A broker's instruction to buy or sell, and its current state."""

    id = models.UUIDField(primary_key=True, default=uuid_utils.uuid7, editable=False)
    client_order_id = models.CharField(max_length=64, null=True)  # noqa: DJ001 (null if not given, unique otherwise)
    broker = models.ForeignKey(Broker, models.PROTECT, related_name="orders", db_index=False, db_constraint=False)
    document_number = models.CharField(max_length=32)
    instrument = models.ForeignKey(
        Instrument, models.PROTECT, related_name="orders", db_column="symbol", db_index=False, db_constraint=False
    )
    sequence = models.BigIntegerField()  # arrival number in the book: the time in price-time priority
    type = models.CharField(max_length=8, choices=OrderType.choices())
    side = models.CharField(max_length=4, choices=Side.choices())
    price = models.DecimalField(max_digits=PRICE_DIGITS, decimal_places=DECIMALS, null=True)
    # The price, negated for bids: ascending is best first on both sides, so one index and one query serve both.
    rank = models.GeneratedField(
        expression=Case(When(side=Side.BID.value, then=-F("price")), default=F("price")),
        output_field=models.DecimalField(max_digits=PRICE_DIGITS, decimal_places=DECIMALS),
        db_persist=True,
    )
    quantity = models.BigIntegerField()
    filled_quantity = models.BigIntegerField(default=0)
    filled_value = models.DecimalField(max_digits=CASH_DIGITS, decimal_places=DECIMALS, default=0)
    status = models.CharField(max_length=16, choices=OrderStatus.choices())
    time_in_force = models.CharField(max_length=3, choices=TimeInForce.choices())
    expires_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()
    cancelled_at = models.DateTimeField(null=True)
    expired_at = models.DateTimeField(null=True)
    cancel_reason = models.CharField(max_length=16, choices=CancelReason.choices(), null=True)  # noqa: DJ001 (null: not cancelled)

    objects = OrderQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(
                fields=["instrument", "side", "rank", "sequence"], name="order_book_in_priority", condition=_IS_WORKING
            ),
            # The condition `expires_at IS NOT NULL` keeps the planner from reading the book with this index.
            models.Index(
                fields=["instrument", "expires_at", "sequence"],
                name="order_due_to_expire",
                condition=_IS_WORKING & Q(expires_at__isnull=False),
            ),
            models.Index(
                fields=["broker", "instrument", "sequence"], name="order_working_of_broker", condition=_IS_WORKING
            ),
            models.Index(fields=["broker", "-created_at", "-id"], name="order_newest_of_broker"),
            models.Index(fields=["document_number", "-id"], name="order_newest_of_document"),
        ]
        permissions = [("cancel_order", "Can cancel orders")]
        constraints = [
            models.UniqueConstraint(fields=["instrument", "sequence"], name="order_arrival_unique"),
            models.UniqueConstraint(
                fields=["broker", "client_order_id"],
                name="order_client_order_id_unique",
                condition=Q(client_order_id__isnull=False),
            ),
            models.CheckConstraint(
                condition=Q(quantity__gt=0, filled_quantity__gte=0, filled_quantity__lte=F("quantity")),
                name="order_filled_within_quantity",
            ),
            models.CheckConstraint(
                condition=Q(status=OrderStatus.PENDING.value, filled_quantity=0)
                | Q(status=OrderStatus.PARTIALLY_FILLED.value, filled_quantity__gt=0, quantity__gt=F("filled_quantity"))
                | Q(status=OrderStatus.FILLED.value, filled_quantity=F("quantity"))
                | Q(status=OrderStatus.CANCELLED.value, cancelled_at__isnull=False, cancel_reason__isnull=False)
                | Q(status=OrderStatus.EXPIRED.value, expired_at__isnull=False),
                name="order_status_fits",
            ),
            models.CheckConstraint(
                condition=Q(type=OrderType.LIMIT.value, price__gt=0)
                | Q(type=OrderType.MARKET.value, price=None) & ~_IS_WORKING,
                name="order_price_fits_type",
            ),
        ]

    def __str__(self) -> str:
        return str(self.pk)

    @property
    def symbol(self) -> str:
        return self.instrument_id

    @property
    def remaining_quantity(self) -> int:
        """The unfilled quantity, also after a cancel or an expiry."""
        return self.quantity - self.filled_quantity


class TradeQuerySet(models.QuerySet["Trade"]):
    """Queries on trades."""

    def fills_of(self, broker_id: str, side: Side) -> "TradeQuerySet":
        """The trades in which the broker was on this side, annotated with `side`."""
        owned = Q(bid_broker=broker_id) if side is Side.BID else Q(ask_broker=broker_id)
        return self.filter(owned).annotate(side=Value(side.value)).select_related("instrument")


class Trade(models.Model):
    """An execution between a bid and an ask."""

    id = models.UUIDField(primary_key=True, default=uuid_utils.uuid7, editable=False)
    instrument = models.ForeignKey(
        Instrument, models.PROTECT, related_name="trades", db_column="symbol", db_index=False, db_constraint=False
    )
    price = models.DecimalField(max_digits=PRICE_DIGITS, decimal_places=DECIMALS)
    quantity = models.BigIntegerField()
    taker_side = models.CharField(max_length=4, choices=Side.choices())
    bid_order = models.ForeignKey(Order, models.PROTECT, related_name="trades_as_bid", db_constraint=False)
    ask_order = models.ForeignKey(Order, models.PROTECT, related_name="trades_as_ask", db_constraint=False)
    bid_broker = models.ForeignKey(
        Broker, models.PROTECT, related_name="trades_as_bid", db_index=False, db_constraint=False
    )
    ask_broker = models.ForeignKey(
        Broker, models.PROTECT, related_name="trades_as_ask", db_index=False, db_constraint=False
    )
    executed_at = models.DateTimeField()

    objects = TradeQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["instrument", "-executed_at", "-id"], name="trade_tape"),
            models.Index(fields=["bid_broker", "-executed_at", "-id"], name="trade_newest_of_bidder"),
            models.Index(fields=["ask_broker", "-executed_at", "-id"], name="trade_newest_of_asker"),
        ]
        constraints = [
            models.CheckConstraint(condition=Q(quantity__gt=0, price__gt=0), name="trade_positive"),
        ]

    def __str__(self) -> str:
        return str(self.pk)


class Bar(models.Model):
    """One minute of an instrument: the number of orders, and the prices, volume and value of the trades.

    Derived from orders and trades by `orders.activity`, repeatedly for the last minutes. A minute without orders and
    trades has no bar; a bar without trades has no prices.
    """

    id = models.BigAutoField(primary_key=True)
    instrument = models.ForeignKey(Instrument, models.PROTECT, related_name="bars", db_column="symbol", db_index=False)
    minute = models.DateTimeField()
    orders = models.IntegerField(default=0)
    trades = models.IntegerField(default=0)
    volume = models.DecimalField(max_digits=30, decimal_places=0, default=0)
    value = models.DecimalField(max_digits=CASH_DIGITS, decimal_places=DECIMALS, default=0)
    open = models.DecimalField(max_digits=PRICE_DIGITS, decimal_places=DECIMALS, null=True)
    high = models.DecimalField(max_digits=PRICE_DIGITS, decimal_places=DECIMALS, null=True)
    low = models.DecimalField(max_digits=PRICE_DIGITS, decimal_places=DECIMALS, null=True)
    close = models.DecimalField(max_digits=PRICE_DIGITS, decimal_places=DECIMALS, null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["minute", "instrument"], name="bar_once_per_minute")]
        indexes = [models.Index(fields=["instrument", "minute"], name="bar_of_instrument")]

    def __str__(self) -> str:
        return f"{self.instrument_id} {self.minute:%Y-%m-%d %H:%M}"


class RunState(ChoicesEnum):
    """The state of a reconciliation run. An incomplete run ended without a result."""

    WAITING = "waiting"
    RUNNING = "running"
    OK = "ok"
    DIFFERENCES = "differences"
    INCOMPLETE = "incomplete"


class ReconcileRunQuerySet(models.QuerySet["ReconcileRun"]):
    """Queries on reconciliation runs."""

    def unfinished(self) -> "ReconcileRunQuerySet":
        """Runs that are waiting or running."""
        return self.filter(finished_at=None)


class ReconcileRun(models.Model):
    """One check of all invariants: who requested it, its progress and its findings."""

    id = models.UUIDField(primary_key=True, default=uuid_utils.uuid7, editable=False)
    asked_by = models.CharField(max_length=150)
    asked_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    checks = models.SmallIntegerField(default=0)  # number of checks in the run
    findings = models.JSONField(default=list)  # one per check so far: check, count, examples, seconds
    error = models.CharField(max_length=200, blank=True)  # why it ended without a result

    objects = ReconcileRunQuerySet.as_manager()

    class Meta:
        verbose_name = "reconciliation"
        permissions = [("run_reconcile", "Can run the reconciliation")]
        indexes = [
            models.Index(fields=["id"], name="reconcile_run_under_way", condition=Q(finished_at=None)),
        ]

    def __str__(self) -> str:
        return str(self.pk)

    @property
    def state(self) -> RunState:
        if self.error:
            return RunState.INCOMPLETE
        if self.finished_at is None:
            return RunState.WAITING if self.started_at is None else RunState.RUNNING
        return RunState.DIFFERENCES if self.differences else RunState.OK

    @property
    def differences(self) -> int:
        """The number of rows that violate a check, so far."""
        return sum(finding["count"] for finding in self.findings)

    @property
    def seconds(self) -> float | None:
        """The duration of a run that has ended."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()
