"""The write path's SQL, all of it: takes the locks, reads what a list of commands can touch, writes what they changed.

The order of locks is the same for everybody, or there are deadlocks: instruments by symbol, then brokers by id.
Whatever is decided on is read in a statement after the lock that guards it: in a statement that locks one row and reads
others, those are older than the lock. Statements are few and do not depend on the number of commands; rows travel as
one JSON parameter per table.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from django.conf import settings
from django.db.backends.utils import CursorWrapper

from exchange.rules import BrokerStatus, InstrumentStatus, Pricing
from orders.commands import CancelOrder, CancelOrders, Command, ExpireOrders, PlaceOrder
from orders.market import Market
from orders.state import Account, Book, OrderState, Position, TradeState
from orders.terms import CancelReason, OrderStatus, OrderType, Side, TimeInForce
from webhooks import outbox

Row = tuple[Any, ...]
_encode = msgspec.json.Encoder(decimal_format="number").encode


def load_market(cursor: CursorWrapper, commands: Sequence[Command], *, skip_busy: bool = False) -> Market:
    """Lock and read everything that `commands` can touch; nothing of a book is read after its brokers are locked.

    Books and brokers that others hold are waited for, or left out with `skip_busy`.
    """
    reading = _Reading(cursor, commands)
    reading.lock_books(skip_busy=skip_busy)
    reading.read_sweeps()
    reading.read_books()
    accounts = reading.lock_accounts(skip_busy=skip_busy)
    return Market(
        reading.now,
        reading.books,
        accounts,
        reading.orders,
        reading.sweeps,
        reading.earlier_trades(),
        settings.MAX_OPEN_ORDERS,
        skip_busy,
    )


def save_market(cursor: CursorWrapper, market: Market) -> None:
    """Write what has changed: one statement for the exchange, one for the events."""
    if not (market.placed or market.changed):
        return
    cursor.execute(
        _SAVE,
        {
            "placed": _json(market.placed),
            "changed": _json(market.changed.values()),
            "trades": _json(market.trades),
            "accounts": _json(market.moved_accounts.values()),
            "positions": _json(
                {
                    "broker_id": broker_id,
                    "symbol": symbol,
                    "quantity": position.quantity,
                    "reserved": position.reserved,
                    "open_orders": position.open_orders,
                }
                for (broker_id, symbol), position in market.moved_positions.items()
            ),
            "books": _json({"symbol": book.symbol, "sequence": book.sequence} for book in market.moved_books.values()),
            "now": market.now,
        },
    )
    if market.events:
        outbox.publish(cursor, market.events)


def was_saved(cursor: CursorWrapper, market: Market) -> bool:
    """Whether the transaction that wrote `market` was committed; it has ended once its books can be locked again.

    What it placed is there if it was, whatever became of it since; where it placed nothing it closed orders, for good.
    """
    cursor.execute(_LOCK_INSTRUMENTS, [sorted(market.books), []])
    if market.placed:
        cursor.execute("SELECT FROM orders_order WHERE id = %s", [market.placed[0].id])
        return bool(cursor.fetchall())
    by_whom_is_told = sorted(market.changed.values(), key=lambda order: order.cancelled_at is None)
    for (
        order
    ) in by_whom_is_told:  # the time of a cancel is ours alone; expired it may have been by anybody, all the same
        cursor.execute(_IS_CLOSED, [order.id, order.status, order.cancelled_at])
        return bool(cursor.fetchall())
    return True  # there was nothing to write


def _json(rows: Iterable[Any]) -> str:
    return _encode(list(rows)).decode()


# --- Books ----------------------------------------------------------------------------------------------------------


class MakersCutShort(Exception):
    """Together the commands reach more resting orders than one transaction reads; fewer at a time may not."""


class _Reading:
    """What a list of commands can touch, each order one object however many ways lead to it."""

    now: datetime

    def __init__(self, cursor: CursorWrapper, commands: Sequence[Command]) -> None:
        self.cursor = cursor
        self.commands = commands
        self.places = [command for command in commands if isinstance(command, PlaceOrder)]
        self.cancels = [command.order_id for command in commands if isinstance(command, CancelOrder)]
        self.books: dict[str, Book] = {}
        self.orders: dict[UUID, OrderState] = {}
        self.sweeps: dict[CancelOrders | ExpireOrders, list[OrderState]] = {}

    def lock_books(self, *, skip_busy: bool) -> None:
        """Of an order only its symbol is read before the lock: it never changes."""
        symbols = {command.symbol for command in self.commands if not isinstance(command, CancelOrder)}
        self.cursor.execute(_LOCK_FREE_INSTRUMENTS if skip_busy else _LOCK_INSTRUMENTS, [sorted(symbols), self.cancels])
        for symbol, status, tick_size, lot_size, pricing, sequence in self.cursor.fetchall():
            self.books[symbol] = Book(symbol, InstrumentStatus(status), tick_size, lot_size, Pricing(pricing), sequence)

    def read_sweeps(self) -> None:
        """The orders that are cancelled or expired a batch at a time."""
        for command in self.commands:
            if isinstance(command, CancelOrders | ExpireOrders) and command not in self.sweeps:
                self.cursor.execute(*_sweep(command))
                self.sweeps[command] = self._keep(self.cursor.fetchall())

    def read_books(self) -> None:
        """The clock; the orders to cancel; per book and side what takers can reach, for the sum of their quantities."""
        limit = settings.MAX_MAKERS_PER_COMMAND
        self.now, targets, reachable = read_books(self.cursor, self.cancels, self._demands())
        self._keep(targets)
        for (symbol, side), rows in reachable.items():
            if len(rows) > limit:
                if len(self.commands) > 1:
                    raise MakersCutShort
                rows.pop()
                self.books[symbol].cut_short.add(side)
            self.books[symbol].resting[side] = self._keep(rows)

    def _demands(self) -> list["Demand"]:
        """What the list's takers want of the books that are locked; one listed since the lock is not."""
        takers: dict[tuple[str, Side], list[PlaceOrder]] = defaultdict(list)
        for command in self.places:
            if command.symbol in self.books:
                takers[command.symbol, command.side.opposite].append(command)
        leaving = [*self.orders, *self.cancels]
        return [
            Demand(
                book=symbol,
                book_side=side,
                wanted=sum(taker.quantity for taker in group),
                worst_rank=str(max(_worst_rank(taker) for taker in group)),
                leaving=leaving,
            )
            for (symbol, side), group in takers.items()
        ]

    def lock_accounts(self, *, skip_busy: bool) -> dict[str, Account]:
        """Lock takers, makers, and the owners of what is cancelled or expired; then read what their orders can move."""
        pairs = {(command.broker_id, command.symbol) for command in self.places}
        pairs |= {(order.broker_id, order.symbol) for order in self.orders.values()}
        broker_ids = sorted({broker_id for broker_id, _ in pairs})
        self.cursor.execute(_LOCK_FREE_BROKERS if skip_busy else _LOCK_BROKERS, [broker_ids])
        accounts = {
            broker_id: Account(broker_id, BrokerStatus(status), cash, reserved_cash, event_sequence)
            for broker_id, status, cash, reserved_cash, event_sequence in self.cursor.fetchall()
        }
        self.cursor.execute(_READ_HOLDINGS, [_json(pairs)])
        for broker_id, symbol, quantity, reserved, open_orders in self.cursor.fetchall():
            if broker_id in accounts:
                accounts[broker_id].positions[symbol] = Position(int(quantity), int(reserved), open_orders)
        self._read_used_client_order_ids(accounts)
        return accounts

    def _read_used_client_order_ids(self, accounts: Mapping[str, Account]) -> None:
        wanted = [
            (each.broker_id, each.client_order_id)
            for each in self.places
            if each.client_order_id is not None and each.broker_id in accounts
        ]
        if not wanted:
            return
        self.cursor.execute(_READ_USED_CLIENT_ORDER_IDS, [_json(wanted)])
        for row in self.cursor.fetchall():
            order = order_state(row)
            assert order.client_order_id is not None
            accounts[order.broker_id].used_client_order_ids[order.client_order_id] = order

    def earlier_trades(self) -> dict[UUID, list[TradeState]]:
        """Of the orders to cancel, oldest first: the answer tells them."""
        filled = [self.orders[id_] for id_ in self.cancels if id_ in self.orders and self.orders[id_].filled_quantity]
        trades: dict[UUID, list[TradeState]] = defaultdict(list)
        if filled:
            bids, asks = ([order.id for order in filled if order.side is side] for side in Side)
            self.cursor.execute(_READ_TRADES, [bids, asks])
            for order_id, *row in self.cursor.fetchall():
                trades[order_id].append(TradeState(*row))
        return trades

    def _keep(self, rows: Iterable[Row]) -> list[OrderState]:
        return [self.orders.setdefault(row[0], order_state(row)) for row in rows]


