"""Payloads of the events about orders: exactly the contract's fields, in the contract's order."""

from decimal import Decimal
from typing import Self
from uuid import UUID

import msgspec

from orders.enums import OrderStatus, Side
from orders.matching.state import OrderState, TradeState


class TradeExecuted(msgspec.Struct, frozen=True):
    """One side of a trade, with its order's state after that trade."""

    trade_id: UUID
    order_id: UUID
    symbol: str
    side: Side
    price: Decimal
    quantity: int
    status: OrderStatus
    remaining_quantity: int

    @classmethod
    def of(cls, trade: TradeState, order: OrderState, price: Decimal) -> Self:
        return cls(
            trade.id, order.id, order.symbol, order.side, price, trade.quantity, order.status, order.remaining_quantity
        )


class OrderClosed(msgspec.Struct, frozen=True):
    """A resting order that was cancelled or expired."""

    order_id: UUID
    symbol: str
    side: Side
    price: Decimal
    quantity: int
    filled_quantity: int
    remaining_quantity: int
    status: OrderStatus

    @classmethod
    def of(cls, order: OrderState, price: Decimal) -> Self:
        return cls(
            order.id,
            order.symbol,
            order.side,
            price,
            order.quantity,
            order.filled_quantity,
            order.remaining_quantity,
            order.status,
        )
