"""Brokers, instruments, holdings, transfers, keys and the audit log.

Rows of `Broker`, `Instrument` and `Holding` carry balances and counters. Never `save()` an existing one: update named
columns only, under the row's lock.
"""

from decimal import Decimal

import uuid_utils.compat as uuid_utils
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q

from exchange.audit import ADDRESS_LENGTH, HASH_BYTES, ActorKind
from exchange.rules import MAX_NAME_LENGTH, MAX_REASON_LENGTH, BrokerStatus, InstrumentStatus, Pricing, Scope

CASH_DIGITS, PRICE_DIGITS, DECIMALS = 30, 20, 4


class Broker(models.Model):
    """A member of the exchange, with its cash and the counter of its event stream. The primary key is `broker_id`."""

    id = models.CharField(primary_key=True, max_length=64)
    status = models.CharField(max_length=16, choices=BrokerStatus.choices(), default=BrokerStatus.ACTIVE)
    cash = models.DecimalField(max_digits=CASH_DIGITS, decimal_places=DECIMALS, default=Decimal(0))
    reserved_cash = models.DecimalField(max_digits=CASH_DIGITS, decimal_places=DECIMALS, default=Decimal(0))
    event_sequence = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(reserved_cash__gte=0, cash__gte=F("reserved_cash")), name="broker_cash_covers_reserved"
            ),
        ]
        permissions = [
            ("admit_broker", "Can admit a broker"),
            ("suspend_broker", "Can suspend and reinstate a broker"),
            ("stop_broker", "Can suspend a broker and cancel all its orders: the kill switch"),
        ]

    def __str__(self) -> str:
        return self.pk


class Instrument(models.Model):
    """A listed security, with the rules of its orders and the counter of changes of its book."""

    symbol = models.CharField(primary_key=True, max_length=12)
    name = models.CharField(max_length=MAX_NAME_LENGTH)
    status = models.CharField(max_length=16, choices=InstrumentStatus.choices(), default=InstrumentStatus.TRADING)
    tick_size = models.DecimalField(max_digits=PRICE_DIGITS, decimal_places=DECIMALS, default=Decimal("0.01"))
    lot_size = models.BigIntegerField(default=1)
    pricing = models.CharField(max_length=8, choices=Pricing.choices(), default=Pricing.SELLER)
    halt_reason = models.CharField(max_length=MAX_REASON_LENGTH, blank=True)
    sequence = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(tick_size__gt=0), name="instrument_tick_positive"),
            models.CheckConstraint(condition=Q(lot_size__gte=1), name="instrument_lot_positive"),
        ]
        permissions = [
            ("list_instrument", "Can list an instrument"),
            ("edit_instrument", "Can edit an instrument's rules"),
            ("halt_instrument", "Can halt and resume an instrument"),
            ("halt_market", "Can halt all instruments at once"),
        ]

    def __str__(self) -> str:
        return self.pk


class Holding(models.Model):
    """A broker's shares of an instrument, the part reserved by its resting asks, and its number of open orders.

    A row without shares exists for its count of open orders, or because all shares were sold.
    """

    broker = models.ForeignKey(Broker, models.PROTECT, related_name="holdings", db_index=False)
    instrument = models.ForeignKey(Instrument, models.PROTECT, related_name="+", db_column="symbol", db_index=False)
    quantity = models.DecimalField(max_digits=30, decimal_places=0, default=Decimal(0))
    reserved = models.DecimalField(max_digits=30, decimal_places=0, default=Decimal(0))
    # Without a constraint: if the count were ever wrong, cancels must still work. `manage.py reconcile` checks it.
    open_orders = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["broker", "instrument"], name="holding_once_per_broker"),
            models.CheckConstraint(
                condition=Q(reserved__gte=0, quantity__gte=F("reserved")), name="holding_covers_reserved"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.broker_id} {self.instrument_id}"