def _sweep(command: CancelOrders | ExpireOrders) -> tuple[str, list[Any]]:
    if isinstance(command, CancelOrders):
        return _READ_WORKING_OF_BROKER, [command.broker_id, command.symbol, command.side, settings.SWEEP_BATCH]
    return _READ_DUE, [command.symbol, settings.SWEEP_BATCH]


class Demand(msgspec.Struct, frozen=True):
    """How much of one side of a book takers want, and down to which rank."""

    book: str
    book_side: Side
    wanted: int
    worst_rank: str = "Infinity"
    leaving: Sequence[UUID] = ()  # orders that may be closed meanwhile: read, but not counted on


def read_books(
    cursor: CursorWrapper, order_ids: list[UUID], demands: Sequence[Demand]
) -> tuple[datetime, list[Row], dict[tuple[str, Side], list[Row]]]:
    """The database's clock, the rows of some orders, and the rows that meet each demand as it stands, best first.

    Of the latter there is one more than a command may fill where there are more.
    """
    limit = settings.MAX_MAKERS_PER_COMMAND
    cursor.execute(_READ_BOOKS, {"order_ids": order_ids, "demands": _json(demands), "limit": limit})
    targets: list[Row] = []
    reachable: dict[tuple[str, Side], list[Row]] = defaultdict(list)
    rows = cursor.fetchall()
    for _, symbol, side, depth, *row in rows:
        if depth == 0:
            targets.append(tuple(row))
        elif depth is not None:
            reachable[symbol, Side(side)].append(tuple(row))
    return rows[0][0], targets, reachable


