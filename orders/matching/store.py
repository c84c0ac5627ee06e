"""The write path's SQL: reads what a list of commands can touch, and writes what they changed.

All transactions lock in the same order, or there are deadlocks: instruments by symbol, then brokers by id. The matching
service locks the instruments. Whatever is decided on is read in a statement after the lock that guards it, because a
statement that locks one row returns other rows as they were before it waited. Reading is one message, and writing and
committing another. Both call functions of the database: `sql/*.sql` here, and those of `webhooks` and `exchange`. Rows
travel as JSON: one list per table to write, one document of all that is read.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from django.conf import settings
from django.db.backends.utils import CursorWrapper

from exchange import audit
from exchange.database import is_transaction_open
from orders.enums import Side, TimeInForce
from orders.matching.commands import CancelOrder, CancelOrders, Command, ExpireOrders, PlaceOrder
from orders.matching.depth import (
    Demand,
    TooManyMakers,
    demands,
    find_deep_orders,
    fundable_orders,
    largest_takers,
    measure_reach,
    place_commands,
    read_funds,
)
from orders.matching.market import Market
from orders.matching.state import Book, BrokerState, OrderState, Position, TradeState
from webhooks import outbox

_encode = msgspec.json.Encoder(decimal_format="number").encode


def begin_with_batch_lock(cursor: CursorWrapper) -> None:
    """Begin, and wait until no other transaction has its turn, or no longer; the turn ends with the transaction."""
    milliseconds = max(round(settings.SEQUENCER_TURN_SECONDS * 1000), 1)  # of PostgreSQL's time-outs 0 is none
    cursor.execute(_BEGIN_WITH_BATCH_LOCK, [milliseconds])


def begin_with_short_lock_timeout(cursor: CursorWrapper) -> None:
    """Begin a transaction unless one is open, and give its locks the timeout of lists that run beside a deep order."""
    begin = "" if is_transaction_open() else "BEGIN; "
    cursor.execute(f"{begin}SET LOCAL lock_timeout = {settings.SEQUENCER_ASIDE_LOCK_TIMEOUT_MS:d}")


def find_targets(cursor: CursorWrapper, commands: Sequence[Command]) -> dict[UUID, str]:
    """The orders to cancel, each with its symbol; an order that its canceller may not cancel is left out.

    An order's symbol and owner never change, so they may be read before anything is locked.
    """
    cancellers: dict[UUID, set[str | None]] = defaultdict(set)
    for command in commands:
        if isinstance(command, CancelOrder):
            cancellers[command.order_id].add(command.broker_id)
    if not cancellers:
        return {}
    cursor.execute(_FIND_TARGETS, [list(cancellers)])
    return {id_: symbol for id_, symbol, owner in cursor.fetchall() if cancellers[id_] & {None, owner}}


def load_market(
    cursor: CursorWrapper,
    commands: Sequence[Command],
    targets: Mapping[UUID, str],
    books: Iterable[Book],
    *,
    skip_busy: bool = False,
    allow_deep: bool = False,
) -> Market:
    """Read all that `commands` can touch in these books, whose instruments are locked, and lock the brokers.

    Brokers that others hold are waited for, or left out with `skip_busy`. `TooManyMakers` is raised when an order
    reaches more than `MAX_MAKERS_READ_AT_ONCE` resting orders, or all together more than `MAX_MAKERS_PER_LIST` of one
    side; with `allow_deep` a command alone may. No book is read after brokers are locked.
    """
    reader = _Reader(cursor, commands, list(targets), {book.symbol: book for book in books}, skip_busy)
    market = reader.read(place_commands(commands), settings.MAX_MAKERS_READ_AT_ONCE)
    if market is not None:
        return market
    if len(commands) == 1 and allow_deep:
        (order,) = place_commands(commands)
        return _load_for_single(reader, order)
    return _load_for_batch(reader)


def _load_for_single(reader: "_Reader", order: PlaceOrder) -> Market:
    """Read the resting orders that a deep order fills, unless it is going to fill none."""
    funds = read_funds(reader.cursor, [order])
    if not fundable_orders([order], funds, is_alone=True):
        return reader.read_without_makers(unread_costs={order.order_id: Decimal(0)})
    reached = measure_reach(reader.cursor, order)
    if reached.makers > settings.MAX_MAKERS_PER_COMMAND:
        market = reader.read_without_makers()
        market.books[order.symbol].truncated_sides.add(order.side.opposite)
        return market
    if order.time_in_force is TimeInForce.FOK and reached.shares < order.quantity:
        return reader.read_without_makers()
    is_market_bid = order.side is Side.BID and order.price is None
    if is_market_bid and reached.cost > funds[order.broker_id].available_cash:
        return reader.read_without_makers(unread_costs={order.order_id: reached.cost})
    found = reader.read([order], settings.MAX_MAKERS_PER_COMMAND)
    assert found is not None  # the book has been locked since it was measured
    return found


def _load_for_batch(reader: "_Reader") -> Market:
    """Read the resting orders that a list's fundable orders fill, if each of them may run with others."""
    takers = place_commands(reader.commands)
    funded = fundable_orders(takers, read_funds(reader.cursor, takers), is_alone=len(reader.commands) == 1)
    if deep := find_deep_orders(reader.cursor, funded, reader.targets):
        raise TooManyMakers(deep)
    market = reader.read(funded, settings.MAX_MAKERS_PER_LIST)
    if market is None:
        raise TooManyMakers(largest_takers(reader.commands, funded))
    unfunded = {each.order_id for each in takers} - {each.order_id for each in funded}
    market.unread_costs |= dict.fromkeys(unfunded, Decimal(0))
    return market


