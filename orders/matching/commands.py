"""Everything that can be asked of a book, and every answer it can give. Values only."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from uuid import UUID

import uuid_utils.compat as uuid_utils

from exchange.audit import Actor
from exchange.errors import ExchangeError
from orders.enums import CancelReason, OrderType, Side, TimeInForce
from orders.matching.state import OrderState, TradeState


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceOrder:
    """A new order; its id is chosen here, so that an unknown outcome can be looked up."""

    broker_id: str
    document_number: str
    side: Side
    symbol: str
    quantity: int
    type: OrderType
    price: Decimal | None
    time_in_force: TimeInForce
    expires_at: datetime | None = None
    client_order_id: str | None = None
    order_id: UUID = field(default_factory=uuid_utils.uuid7)


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """Cancel one working order of `broker_id`, or of anybody when that is None; what an operator does is on record."""

    order_id: UUID
    broker_id: str | None
    reason: CancelReason = CancelReason.BY_BROKER
    by: Actor | None = None  # an operator,
    audit_reason: str = ""  # in its own words


@dataclass(frozen=True, slots=True)
class CancelOrders:
    """Cancel a broker's working orders in one book, or on one side of it, at most a batch of them at a time."""

    broker_id: str
    symbol: str
    reason: CancelReason = CancelReason.BY_BROKER
    side: Side | None = None
    by: Actor | None = None  # as above
    audit_reason: str = ""


@dataclass(frozen=True, slots=True)
class ExpireOrders:
    """Expire the orders of one book whose time has passed, at most a batch of them: repeat until nothing is swept."""

    symbol: str


Command = PlaceOrder | CancelOrder | CancelOrders | ExpireOrders


def symbols_of(commands: Iterable[Command]) -> set[str]:
    """The symbols that the commands name; a cancel names an order."""
    return {command.symbol for command in commands if not isinstance(command, CancelOrder)}


@dataclass(frozen=True, slots=True)
class Accepted:
    """A new order, as it stands after matching, with the trades it took part in as the taker."""

    order: OrderState
    trades: list[TradeState]
    price_decimals: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """The command's client_order_id was used before, for the same order: this one."""

    order_id: UUID


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The order, cancelled, with all the trades it took part in, oldest first."""

    order: OrderState
    trades: list[TradeState]
    price_decimals: int


@dataclass(frozen=True, slots=True)
class Swept:
    """How many orders a sweep closed, and how many of them it cancelled: those past their time it expired."""

    closed: int
    cancelled: int


Outcome = Accepted | Replayed | Cancelled | Swept | ExchangeError
