"""The queue position, latest fills and events of an order.

No query takes a lock. Events are not indexed by order, but their IDs begin with the time at which they were written,
shortly after the fill or end they describe. A limited number of events from that time are scanned.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection

from backoffice.queries import delivery_attempts
from exchange.ids import first_id_at
from orders.enums import WORKING, CancelReason, OrderStatus
from orders.models import Order, Trade
from webhooks.models import Delivery, Subscription

FILL_ROWS = 50
MAX_AHEAD = 10_000  # orders counted ahead of an order
MAX_SCANNED_EVENTS = 4_000  # per event searched

# The longest delay between an event's time and its writing: by a transaction, and by a late expiry sweep.
_WRITTEN_WITHIN, _SWEPT_WITHIN = timedelta(minutes=1), timedelta(hours=1)

# Cancellations of resting orders. The others have no event: the response to the request reported them.
_REASONS_WITH_EVENT = {CancelReason.BY_BROKER, CancelReason.BY_OPERATOR, CancelReason.BROKER_SUSPENDED}


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """The orders ahead of a resting order, at its price and at better prices."""

    orders_at_price: int
    quantity_at_price: int
    better_levels: int
    better_orders: int
    better_quantity: int

    @property
    def is_first(self) -> bool:
        return self.orders_at_price + self.better_orders == 0

    @property
    def is_truncated(self) -> bool:
        """True if there may be more orders than were counted."""
        return self.orders_at_price + self.better_orders >= MAX_AHEAD


def queue_position_of(order: Order) -> QueuePosition | None:
    """Return the order's queue position, or None if it is not in the book."""
    if order.status not in WORKING:
        return None
    with connection.cursor() as cursor:
        cursor.execute(_AHEAD, [order.rank] * 5 + [order.symbol, order.side, order.rank, order.sequence, MAX_AHEAD])
        return QueuePosition(*map(int, cursor.fetchone()))


@dataclass(frozen=True, slots=True)
class OrderFill:
    """A trade from the perspective of one of its orders."""

    trade: Trade
    remaining: int  # after the trade
    is_taker: bool


def latest_fills(order: Order) -> tuple[list[OrderFill], bool]:
    """Return the latest fills, newest first, and True if there are earlier ones."""
    rows = Trade.objects.filter(**{f"{order.side}_order": order.pk}).order_by("-executed_at", "-id")[: FILL_ROWS + 1]
    fills, remaining = [], order.remaining_quantity
    for trade in rows:
        fills.append(OrderFill(trade, remaining, trade.taker_side == order.side))
        remaining += trade.quantity
    return fills[:FILL_ROWS], len(fills) > FILL_ROWS


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """An event about an order, and its deliveries."""

    event_id: UUID
    sequence: int
    deliveries: Sequence[Delivery]


@dataclass(frozen=True, slots=True)
class EventLookup:
    """The result of a search for an event: the event, or whether the search reached its limit."""

    event: OrderEvent | None = None
    is_truncated: bool = False


def look_up_events(order: Order, fills: Iterable[OrderFill]) -> tuple[dict[UUID, EventLookup], EventLookup | None]:
    """Search the events of these fills, by trade ID, and the event of the order's end."""
    trades = [fill.trade for fill in fills]
    searches = [
        _EventSearch(trade.executed_at, _WRITTEN_WITHIN, f'"trade_id":"{trade.pk}","order_id":"{order.pk}"')
        for trade in trades
    ]
    end = _closing_event_search(order)
    found = _search_events(order.broker_id, [*searches, *([end] if end else [])])
    return dict(zip((trade.pk for trade in trades), found, strict=False)), found[-1] if end else None


@dataclass(frozen=True, slots=True)
class _EventSearch:
    """The time of an event, the longest delay of its writing, and a text that only its body contains."""

    at: datetime
    within: timedelta
    text: str


def _closing_event_search(order: Order) -> _EventSearch | None:
    text = f'"data":{{"order_id":"{order.pk}"'
    if order.status == OrderStatus.EXPIRED and order.expired_at:
        return _EventSearch(order.expired_at, _SWEPT_WITHIN, text)
    if order.cancel_reason in _REASONS_WITH_EVENT and order.cancelled_at:
        return _EventSearch(order.cancelled_at, _WRITTEN_WITHIN, text)
    return None


def _search_events(broker_id: str, searches: Sequence[_EventSearch]) -> list[EventLookup]:
    if not searches:
        return []
    values: dict[str, Any] = {
        "broker_id": broker_id,
        "firsts": [first_id_at(each.at) for each in searches],
        "ends": [first_id_at(each.at + each.within) for each in searches],
        "texts": [each.text for each in searches],
        "max_events": MAX_SCANNED_EVENTS,
    }
    with connection.cursor() as cursor:
        cursor.execute(_EVENTS, values)
        found = cursor.fetchall()
    deliveries = _deliveries_of(broker_id, [event_id for event_id, _, _ in found if event_id])
    return [
        EventLookup(OrderEvent(event_id, sequence, deliveries[event_id]))
        if event_id
        else EventLookup(is_truncated=is_truncated)
        for event_id, sequence, is_truncated in found
    ]


def _deliveries_of(broker_id: str, event_ids: Sequence[UUID]) -> dict[UUID, list[Delivery]]:
    """Return the deliveries of each event, oldest first."""
    found: dict[UUID, list[Delivery]] = defaultdict(list)
    if event_ids and Subscription.objects.filter(broker=broker_id).exists():  # otherwise there are none
        for delivery in delivery_attempts.deliveries_of_events(event_ids):
            found[delivery.event_id].append(delivery)
    return found


# Counts from the order towards the best price, so that a truncated count still covers its own price level.
_AHEAD = """
SELECT count(*) FILTER (WHERE rank = %s), coalesce(sum(remaining) FILTER (WHERE rank = %s), 0),
       count(DISTINCT rank) FILTER (WHERE rank < %s), count(*) FILTER (WHERE rank < %s),
       coalesce(sum(remaining) FILTER (WHERE rank < %s), 0)
FROM (
  SELECT rank, quantity - filled_quantity AS remaining FROM orders_order
  WHERE symbol = %s AND side = %s AND (rank, sequence) < (%s, %s)
    AND orders_is_working(status) AND (expires_at IS NULL OR expires_at > statement_timestamp())
  ORDER BY rank DESC, sequence DESC LIMIT %s
) ahead
"""

# The inner limit bounds the scan. The outer limit stops it when the event is found.
_EVENTS = """
SELECT event.id, event.sequence, event.id IS NULL AND further.id IS NOT NULL
FROM unnest(%(firsts)s::uuid[], %(ends)s::uuid[], %(texts)s::text[])
  WITH ORDINALITY AS wanted(first, last, pattern, number)
LEFT JOIN LATERAL (
  SELECT near.id, near.sequence FROM (
    SELECT id, broker_id, sequence, body FROM webhooks_event
    WHERE id >= wanted.first AND id < wanted.last ORDER BY id LIMIT %(max_events)s
  ) near
  WHERE near.broker_id = %(broker_id)s AND strpos(near.body, wanted.pattern) > 0 LIMIT 1
) event ON true
LEFT JOIN LATERAL (
  SELECT id FROM webhooks_event WHERE event.id IS NULL AND id >= wanted.first AND id < wanted.last
  ORDER BY id OFFSET %(max_events)s LIMIT 1
) further ON true
ORDER BY wanted.number
"""