def _worst_rank(command: PlaceOrder) -> Decimal:
    """The last rank of the opposite side that the command's price crosses; ranks ascend from the best."""
    if command.price is None:
        return Decimal("Infinity")
    return command.price if command.side is Side.BID else -command.price


def order_state(row: Row) -> OrderState:
    state = OrderState(*row)
    state.type = OrderType(state.type)
    state.side = Side(state.side)
    state.time_in_force = TimeInForce(state.time_in_force)
    state.status = OrderStatus(state.status)
    state.cancel_reason = CancelReason(state.cancel_reason) if state.cancel_reason else None
    return state


# --- SQL ------------------------------------------------------------------------------------------------------------

_ORDER_COLUMNS = """
o.id, o.client_order_id, o.broker_id, o.document_number, o.symbol, o.sequence, o.type, o.side, o.price, o.quantity,
o.time_in_force, o.expires_at, o.created_at, o.filled_quantity, o.filled_value, o.status, o.cancelled_at, o.expired_at,
o.cancel_reason"""

_LOCK_INSTRUMENTS = """
SELECT symbol, status, tick_size, lot_size, pricing, sequence FROM exchange_instrument
WHERE symbol = ANY(%s::text[] || ARRAY(SELECT o.symbol::text FROM orders_order o WHERE o.id = ANY(%s::uuid[])))
ORDER BY symbol FOR NO KEY UPDATE
"""