class Transfer(models.Model):
    """A deposit or withdrawal of cash or shares. Every balance is the sum of transfers and trades."""

    id = models.UUIDField(primary_key=True, default=uuid_utils.uuid7, editable=False)
    reference = models.CharField(max_length=120, unique=True)
    broker = models.ForeignKey(Broker, models.PROTECT, related_name="transfers", db_index=False)
    cash = models.DecimalField(max_digits=CASH_DIGITS, decimal_places=DECIMALS, null=True)
    instrument = models.ForeignKey(
        Instrument, models.PROTECT, related_name="+", db_column="symbol", db_index=False, null=True
    )
    quantity = models.BigIntegerField(null=True)
    reason = models.CharField(max_length=MAX_REASON_LENGTH)
    created_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["broker", "-created_at", "-id"], name="transfer_newest_of_broker")]
        constraints = [
            models.CheckConstraint(
                condition=Q(cash__isnull=False, instrument=None, quantity=None)
                | Q(cash=None, instrument__isnull=False, quantity__isnull=False),
                name="transfer_cash_or_shares",
            ),
        ]
        permissions = [("book_transfer", "Can book cash and shares in and out")]

    def __str__(self) -> str:
        return self.reference


class ApiKey(models.Model):
    """An API key, stored as a public prefix and the SHA-256 of its 256-bit secret."""

    prefix = models.CharField(primary_key=True, max_length=16)
    secret_hash = models.BinaryField(max_length=32)
    broker = models.ForeignKey(Broker, models.PROTECT, related_name="keys", null=True)
    name = models.CharField(max_length=MAX_NAME_LENGTH, blank=True)
    scopes = ArrayField(models.CharField(max_length=16, choices=Scope.choices()))
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
    last_used_at = models.DateTimeField(null=True)  # saved once a minute: see `exchange.keys.save_last_used`

    class Meta:
        indexes = [models.Index(fields=["-created_at", "-prefix"], name="key_newest")]
        constraints = [
            models.CheckConstraint(
                condition=Q(broker=None, scopes=[Scope.OPERATOR])
                | Q(broker__isnull=False) & ~Q(scopes__contains=[Scope.OPERATOR]),
                name="key_of_broker_or_operator",
            ),
        ]
        verbose_name = "key"
        permissions = [("issue_key", "Can issue a key to a broker"), ("revoke_key", "Can revoke a broker's key")]

    def __str__(self) -> str:
        return self.pk


class AuditEntry(models.Model):
    """An operator action, written by `exchange.audit`. The database rejects UPDATE, DELETE and TRUNCATE."""

    id = models.UUIDField(primary_key=True, default=uuid_utils.uuid7, editable=False)
    # From 1 without gaps. Not unique, because a forged entry must not block further actions.
    number = models.BigIntegerField(db_index=True)
    hash = models.BinaryField(max_length=HASH_BYTES)  # hash of this entry and the preceding hash
    at = models.DateTimeField()
    actor_kind = models.CharField(max_length=8, choices=ActorKind.choices())
    actor = models.CharField(max_length=150)  # the maximum length of a user name
    address = models.CharField(max_length=ADDRESS_LENGTH, blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    action = models.CharField(max_length=32)  # one of `Action`
    subject = models.CharField(max_length=150)
    reason = models.CharField(max_length=MAX_REASON_LENGTH, blank=True)
    before = models.JSONField(null=True)
    after = models.JSONField(null=True)

    class Meta:
        indexes = [
            models.Index(fields=["subject", "-id"], name="audit_newest_of_subject"),
            models.Index(fields=["actor", "-id"], name="audit_newest_of_actor"),
        ]
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return str(self.pk)


class AuditHead(models.Model):
    """Number and hash of the last audit entry, in a single row, to detect the removal of the last entries."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    number = models.BigIntegerField(default=0)
    hash = models.BinaryField(max_length=HASH_BYTES, default=b"")

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="audit_head_is_one")]

    def __str__(self) -> str:
        return f"{self.number}:{bytes(self.hash).hex()}"


class RejectedOrders(models.Model):
    """Count of rejected orders in the ten seconds from `at`. They leave no other rows. Retention: two days."""

    at = models.DateTimeField(primary_key=True)
    count = models.BigIntegerField()

    class Meta:
        verbose_name_plural = "rejected orders"

    def __str__(self) -> str:
        return str(self.pk)
