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
from orders.state import Account, Book, OrderState, Position
from orders.terms import CancelReason, OrderStatus, OrderType, Side, TimeInForce
from webhooks import outbox

Row = tuple[Any, ...]
_encode = msgspec.json.Encoder(decimal_format="number").encode


def load_market(cursor: CursorWrapper, commands: Sequence[Command]) -> Market:
    """Lock and read everything that `commands` can touch; nothing of a book is read after its brokers are locked."""
    symbols = _symbols(cursor, commands)
    books = _lock_books(cursor, symbols)
    reading = _Reading(cursor, commands)
    reading.read_targets()
    reading.read_makers(books)
    accounts = _lock_accounts(cursor, _broker_ids(commands, reading.orders.values()))
    _read_positions(cursor, accounts, symbols)
    _read_used_client_order_ids(cursor, accounts, commands)
    return Market(reading.clock(), books, accounts, reading.orders, reading.sweeps)


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
                {"broker_id": broker_id, "symbol": symbol, "quantity": position.quantity, "reserved": position.reserved}
                for (broker_id, symbol), position in market.moved_positions.items()
            ),
            "books": _json({"symbol": book.symbol, "sequence": book.sequence} for book in market.moved_books.values()),
            "now": market.now,
        },
    )
    if market.events:
        outbox.publish(cursor, market.events)


def _json(rows: Iterable[Any]) -> str:
    return _encode(list(rows)).decode()


# --- Locks ----------------------------------------------------------------------------------------------------------


def _symbols(cursor: CursorWrapper, commands: Sequence[Command]) -> list[str]:
    """The books to lock. Of an order only its symbol is read before the lock: it never changes."""
    symbols = {command.symbol for command in commands if not isinstance(command, CancelOrder)}
    order_ids = [command.order_id for command in commands if isinstance(command, CancelOrder)]
    if order_ids:
        cursor.execute("SELECT DISTINCT symbol FROM orders_order WHERE id = ANY(%s::uuid[])", [order_ids])
        symbols.update(symbol for (symbol,) in cursor.fetchall())
    return sorted(symbols)


def _lock_books(cursor: CursorWrapper, symbols: list[str]) -> dict[str, Book]:
    cursor.execute(_LOCK_INSTRUMENTS, [symbols])
    return {
        symbol: Book(symbol, InstrumentStatus(status), tick_size, lot_size, Pricing(pricing), sequence)
        for symbol, status, tick_size, lot_size, pricing, sequence in cursor.fetchall()
    }


def _broker_ids(commands: Sequence[Command], orders: Iterable[OrderState]) -> list[str]:
    """Takers, makers, and the owners of what is cancelled or expired."""
    takers = {command.broker_id for command in commands if isinstance(command, PlaceOrder)}
    return sorted(takers | {order.broker_id for order in orders})


def _lock_accounts(cursor: CursorWrapper, broker_ids: list[str]) -> dict[str, Account]:
    cursor.execute(_LOCK_BROKERS, [broker_ids])
    return {
        broker_id: Account(broker_id, BrokerStatus(status), cash, reserved_cash, event_sequence)
        for broker_id, status, cash, reserved_cash, event_sequence in cursor.fetchall()
    }


def _read_positions(cursor: CursorWrapper, accounts: Mapping[str, Account], symbols: list[str]) -> None:
    cursor.execute(_READ_HOLDINGS, [list(accounts), symbols])
    for broker_id, symbol, quantity, reserved in cursor.fetchall():
        accounts[broker_id].positions[symbol] = Position(int(quantity), int(reserved))


def _read_used_client_order_ids(
    cursor: CursorWrapper, accounts: Mapping[str, Account], commands: Sequence[Command]
) -> None:
    wanted = [
        {"broker_id": command.broker_id, "client_order_id": command.client_order_id}
        for command in commands
        if isinstance(command, PlaceOrder) and command.client_order_id is not None
    ]
    cursor.execute(_READ_USED_CLIENT_ORDER_IDS, [_json(wanted)])
    for row in cursor.fetchall():
        order = order_state(row)
        assert order.client_order_id is not None
        accounts[order.broker_id].used_client_order_ids[order.client_order_id] = order


# --- Books ----------------------------------------------------------------------------------------------------------


class MakersCutShort(Exception):
    """Together the commands reach more resting orders than one transaction reads; fewer at a time may not."""


