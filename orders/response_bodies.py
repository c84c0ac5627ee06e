"""Response bodies about orders and trades, with the contract's fields in its order."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Any, Self
from uuid import UUID

import msgspec

from exchange.json_codec import Instant, Problem
from exchange.rules import BrokerStatus, mean, price_decimals, rounded
from orders.enums import CancelReason, OrderStatus, OrderType, Side, TimeInForce
from orders.matching.state import OrderState, TradeState
from orders.models import Order, Trade


class OrderTrade(msgspec.Struct, frozen=True):
    """A trade of an order. The other side is never disclosed."""

    trade_id: UUID
    price: Decimal
    quantity: int
    executed_at: Instant

    @classmethod
    def of(cls, trade: TradeState, decimals: int) -> Self:
        return cls(trade.id, rounded(trade.price, decimals), trade.quantity, trade.executed_at)


class OrderSummary(msgspec.Struct, frozen=True):
    """An order, without its trades."""

    order_id: UUID
    client_order_id: str | None
    type: OrderType
    broker_id: str
    document_number: str
    side: Side
    symbol: str
    price: Decimal | None
    quantity: int
    filled_quantity: int
    remaining_quantity: int
    status: OrderStatus
    time_in_force: TimeInForce
    average_price: Decimal | None
    expires_at: Instant | None
    created_at: Instant
    cancelled_at: Instant | None
    expired_at: Instant | None
    cancel_reason: CancelReason | None

    @classmethod
    def of(cls, order: Order | OrderState, decimals: int, **more: Any) -> Self:
        """Return the order with prices at the instrument's `decimals`, and the fields that a subclass adds."""
        return cls(
            order_id=order.id,
            client_order_id=order.client_order_id,
            type=OrderType(order.type),
            broker_id=order.broker_id,
            document_number=order.document_number,
            side=Side(order.side),
            symbol=order.symbol,
            price=None if order.price is None else rounded(order.price, decimals),
            quantity=order.quantity,
            filled_quantity=order.filled_quantity,
            remaining_quantity=order.remaining_quantity,
            status=OrderStatus(order.status),
            time_in_force=TimeInForce(order.time_in_force),
            average_price=mean(order.filled_value, order.filled_quantity, decimals) if order.filled_quantity else None,
            expires_at=order.expires_at,
            created_at=order.created_at,
            cancelled_at=order.cancelled_at,
            expired_at=order.expired_at,
            cancel_reason=None if order.cancel_reason is None else CancelReason(order.cancel_reason),
            **more,
        )


class OrderBody(OrderSummary, frozen=True, kw_only=True):
    """An order with its trades, oldest first."""

    trades: list[OrderTrade]

    @classmethod
    def with_trades(cls, order: OrderState, trades: Iterable[TradeState], decimals: int) -> Self:
        """Return the order and its trades with prices at the instrument's `decimals`."""
        return cls.of(order, decimals, trades=[OrderTrade.of(trade, decimals) for trade in trades])


class OrderResult(msgspec.Struct, frozen=True):
    """Result of one order of a batch: the status of a request of its own, with the order or the problem."""

    status: int
    order: OrderBody | msgspec.UnsetType = msgspec.UNSET
    error: Problem | msgspec.UnsetType = msgspec.UNSET


_ONE_OF_TWO = msgspec.Meta(extra_json_schema={"oneOf": [{"required": ["order"]}, {"required": ["error"]}]})


class OrderResults(msgspec.Struct, frozen=True):
    """Results of a batch."""

    results: list[Annotated[OrderResult, _ONE_OF_TWO]]


class CancelledOrders(msgspec.Struct, frozen=True):
    """Result of a mass cancel."""

    cancelled: int


class OrderPage(msgspec.Struct, frozen=True):
    """A page of orders, without their trades."""

    orders: list[OrderSummary]
    next_cursor: str | None


class BrokerTrade(msgspec.Struct, frozen=True):
    """A broker's side of a trade."""

    trade_id: UUID
    order_id: UUID
    symbol: str
    side: Side
    price: Decimal
    quantity: int
    executed_at: Instant

    @classmethod
    def of(cls, trade: Trade, side: Side) -> Self:
        """Return `trade` as the owner of its `side` sees it. The instrument must be loaded."""
        return cls(
            trade_id=trade.id,
            order_id=trade.bid_order_id if side is Side.BID else trade.ask_order_id,
            symbol=trade.instrument_id,
            side=side,
            price=rounded(trade.price, price_decimals(trade.instrument.tick_size)),
            quantity=trade.quantity,
            executed_at=trade.executed_at,
        )


class BrokerTradePage(msgspec.Struct, frozen=True):
    """A page of a broker's trades."""

    trades: list[BrokerTrade]
    next_cursor: str | None


class TapeTrade(msgspec.Struct, frozen=True):
    """A public trade."""

    trade_id: UUID
    price: Decimal
    quantity: int
    taker_side: Side
    executed_at: Instant

    @classmethod
    def of(cls, trade: Trade, decimals: int) -> Self:
        return cls(trade.id, rounded(trade.price, decimals), trade.quantity, Side(trade.taker_side), trade.executed_at)


class TapePage(msgspec.Struct, frozen=True):
    """A page of an instrument's trades."""

    trades: list[TapeTrade]
    next_cursor: str | None


class BrokerStanding(msgspec.Struct, frozen=True):
    """Result of a suspension or reinstatement, after all cancels."""

    broker_id: str
    status: BrokerStatus
    cancelled_orders: int
