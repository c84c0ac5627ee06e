"""Response bodies, as they are encoded and as the OpenAPI document describes them."""

from collections.abc import Mapping
from decimal import Decimal
from http import HTTPStatus
from uuid import UUID

import msgspec
from django.db import connection

from exchange.errors import BrokerNotFound
from exchange.json_codec import Instant
from exchange.models import Broker
from exchange.rules import BrokerStatus, InstrumentStatus, Pricing, Scope, round_cash


class HoldingBody(msgspec.Struct, frozen=True):
    """Shares that a broker holds of one instrument."""

    symbol: str
    quantity: int
    reserved_quantity: int
    available_quantity: int


class BalanceBody(msgspec.Struct, frozen=True):
    """Cash and shares of a broker: in total, reserved by its working orders, and available."""

    broker_id: str
    cash_balance: Decimal
    reserved_cash: Decimal
    available_cash: Decimal
    holdings: list[HoldingBody]
    updated_at: Instant


class AdmittedBrokerBody(BalanceBody, frozen=True):
    """Balance of a new broker, with its first key."""

    created_at: Instant
    api_key: str


class BrokerBody(msgspec.Struct, frozen=True):
    """A broker, with its cash."""

    broker_id: str
    status: BrokerStatus
    cash_balance: Decimal
    reserved_cash: Decimal
    available_cash: Decimal
    created_at: Instant
    updated_at: Instant


class BrokerPage(msgspec.Struct, frozen=True):
    """A page of brokers."""

    brokers: list[BrokerBody]
    next_cursor: str | None


class TransferBody(msgspec.Struct, frozen=True):
    """A deposit (positive) or withdrawal (negative) of cash or shares."""

    transfer_id: UUID
    reference: str
    broker_id: str
    cash: Decimal | None
    symbol: str | None
    quantity: int | None
    reason: str
    created_at: Instant


class TransferPage(msgspec.Struct, frozen=True):
    """A page of transfers."""

    transfers: list[TransferBody]
    next_cursor: str | None


class KeyBody(msgspec.Struct, frozen=True):
    """An API key, without the key itself, which is not stored."""

    prefix: str
    name: str
    scopes: list[Scope]
    created_at: Instant
    expires_at: Instant | None
    revoked_at: Instant | None


class IssuedKeyBody(KeyBody, frozen=True):
    """A new key."""

    api_key: str


class KeyPage(msgspec.Struct, frozen=True):
    """A page of keys."""

    keys: list[KeyBody]
    next_cursor: str | None


class InstrumentBody(msgspec.Struct, frozen=True):
    """An instrument, with the rules for its orders."""

    symbol: str
    name: str
    status: InstrumentStatus
    tick_size: Decimal
    lot_size: int
    pricing: Pricing


class StockPage(msgspec.Struct, frozen=True):
    """A page of instruments."""

    stocks: list[InstrumentBody]
    next_cursor: str | None


class HealthBody(msgspec.Struct, frozen=True):
    """The process is alive."""

    status: str


class ReadinessBody(msgspec.Struct, frozen=True):
    """Readiness for orders, and the age of the heartbeats of the scheduler and the worker."""

    database: bool
    valkey: bool
    beat_age_seconds: float | None
    worker_age_seconds: float | None

    @property
    def status(self) -> HTTPStatus:
        return HTTPStatus.OK if self.database else HTTPStatus.SERVICE_UNAVAILABLE


def balance_body(broker_id: str) -> BalanceBody:
    """Read a broker's balance, in one statement, so that it shows whole trades only."""
    with connection.cursor() as cursor:
        cursor.execute(_BALANCE, [broker_id])
        row = cursor.fetchone()
    if row is None:
        raise BrokerNotFound(f"Broker {broker_id} does not exist.")
    cash, reserved, updated_at, holdings = row
    return BalanceBody(
        broker_id=broker_id,
        cash_balance=round_cash(cash),
        reserved_cash=round_cash(reserved),
        available_cash=round_cash(cash - reserved),
        holdings=_decode_holdings(holdings),
        updated_at=updated_at,
    )


_decode_holdings = msgspec.json.Decoder(list[HoldingBody]).decode

# The holdings as JSON, which takes a fraction of the time of 450 rows. A row without shares may exist for its count.
_BALANCE = """
SELECT b.cash, b.reserved_cash, b.updated_at, (
  SELECT coalesce(json_agg(json_build_object(
    'symbol', h.symbol, 'quantity', h.quantity, 'reserved_quantity', h.reserved,
    'available_quantity', h.quantity - h.reserved) ORDER BY h.symbol), '[]')::text
  FROM exchange_holding h WHERE h.broker_id = b.id AND h.quantity > 0)
FROM exchange_broker b WHERE b.id = %s
"""


def admitted_broker_body(broker: Broker, holdings: Mapping[str, int], api_key: str) -> AdmittedBrokerBody:
    """Build the balance of a new broker without reading it again: a failure now would lose its key."""
    return AdmittedBrokerBody(
        broker_id=broker.pk,
        cash_balance=round_cash(broker.cash),
        reserved_cash=round_cash(broker.reserved_cash),
        available_cash=round_cash(broker.cash),
        holdings=[HoldingBody(symbol, quantity, 0, quantity) for symbol, quantity in sorted(holdings.items())],
        updated_at=broker.updated_at,
        created_at=broker.created_at,
        api_key=api_key,
    )
