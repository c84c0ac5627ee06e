"""What goes out: the answers, as they are encoded and as the OpenAPI document describes them."""

from collections.abc import Mapping
from decimal import Decimal
from http import HTTPStatus
from typing import Any
from uuid import UUID

import msgspec

from exchange.errors import BrokerNotFound
from exchange.json_codec import Instant
from exchange.models import Broker
from exchange.rules import BrokerStatus, InstrumentStatus, Pricing, Scope, round_cash


class HoldingBody(msgspec.Struct, frozen=True):
    symbol: str
    quantity: int
    reserved_quantity: int
    available_quantity: int


class BalanceBody(msgspec.Struct, frozen=True):
    """What a broker owns, how much of it its open orders hold, and what is left."""

    broker_id: str
    cash_balance: Decimal
    reserved_cash: Decimal
    available_cash: Decimal
    holdings: list[HoldingBody]
    updated_at: Instant


class NewBrokerBody(BalanceBody, frozen=True):
    """A broker just admitted, with its first key, which is never shown again."""

    created_at: Instant
    api_key: str


class BrokerBody(msgspec.Struct, frozen=True):
    broker_id: str
    status: BrokerStatus
    cash_balance: Decimal
    reserved_cash: Decimal
    available_cash: Decimal
    created_at: Instant
    updated_at: Instant


class BrokerPage(msgspec.Struct, frozen=True):
    brokers: list[BrokerBody]
    next_cursor: str | None


class TransferBody(msgspec.Struct, frozen=True):
    """Cash or shares that came in (above zero) or went out (below)."""

    transfer_id: UUID
    reference: str
    broker_id: str
    cash: Decimal | None
    symbol: str | None
    quantity: int | None
    reason: str
    created_at: Instant


class TransferPage(msgspec.Struct, frozen=True):
    transfers: list[TransferBody]
    next_cursor: str | None


class KeyBody(msgspec.Struct, frozen=True):
    """What is kept of a key: never the key itself."""

    prefix: str
    name: str
    scopes: list[Scope]
    created_at: Instant
    expires_at: Instant | None
    revoked_at: Instant | None


class NewKeyBody(KeyBody, frozen=True):
    """A key just made, which is never shown again."""

    api_key: str


class KeyPage(msgspec.Struct, frozen=True):
    keys: list[KeyBody]
    next_cursor: str | None


class InstrumentBody(msgspec.Struct, frozen=True):
    """What is traded, and the rules its orders obey."""

    symbol: str
    name: str
    status: InstrumentStatus
    tick_size: Decimal
    lot_size: int
    pricing: Pricing


class StockPage(msgspec.Struct, frozen=True):
    stocks: list[InstrumentBody]
    next_cursor: str | None


class HealthBody(msgspec.Struct, frozen=True):
    status: str


class ReadinessBody(msgspec.Struct, frozen=True):
    """Whether orders can be taken, and how long ago beat and a worker were last heard of (null: not known)."""

    database: bool
    valkey: bool
    beat_age_seconds: float | None
    worker_age_seconds: float | None

    @property
    def status(self) -> HTTPStatus:
        return HTTPStatus.OK if self.database else HTTPStatus.SERVICE_UNAVAILABLE


def balance_body(broker_id: str) -> BalanceBody:
    """A broker's balance, read in one statement: no trade is seen half done."""
    rows = list(
        Broker.objects.filter(pk=broker_id)
        .order_by("holdings__instrument_id")
        .values(
            "cash", "reserved_cash", "updated_at", "holdings__instrument_id", "holdings__quantity", "holdings__reserved"
        )
    )
    if not rows:
        raise BrokerNotFound(f"Broker {broker_id} does not exist.")
    cash, reserved = rows[0]["cash"], rows[0]["reserved_cash"]
    return BalanceBody(
        broker_id=broker_id,
        cash_balance=round_cash(cash),
        reserved_cash=round_cash(reserved),
        available_cash=round_cash(cash - reserved),
        holdings=[_holding_body(row) for row in rows if row["holdings__quantity"]],  # a row may be there for its count
        updated_at=rows[0]["updated_at"],
    )


def _holding_body(row: Mapping[str, Any]) -> HoldingBody:
    quantity, reserved = int(row["holdings__quantity"]), int(row["holdings__reserved"])
    return HoldingBody(row["holdings__instrument_id"], quantity, reserved, quantity - reserved)


def new_broker_body(broker: Broker, holdings: Mapping[str, int], api_key: str) -> NewBrokerBody:
    """The balance a broker begins with; nothing is read again, because a failure now would lose its key."""
    return NewBrokerBody(
        broker_id=broker.pk,
        cash_balance=round_cash(broker.cash),
        reserved_cash=round_cash(broker.reserved_cash),
        available_cash=round_cash(broker.cash),
        holdings=[HoldingBody(symbol, quantity, 0, quantity) for symbol, quantity in sorted(holdings.items())],
        updated_at=broker.updated_at,
        created_at=broker.created_at,
        api_key=api_key,
    )
