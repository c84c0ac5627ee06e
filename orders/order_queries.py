"""Reads of orders with their trades. Each is one statement, so both are of the same moment."""

from collections.abc import Collection
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from django.db import connection

from exchange import errors
from exchange.rules import price_decimals
from orders.matching.state import OrderState, TradeState
from orders.response_bodies import OrderBody


def read_order(order_id: UUID, *, owner: str | None) -> OrderBody:
    """Read an order. Raise `OrderNotFound` if it does not exist, or does not belong to `owner` (None: any broker)."""
    return _single(_query(_BY_ID, order_id, owner))


def read_order_by_client_order_id(owner: str, client_order_id: str) -> OrderBody:
    """Read a broker's order by its client_order_id, or raise `OrderNotFound`."""
    return _single(_query(_BY_CLIENT_ORDER_ID, owner, client_order_id))


def read_orders(order_ids: Collection[UUID]) -> dict[UUID, OrderBody]:
    """Read several orders with one statement, and return them by id."""
    if not order_ids:
        return {}
    return {found.order.id: found.body() for found in _query(_BY_IDS, list(order_ids))}


class _OrderWithTrades(msgspec.Struct, frozen=True):
    """An order as the statement returns it, with its trades, oldest first."""

    order: OrderState
    tick_size: Decimal
    trades: list[TradeState]

    def body(self) -> OrderBody:
        return OrderBody.with_trades(self.order, self.trades, price_decimals(self.tick_size))


_decode_orders = msgspec.json.Decoder(list[_OrderWithTrades]).decode


def _single(found: list[_OrderWithTrades]) -> OrderBody:
    if not found:
        raise errors.OrderNotFound
    return found[0].body()


def _query(sql: str, *values: Any) -> list[_OrderWithTrades]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        (found,) = cursor.fetchone()
    return _decode_orders(found)


def _orders_where(condition: str) -> str:
    """The statement that reads orders. It returns JSON as text, which is decoded here and not by the driver."""
    return f"""
SELECT coalesce(json_agg(json_build_object('order', o, 'tick_size', i.tick_size, 'trades', own.trades)), '[]')::text
FROM orders_order o
JOIN exchange_instrument i ON i.symbol = o.symbol
CROSS JOIN LATERAL (
  SELECT coalesce(json_agg(t ORDER BY t.executed_at, t.id), '[]') AS trades FROM (
    SELECT * FROM orders_trade WHERE bid_order_id = o.id AND o.side = 'bid'
    UNION ALL
    SELECT * FROM orders_trade WHERE ask_order_id = o.id AND o.side = 'ask'
  ) t
) own
WHERE {condition}
"""


_BY_ID = _orders_where("o.id = %s AND (o.broker_id = %s) IS NOT FALSE")  # a null owner means any
_BY_CLIENT_ORDER_ID = _orders_where("o.broker_id = %s AND o.client_order_id = %s")
_BY_IDS = _orders_where("o.id = ANY(%s)")
