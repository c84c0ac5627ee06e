"""Commands that change a book, and their outcomes. Values only."""

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
    """Place a new order. Its id is chosen here, so that an unknown outcome can be looked up."""

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
    """Cancel one working order of `broker_id`, or of any broker if that is None. An operator's cancel is audited."""

    order_id: UUID
    broker_id: str | None
    reason: CancelReason = CancelReason.BY_BROKER
    by: Actor | None = None  # the operator, if one cancels
    audit_reason: str = ""  # as the operator wrote it


@dataclass(frozen=True, slots=True)
class CancelOrders:
    """Cancel a broker's working orders in one book, or on one side of it, at most `SWEEP_BATCH` at a time."""

    broker_id: str
    symbol: str
    reason: CancelReason = CancelReason.BY_BROKER
    side: Side | None = None
    by: Actor | None = None  # the operator, if one cancels
    audit_reason: str = ""


@dataclass(frozen=True, slots=True)
class ExpireOrders:
    """Expire orders of one book that are past their `expires_at`, at most `SWEEP_BATCH` at a time."""

    symbol: str


Command = PlaceOrder | CancelOrder | CancelOrders | ExpireOrders


def symbols_of(commands: Iterable[Command]) -> set[str]:
    """The symbols that the commands name; a `CancelOrder` names only its order."""
    return {command.symbol for command in commands if not isinstance(command, CancelOrder)}


@dataclass(frozen=True, slots=True)
class Accepted:
    """A new order after matching, with its trades as the taker."""

    order: OrderState
    trades: list[TradeState]
    price_decimals: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """An earlier order with the same client_order_id and the same fields as the command."""

    order_id: UUID


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The cancelled order, with all its trades, oldest first."""

    order: OrderState
    trades: list[TradeState]
    price_decimals: int


@dataclass(frozen=True, slots=True)
class Swept:
    """The number of orders that a sweep closed: those it cancelled, and those it expired."""

    closed: int
    cancelled: int


Outcome = Accepted | Replayed | Cancelled | Swept | ExchangeError