class _Reading:
    """The orders that a list of commands can touch, each one object however many ways lead to it."""

    def __init__(self, cursor: CursorWrapper, commands: Sequence[Command]) -> None:
        self.cursor = cursor
        self.commands = commands
        self.now: datetime | None = None
        self.orders: dict[UUID, OrderState] = {}
        self.sweeps: dict[CancelOrders | ExpireOrders, list[OrderState]] = {}

    def clock(self) -> datetime:
        """The database's clock, read after the lock."""
        if self.now is None:
            self.cursor.execute("SELECT clock_timestamp()")
            (self.now,) = self.cursor.fetchone()
        assert self.now is not None
        return self.now

    def read_targets(self) -> None:
        """What is to be cancelled or expired."""
        order_ids = [command.order_id for command in self.commands if isinstance(command, CancelOrder)]
        if order_ids:
            self.cursor.execute(_READ_ORDERS, [order_ids])
            self._keep(self.cursor.fetchall())
        for command in self.commands:
            if isinstance(command, CancelOrders | ExpireOrders) and command not in self.sweeps:
                self.sweeps[command] = self._read_sweep(command)

    def _read_sweep(self, command: CancelOrders | ExpireOrders) -> list[OrderState]:
        if isinstance(command, CancelOrders):
            self.cursor.execute(_READ_WORKING_OF_BROKER, [command.broker_id, command.symbol, settings.SWEEP_BATCH])
        else:
            self.cursor.execute(_READ_DUE, [command.symbol, self.clock(), settings.SWEEP_BATCH])
        return self._keep(self.cursor.fetchall())

    def read_makers(self, books: Mapping[str, Book]) -> None:
        """Per book and side what the list's takers can reach, best first, for the sum of their quantities."""
        limit = settings.MAX_MAKERS_PER_COMMAND
        for (symbol, side), rows in read_reachable(self.cursor, self._demands(books), self.clock()).items():
            if len(rows) > limit:
                if len(self.commands) > 1:
                    raise MakersCutShort
                rows.pop()
                books[symbol].cut_short.add(side)
            books[symbol].resting[side] = self._keep(rows)

    def _demands(self, books: Mapping[str, Book]) -> list["Demand"]:
        """What the list's takers want of the books that are locked; one listed since the lock is not."""
        takers: dict[tuple[str, Side], list[PlaceOrder]] = defaultdict(list)
        for command in self.commands:
            if isinstance(command, PlaceOrder) and command.symbol in books:
                takers[command.symbol, command.side.opposite].append(command)
        return [
            Demand(
                book=symbol,
                book_side=side,
                wanted=sum(taker.quantity for taker in group),
                worst_rank=str(max(_worst_rank(taker) for taker in group)),
                leaving=list(self.orders),
            )
            for (symbol, side), group in takers.items()
        ]

    def _keep(self, rows: Iterable[Row]) -> list[OrderState]:
        return [self.orders.setdefault(row[0], order_state(row)) for row in rows]


class Demand(msgspec.Struct, frozen=True):
    """How much of one side of a book takers want, and down to which rank."""

    book: str
    book_side: Side
    wanted: int
    worst_rank: str = "Infinity"
    leaving: Sequence[UUID] = ()  # orders that may be closed meanwhile: read, but not counted on


def read_reachable(
    cursor: CursorWrapper, demands: Sequence[Demand], now: datetime
) -> dict[tuple[str, Side], list[Row]]:
    """Rows of the orders that meet each demand, best first; one more than a command may fill where there are more."""
    if not demands:
        return {}
    cursor.execute(_WALK, {"demands": _json(demands), "now": now, "limit": settings.MAX_MAKERS_PER_COMMAND})
    reachable: dict[tuple[str, Side], list[Row]] = defaultdict(list)
    for symbol, side, *row in cursor.fetchall():
        reachable[symbol, Side(side)].append(tuple(row))
    return reachable


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
SELECT symbol, status, tick_size, lot_size, pricing, sequence
FROM exchange_instrument WHERE symbol = ANY(%s) ORDER BY symbol FOR NO KEY UPDATE
"""

_LOCK_BROKERS = """
SELECT id, status, cash, reserved_cash, event_sequence
FROM exchange_broker WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE
"""

_READ_HOLDINGS = """
SELECT broker_id, symbol, quantity, reserved FROM exchange_holding WHERE broker_id = ANY(%s) AND symbol = ANY(%s)
"""

_READ_USED_CLIENT_ORDER_IDS = f"""
SELECT {_ORDER_COLUMNS}
FROM json_to_recordset(%s::json) AS wanted(broker_id text, client_order_id text)
JOIN orders_order o ON o.broker_id = wanted.broker_id AND o.client_order_id = wanted.client_order_id
"""

_READ_ORDERS = f"SELECT {_ORDER_COLUMNS} FROM orders_order o WHERE o.id = ANY(%s::uuid[])"

_READ_WORKING_OF_BROKER = f"""
SELECT {_ORDER_COLUMNS} FROM orders_order o
WHERE o.broker_id = %s AND o.symbol = %s AND o.status IN ('pending', 'partially_filled')
ORDER BY o.sequence LIMIT %s
"""

_READ_DUE = f"""
SELECT {_ORDER_COLUMNS} FROM orders_order o
WHERE o.symbol = %s AND o.expires_at IS NOT NULL AND o.expires_at <= %s
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
  AND o.rank <= d.worst_rank AND (o.expires_at IS NULL OR o.expires_at > %(now)s)
"""

_WALK = f"""
WITH RECURSIVE demand AS MATERIALIZED (
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
SELECT o.book, o.book_side, {_ORDER_COLUMNS} FROM walk o ORDER BY o.depth
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
  INSERT INTO exchange_holding (broker_id, symbol, quantity, reserved)
  SELECT * FROM json_to_recordset(%(positions)s::json) AS row(
    broker_id text, symbol text, quantity numeric, reserved numeric)
  ON CONFLICT (broker_id, symbol) DO UPDATE SET quantity = EXCLUDED.quantity, reserved = EXCLUDED.reserved
)
UPDATE exchange_instrument i SET sequence = row.sequence
FROM json_to_recordset(%(books)s::json) AS row(symbol text, sequence bigint)
WHERE i.symbol = row.symbol
"""
