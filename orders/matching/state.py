"""Rows that the write path reads under its locks: plain values, named like their columns."""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import ClassVar, Self
from uuid import UUID

import msgspec

from exchange.rules import BrokerStatus, InstrumentStatus, Pricing
from orders.enums import WORKING, CancelReason, OrderStatus, OrderType, Side, TimeInForce


class OrderState(msgspec.Struct):  # created, copied and encoded in a tenth of a dataclass's time
    """One order's row."""

    id: UUID
    client_order_id: str | None
    broker_id: str
    document_number: str
    symbol: str
    sequence: int
    type: OrderType
    side: Side
    price: Decimal | None
    quantity: int
    time_in_force: TimeInForce
    expires_at: datetime | None
    created_at: datetime
    filled_quantity: int = 0
    filled_value: Decimal = Decimal(0)
    status: OrderStatus = OrderStatus.PENDING
    cancelled_at: datetime | None = None
    expired_at: datetime | None = None
    cancel_reason: CancelReason | None = None

    @property
    def remaining_quantity(self) -> int:
        return self.quantity - self.filled_quantity

    @property
    def is_working(self) -> bool:
        return self.status in WORKING

    @property
    def limit(self) -> Decimal:
        """The price of a limit order; every resting order is one."""
        assert self.price is not None
        return self.price

    @property
    def priority(self) -> tuple[Decimal, int]:
        """Sort key, best first: price, then arrival."""
        return (-self.limit if self.side is Side.BID else self.limit), self.sequence

    def is_due(self, now: datetime) -> bool:
        """True once `expires_at` has passed, whether swept or not."""
        return self.expires_at is not None and now >= self.expires_at

    def fill(self, quantity: int, value: Decimal) -> None:
        assert 0 < quantity <= self.remaining_quantity
        self.filled_quantity += quantity
        self.filled_value += value
        self.status = OrderStatus.FILLED if self.remaining_quantity == 0 else OrderStatus.PARTIALLY_FILLED

    def cancel(self, now: datetime, reason: CancelReason) -> None:
        self.status, self.cancelled_at, self.cancel_reason = OrderStatus.CANCELLED, now, reason

    def expire(self) -> None:
        self.status, self.expired_at = OrderStatus.EXPIRED, self.expires_at


class TradeState(msgspec.Struct, frozen=True):
    """One trade's row."""

    id: UUID
    symbol: str
    price: Decimal
    quantity: int
    taker_side: Side
    bid_order_id: UUID
    ask_order_id: UUID
    bid_broker_id: str
    ask_broker_id: str
    executed_at: datetime


@dataclass(slots=True)
class Position:
    """A broker's shares of one instrument, and the number of its resting orders there."""

    quantity: int = 0
    reserved: int = 0
    open_orders: int = 0

    @property
    def available(self) -> int:
        return self.quantity - self.reserved


@dataclass(slots=True)
class BrokerState:
    """A broker's balances, its event counter, and its earlier orders with client_order_ids of the batch."""

    id: str
    status: BrokerStatus
    cash: Decimal
    reserved_cash: Decimal
    event_sequence: int
    positions: dict[str, Position] = field(default_factory=dict)
    used_client_order_ids: dict[str, OrderState] = field(default_factory=dict)

    @property
    def available_cash(self) -> Decimal:
        return self.cash - self.reserved_cash

    def position(self, symbol: str) -> Position:
        return self.positions.setdefault(symbol, Position())


@dataclass(slots=True)
class BookState:
    """An instrument's rules, and the part of its book that the batch can reach."""

    symbol: str
    status: InstrumentStatus
    tick_size: Decimal
    lot_size: int
    pricing: Pricing
    sequence: int
    # Each side in priority order: earlier orders, as far as the batch's takers can reach, and new ones of the batch.
    resting: dict[Side, list[OrderState]] = field(default_factory=lambda: {Side.BID: [], Side.ASK: []})
    # Sides of which a taker reaches more orders than one transaction reads.
    truncated_sides: set[Side] = field(default_factory=set)

    COLUMNS: ClassVar = ("symbol", "status", "tick_size", "lot_size", "pricing", "sequence")  # the instrument's

    @classmethod
    def of(cls, symbol: str, status: str, tick_size: Decimal, lot_size: int, pricing: str, sequence: int) -> Self:
        """The book of an instrument, from the values of its `COLUMNS`."""
        return cls(symbol, InstrumentStatus(status), tick_size, lot_size, Pricing(pricing), sequence)

    def next_sequence(self) -> int:
        self.sequence += 1
        return self.sequence