def save_market(cursor: CursorWrapper, market: Market) -> int:
    """Write what has changed, and commit; how many deliveries are due by that."""
    cursor.execute(
        _SAVE_MARKET,
        {
            "placed": _json_or_none(market.new_orders),
            "changed": _json_or_none(market.changed_orders.values()),
            "trades": _json_or_none(market.trades),
            "accounts": _json_or_none(market.changed_brokers.values()),
            "positions": _json_or_none(
                _Holding(broker_id, symbol, position.quantity, position.reserved, position.open_orders)
                for (broker_id, symbol), position in market.changed_positions.items()
            ),
            "books": _json_or_none(
                {"symbol": book.symbol, "sequence": book.sequence} for book in market.changed_books.values()
            ),
            "now": market.now,
            "events": outbox.encode_events(market.events),
            "audit": audit.encode_entries(market.audit),
        },
    )
    due, _ = cursor.fetchone()
    return int(due)


def was_saved(cursor: CursorWrapper, market: Market) -> bool:
    """True if the transaction that wrote `market` was committed. It has ended, since its books are locked again.

    The orders that it placed are there if it was. If it placed none it closed orders, and they stay closed. The time of
    a cancel is unique to this transaction; another one may have expired an order in the same way.
    """
    if market.new_orders:
        cursor.execute("SELECT FROM orders_order WHERE id = %s", [market.new_orders[0].id])
        return bool(cursor.fetchall())
    telling = min(market.changed_orders.values(), key=lambda order: order.cancelled_at is None)
    cursor.execute(_IS_CLOSED, [telling.id, telling.status, telling.cancelled_at])
    return bool(cursor.fetchall())


def _json_or_none(rows: Iterable[Any]) -> str | None:
    found = list(rows)
    return _encode(found).decode() if found else None


# --- Reading --------------------------------------------------------------------------------------------------------


class _Taker(msgspec.Struct, frozen=True):
    broker_id: str
    symbol: str
    client_order_id: str | None