_LOCK_FREE_INSTRUMENTS = f"{_LOCK_INSTRUMENTS} SKIP LOCKED"

_LOCK_BROKERS = """
SELECT id, status, cash, reserved_cash, event_sequence
FROM exchange_broker WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE
"""

_LOCK_FREE_BROKERS = f"{_LOCK_BROKERS} SKIP LOCKED"

# Pairs come as an array of arrays: [[broker_id, symbol], ...].
_READ_HOLDINGS = """
SELECT h.broker_id, h.symbol, h.quantity, h.reserved, h.open_orders
FROM json_array_elements(%s::json) AS pair
JOIN exchange_holding h ON h.broker_id = pair ->> 0 AND h.symbol = pair ->> 1
"""

_READ_USED_CLIENT_ORDER_IDS = f"""
SELECT {_ORDER_COLUMNS}
FROM json_array_elements(%s::json) AS pair
JOIN orders_order o ON o.broker_id = pair ->> 0 AND o.client_order_id = pair ->> 1
"""

# A side that is null is any; and with IS NOT FALSE the planner never takes the book's index for the broker's.
_READ_WORKING_OF_BROKER = f"""
SELECT {_ORDER_COLUMNS} FROM orders_order o
WHERE o.broker_id = %s AND o.symbol = %s AND (o.side = %s) IS NOT FALSE AND o.status IN ('pending', 'partially_filled')
ORDER BY o.sequence LIMIT %s
"""

_TRADE_COLUMNS = """
id, symbol, price, quantity, taker_side, bid_order_id, ask_order_id, bid_broker_id, ask_broker_id, executed_at"""

_READ_TRADES = f"""
SELECT bid_order_id, {_TRADE_COLUMNS} FROM orders_trade WHERE bid_order_id = ANY(%s::uuid[])
UNION ALL SELECT ask_order_id, {_TRADE_COLUMNS} FROM orders_trade WHERE ask_order_id = ANY(%s::uuid[])
ORDER BY executed_at, id
"""

_READ_DUE = f"""
SELECT {_ORDER_COLUMNS} FROM orders_order o
WHERE o.symbol = %s AND o.expires_at IS NOT NULL AND o.expires_at <= statement_timestamp()
  AND o.status IN ('pending', 'partially_filled')
ORDER BY o.expires_at, o.sequence LIMIT %s
"""

# One side of a book in priority, order by order along its index, until what was passed covers the demand. A window sum
# would read every order that crosses before it could stop: with a market order that is the whole side.
_MAKER = f"""
SELECT {_ORDER_COLUMNS}, o.rank,
       CASE WHEN o.id = ANY(d.leaving) THEN 0 ELSE o.quantity - o.filled_quantity END AS counted
FROM orders_order o
WHERE o.symbol = d.book AND o.side = d.book_side AND o.status IN ('pending', 'partially_filled')
  AND o.rank <= d.worst_rank AND (o.expires_at IS NULL OR o.expires_at > (SELECT now FROM clock))
"""

