"""Orders read again, as they are now, each with its trades."""

from collections.abc import Collection, Iterable, Iterator
from uuid import UUID

from django.db.models import Q

from exchange import errors
from exchange.rules import price_decimals
from orders.bodies import OrderBody
from orders.models import Order, OrderQuerySet, Trade


def order_body(found: OrderQuerySet) -> OrderBody:
    """The one order found, as it is now, with its trades."""
    order = found.select_related("instrument").first()
    if order is None:
        raise errors.OrderNotFound
    return _with_trades(order, Trade.objects.of_order(order.id, order.side))


def order_bodies(order_ids: Collection[UUID]) -> dict[UUID, OrderBody]:
    """These orders as they are now, with their trades: two queries, however many orders."""
    orders = Order.objects.filter(pk__in=order_ids).select_related("instrument").in_bulk()
    trades: dict[UUID, list[Trade]] = {order_id: [] for order_id in orders}
    either = Q(bid_order__in=orders) | Q(ask_order__in=orders)
    for trade in Trade.objects.filter(either).order_by("executed_at", "id"):
        for order_id in {trade.bid_order_id, trade.ask_order_id} & trades.keys():
            trades[order_id].append(trade)
    return {order_id: _with_trades(order, trades[order_id]) for order_id, order in orders.items()}


def _with_trades(order: Order, trades: Iterable[Trade]) -> OrderBody:
    return OrderBody.with_trades(order, _counted(order, trades), price_decimals(order.instrument.tick_size))


def _counted(order: Order, trades: Iterable[Trade]) -> Iterator[Trade]:
    """The trades that make up what the order had filled when it was read; more may have happened since."""
    filled = 0
    for trade in trades:
        if filled == order.filled_quantity:
            return
        filled += trade.quantity
        yield trade