class _ReadRequest(msgspec.Struct, frozen=True):
    """The argument of `orders_read_market`."""

    cancels: list[UUID]
    sweeps: list[CancelOrders | ExpireOrders]
    takers: list[_Taker]
    demands: list[Demand]
    skip_busy: bool
    makers_max: int  # of each side of a book; if more are reached, nothing is read
    batch_max: int


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads what a list of commands can touch, under the locks of the instruments."""

    cursor: CursorWrapper
    commands: Sequence[Command]
    targets: list[UUID]
    books: dict[str, Book]
    skip_busy: bool

    def read(self, takers: Iterable[PlaceOrder], makers_max: int) -> Market | None:
        """Read, with the makers for these takers; None if there are more. Then no broker is locked yet.

        An instrument that was listed since the lock is not locked, and its book is not read.
        """
        request = _ReadRequest(
            cancels=self.targets,
            sweeps=self._sweeps(),
            takers=[
                _Taker(each.broker_id, each.symbol, each.client_order_id) for each in place_commands(self.commands)
            ],
            demands=[demand for demand in demands(takers) if demand.book in self.books],
            skip_busy=self.skip_busy,
            makers_max=makers_max,
            batch_max=settings.SWEEP_BATCH,
        )
        self.cursor.execute(_READ_MARKET, [_encode(request).decode()])
        (found,) = self.cursor.fetchone()
        return None if found is None else self._market(_decode_result(found), request.sweeps)

    def read_without_makers(self, *, unread_costs: dict[UUID, Decimal] | None = None) -> Market:
        """Read, for a command whose makers are not wanted; `unread_costs` as in `Market`."""
        market = self.read([], 0)
        assert market is not None
        market.unread_costs |= unread_costs or {}
        return market

    def _sweeps(self) -> list[CancelOrders | ExpireOrders]:
        sweeps = (command for command in self.commands if isinstance(command, CancelOrders | ExpireOrders))
        return list(dict.fromkeys(sweep for sweep in sweeps if sweep.symbol in self.books))

    def _market(self, result: "_ReadResult", sweeps: Sequence[CancelOrders | ExpireOrders]) -> Market:
        orders: dict[UUID, OrderState] = {}

        def unique(read: Iterable[OrderState]) -> list[OrderState]:
            """Each order is one object, however many ways lead to it."""
            return [orders.setdefault(order.id, order) for order in read]

        swept = {sweep: unique(read) for sweep, read in zip(sweeps, result.sweeps, strict=True)}
        unique(result.targets)
        for maker in unique(result.makers or []):
            self.books[maker.symbol].resting[maker.side].append(maker)
        return Market(
            result.now,
            self.books,
            result.brokers_by_id(),
            orders,
            swept,
            result.trades_by_order(),
            settings.MAX_OPEN_ORDERS,
            self.skip_busy,
        )


class _Holding(msgspec.Struct, frozen=True):
    broker_id: str
    symbol: str
    quantity: int
    reserved: int
    open_orders: int


class _ReadResult(msgspec.Struct, frozen=True):
    """The result of `orders_read_market`; null where there was nothing to read."""

    now: datetime
    accounts: list[BrokerState] | None
    targets: list[OrderState]
    sweeps: list[list[OrderState]]  # in the order of the request
    makers: list[OrderState] | None  # of each side of a book the best first
    holdings: list[_Holding] | None
    used: list[OrderState] | None  # under the takers' client_order_ids
    trades: list[TradeState] | None  # of the orders to cancel, oldest first

    def brokers_by_id(self) -> dict[str, BrokerState]:
        """The locked brokers' accounts, with what was read of each."""
        brokers = {broker.id: broker for broker in self.accounts or []}
        for held in self.holdings or []:
            if held.broker_id in brokers:
                position = Position(held.quantity, held.reserved, held.open_orders)
                brokers[held.broker_id].positions[held.symbol] = position
        for order in self.used or []:
            if order.broker_id in brokers:
                assert order.client_order_id is not None
                brokers[order.broker_id].used_client_order_ids[order.client_order_id] = order
        return brokers

    def trades_by_order(self) -> dict[UUID, list[TradeState]]:
        trades: dict[UUID, list[TradeState]] = defaultdict(list)
        for trade in self.trades or []:
            trades[trade.bid_order_id].append(trade)
            trades[trade.ask_order_id].append(trade)
        return trades


_decode_result = msgspec.json.Decoder(_ReadResult).decode


# --- SQL ------------------------------------------------------------------------------------------------------------

_FIND_TARGETS = "SELECT id, symbol, broker_id FROM orders_order WHERE id = ANY(%s)"

# As text: it is decoded here, and not by the driver.
_READ_MARKET = "SELECT orders_read_market_v2(%s::json)::text"

_BEGIN_WITH_BATCH_LOCK = "BEGIN; SELECT orders_await_turn(%s)"

_IS_CLOSED = """
SELECT FROM orders_order WHERE id = %s AND status = %s AND cancelled_at IS NOT DISTINCT FROM %s
"""

# Writes, and ends the transaction, in one message; gives how many deliveries are due, and how many acts are on record.
_SAVE_MARKET = f"""
SELECT {outbox.PUBLISH}, {audit.RECORD} FROM orders_save_market_v2(
  %(placed)s::json, %(changed)s::json, %(trades)s::json, %(accounts)s::json, %(positions)s::json, %(books)s::json,
  %(now)s);
COMMIT
"""