# The clock is read first and always; its row stands alone where nothing was asked for.
_READ_BOOKS = f"""
WITH RECURSIVE clock AS MATERIALIZED (
  SELECT clock_timestamp() AS now
), demand AS MATERIALIZED (
  SELECT * FROM json_to_recordset(%(demands)s::json)
    AS row(book text, book_side text, leaving uuid[], worst_rank numeric, wanted numeric)
), walk AS (
  SELECT d.*, 1 AS depth, m.counted::numeric AS covered, m.*
  FROM demand d CROSS JOIN LATERAL ({_MAKER} ORDER BY o.rank, o.sequence LIMIT 1) m
  UNION ALL
  SELECT d.book, d.book_side, d.leaving, d.worst_rank, d.wanted, d.depth + 1, d.covered + m.counted, m.*
  FROM walk d CROSS JOIN LATERAL (
    {_MAKER} AND (o.rank, o.sequence) > (d.rank, d.sequence) ORDER BY o.rank, o.sequence LIMIT 1) m
  WHERE d.covered < d.wanted AND d.depth <= %(limit)s
)
SELECT clock.now, found.*
FROM clock LEFT JOIN (
  SELECT NULL AS book, NULL AS book_side, 0 AS depth, {_ORDER_COLUMNS}
  FROM orders_order o WHERE o.id = ANY(%(order_ids)s::uuid[])
  UNION ALL SELECT o.book, o.book_side, o.depth, {_ORDER_COLUMNS} FROM walk o
) found ON true
ORDER BY found.depth
"""

_IS_CLOSED = """
SELECT FROM orders_order WHERE id = %s AND status = %s AND cancelled_at IS NOT DISTINCT FROM %s
"""

_SAVE = """
WITH placed AS (
  INSERT INTO orders_order (
    id, client_order_id, broker_id, document_number, symbol, sequence, type, side, price, quantity, time_in_force,
    expires_at, created_at, filled_quantity, filled_value, status, cancelled_at, expired_at, cancel_reason)
  SELECT * FROM json_to_recordset(%(placed)s::json) AS row(
    id uuid, client_order_id text, broker_id text, document_number text, symbol text, sequence bigint, type text,
    side text, price numeric, quantity bigint, time_in_force text, expires_at timestamptz, created_at timestamptz,
    filled_quantity bigint, filled_value numeric, status text, cancelled_at timestamptz, expired_at timestamptz,
    cancel_reason text)
), changed AS (
  UPDATE orders_order o
  SET filled_quantity = row.filled_quantity, filled_value = row.filled_value, status = row.status,
      cancelled_at = row.cancelled_at, expired_at = row.expired_at, cancel_reason = row.cancel_reason
  FROM json_to_recordset(%(changed)s::json) AS row(
    id uuid, filled_quantity bigint, filled_value numeric, status text, cancelled_at timestamptz,
    expired_at timestamptz, cancel_reason text)
  WHERE o.id = row.id
), traded AS (
  INSERT INTO orders_trade (
    id, symbol, price, quantity, taker_side, bid_order_id, ask_order_id, bid_broker_id, ask_broker_id, executed_at)
  SELECT * FROM json_to_recordset(%(trades)s::json) AS row(
    id uuid, symbol text, price numeric, quantity bigint, taker_side text, bid_order_id uuid, ask_order_id uuid,
    bid_broker_id text, ask_broker_id text, executed_at timestamptz)
), accounts AS (
  UPDATE exchange_broker b
  SET cash = row.cash, reserved_cash = row.reserved_cash, event_sequence = row.event_sequence, updated_at = %(now)s
  FROM json_to_recordset(%(accounts)s::json) AS row(
    id text, cash numeric, reserved_cash numeric, event_sequence bigint)
  WHERE b.id = row.id
), positions AS (
  INSERT INTO exchange_holding (broker_id, symbol, quantity, reserved, open_orders)
  SELECT * FROM json_to_recordset(%(positions)s::json) AS row(
    broker_id text, symbol text, quantity numeric, reserved numeric, open_orders bigint)
  ON CONFLICT (broker_id, symbol) DO UPDATE
  SET quantity = EXCLUDED.quantity, reserved = EXCLUDED.reserved, open_orders = EXCLUDED.open_orders
)
UPDATE exchange_instrument i SET sequence = row.sequence
FROM json_to_recordset(%(books)s::json) AS row(symbol text, sequence bigint)
WHERE i.symbol = row.symbol
"""
