"""SQL of the write path: reads the rows that a batch can touch, and writes its changes.

To avoid deadlocks, all transactions lock in the same order: instruments by symbol, then brokers by id. The matching
service locks the instruments. Rows that a decision depends on are read by a statement after the lock that guards them,
because a statement that waits for a lock returns other rows as they were before it waited. Reading takes one message,
writing and committing another. Both call database functions (`sql/*.sql` here, in `webhooks` and in `exchange`), which
take and return JSON: one list per table to write, one document for all rows read.
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
from orders.matching.state import BookState, BrokerState, OrderState, Position, TradeState
from webhooks import outbox

_encode = msgspec.json.Encoder(decimal_format="number").encode


def begin_with_batch_lock(cursor: CursorWrapper) -> None:
    """Begin a transaction and wait for the batch lock until a timeout. The transaction's end releases the lock."""
    milliseconds = max(round(settings.SEQUENCER_BATCH_LOCK_TIMEOUT_SECONDS * 1000), 1)  # 0 would mean no timeout
    cursor.execute(_BEGIN_WITH_BATCH_LOCK, [milliseconds])


def begin_with_short_lock_timeout(cursor: CursorWrapper) -> None:
    """Begin a transaction unless one is open, and set the lock timeout of batches that run beside a deep order."""
    begin = "" if is_transaction_open() else "BEGIN; "
    cursor.execute(f"{begin}SET LOCAL lock_timeout = {settings.SEQUENCER_DEEP_LOCK_TIMEOUT_MS:d}")


def find_targets(cursor: CursorWrapper, commands: Sequence[Command]) -> dict[UUID, str]:
    """The orders to cancel, each with its symbol, without those of other brokers.

    An order's symbol and owner never change, so they can be read before anything is locked.
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
    books: Iterable[BookState],
    *,
    skip_busy: bool = False,
    allow_deep: bool = False,
) -> Market:
    """Read the rows that `commands` can touch in these books, whose instruments are locked, and lock the brokers.

    With `skip_busy`, leave out brokers that are locked, instead of waiting. Raise `TooManyMakers` if an order reaches
    more than `MAX_MAKERS_READ_AT_ONCE` resting orders, or all orders together more than `MAX_MAKERS_PER_BATCH` of one
    side; with `allow_deep`, a single command may. No book is read after brokers are locked.
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
    """Load for a single deep order. Read its resting orders only if it is going to trade."""
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
    """Load for a batch. Read the resting orders of its fundable orders. Raise `TooManyMakers` if one is deep."""
    takers = place_commands(reader.commands)
    funded = fundable_orders(takers, read_funds(reader.cursor, takers), is_alone=len(reader.commands) == 1)
    if deep := find_deep_orders(reader.cursor, funded, reader.targets):
        raise TooManyMakers(deep)
    market = reader.read(funded, settings.MAX_MAKERS_PER_BATCH)
    if market is None:
        raise TooManyMakers(largest_takers(reader.commands, funded))
    unfunded = {each.order_id for each in takers} - {each.order_id for each in funded}
    market.unread_costs |= dict.fromkeys(unfunded, Decimal(0))
    return market


def save_market(cursor: CursorWrapper, market: Market) -> int:
    """Write the changes and commit. Return the number of deliveries that are due."""
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
    """True if the transaction that wrote `market` was committed. It has ended, because its books are locked again.

    If it was, its new orders exist. Without new orders, it closed orders, which stay closed. A cancel is preferred as
    evidence: its time is unique to this transaction, but another transaction may have expired the same order.
    """
    if market.new_orders:
        cursor.execute("SELECT FROM orders_order WHERE id = %s", [market.new_orders[0].id])
        return bool(cursor.fetchall())
    evidence = min(market.changed_orders.values(), key=lambda order: order.cancelled_at is None)
    cursor.execute(_IS_CLOSED, [evidence.id, evidence.status, evidence.cancelled_at])
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
    """The argument of `orders_read_market_v2`."""

    cancels: list[UUID]
    sweeps: list[CancelOrders | ExpireOrders]
    takers: list[_Taker]
    demands: list[Demand]
    skip_busy: bool
    makers_max: int  # on each side of a book; if more are reached, nothing is read
    batch_max: int


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the rows that a batch can touch, under the locks of the instruments."""

    cursor: CursorWrapper
    commands: Sequence[Command]
    targets: list[UUID]
    books: dict[str, BookState]
    skip_busy: bool

    def read(self, takers: Iterable[PlaceOrder], makers_max: int) -> Market | None:
        """Read the market, with the makers that `takers` reach. None, with no broker locked, if these are too many.

        An instrument that was listed after the lock is not locked, and its book is not read.
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
        """Read the market for a command that needs no makers; `unread_costs` as in `Market`."""
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
            """The orders as unique objects, also if several queries read the same row."""
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
    """The result of `orders_read_market_v2`. A part without rows is null."""

    now: datetime
    accounts: list[BrokerState] | None
    targets: list[OrderState]
    sweeps: list[list[OrderState]]  # in the order of the request
    makers: list[OrderState] | None  # best first on each side of a book
    holdings: list[_Holding] | None
    used: list[OrderState] | None  # under the takers' client_order_ids
    trades: list[TradeState] | None  # for the orders to cancel, oldest first

    def brokers_by_id(self) -> dict[str, BrokerState]:
        """The locked brokers, with their positions and used client_order_ids."""
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

# As text, so that the result is decoded here and not by the driver.
_READ_MARKET = "SELECT orders_read_market_v2(%s::json)::text"

_BEGIN_WITH_BATCH_LOCK = "BEGIN; SELECT orders_await_turn(%s)"

_IS_CLOSED = """
SELECT FROM orders_order WHERE id = %s AND status = %s AND cancelled_at IS NOT DISTINCT FROM %s
"""

# Writes and commits in one message. Returns the number of deliveries due and of audit entries.
_SAVE_MARKET = f"""
SELECT {outbox.PUBLISH}, {audit.RECORD} FROM orders_save_market_v2(
  %(placed)s::json, %(changed)s::json, %(trades)s::json, %(accounts)s::json, %(positions)s::json, %(books)s::json,
  %(now)s);
COMMIT
"""
