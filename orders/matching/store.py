"""The write path's SQL: takes the locks, reads what a list of commands can touch, writes what they changed.

The order of locks is the same for everybody, or there are deadlocks: instruments by symbol, then brokers by id.
Whatever is decided on is read in a statement after the lock that guards it: in a statement that locks one row and reads
others, those are older than the lock. A transaction is two messages: one begins it, locks and reads, the other writes
and commits; where processes take turns, one before has begun it. What they do is in functions of the database, which
migrations tell: `0004_read_market.py` (but for `0006`), `0005_save_market.py` and `0007_await_turn.py` here,
`0004_publish.py` of `webhooks`. Rows travel as JSON: one list per table to write, one document of all that is read.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from django.conf import settings
from django.db.backends.utils import CursorWrapper

from exchange import audit
from exchange.database import is_transaction_open
from orders.matching.commands import CancelOrder, CancelOrders, Command, ExpireOrders, PlaceOrder
from orders.matching.depth import (
    Demand,
    MakersCutShort,
    deep_orders,
    demands,
    fundable,
    places,
    reach,
    read_funds,
    too_many_together,
)
from orders.matching.market import Market
from orders.matching.state import Account, Book, OrderState, Position, TradeState
from orders.terms import Side, TimeInForce
from webhooks import outbox

_encode = msgspec.json.Encoder(decimal_format="number").encode


def await_turn(cursor: CursorWrapper) -> None:
    """Begin, and wait until no other transaction has its turn, or no longer; the turn ends with the transaction."""
    milliseconds = max(round(settings.SEQUENCER_TURN_SECONDS * 1000), 1)  # of PostgreSQL's time-outs 0 is none
    cursor.execute(_AWAIT_TURN, [milliseconds])


def wait_briefly(cursor: CursorWrapper) -> None:
    """Begin a transaction unless one is open, and give its locks the timeout of lists that run beside a deep order."""
    begin = "" if is_transaction_open() else "BEGIN; "
    cursor.execute(f"{begin}SET LOCAL lock_timeout = {settings.SEQUENCER_ASIDE_LOCK_TIMEOUT_MS:d}")


def load_market(
    cursor: CursorWrapper, commands: Sequence[Command], *, skip_busy: bool = False, however_deep: bool = False
) -> Market:
    """Begin unless that is done, lock and read all that `commands` can touch; no book is read after brokers are locked.

    Books and brokers that others hold are waited for, or left out with `skip_busy`. `MakersCutShort` is raised when an
    order reaches more than `MAX_MAKERS_READ_AT_ONCE` resting orders, or all together more than `MAX_MAKERS_PER_LIST`
    of one side; with `however_deep` a command alone may.
    """
    asked = _Asked.by(commands, skip_busy=skip_busy)
    found = _read_market(cursor, asked)
    if found is not None:
        return found.market(asked)
    if len(commands) == 1 and however_deep:
        (order,) = places(commands)
        return _load_for_one(cursor, asked, order)
    return _load_for_list(cursor, asked, commands)


def _load_for_one(cursor: CursorWrapper, asked: "_Asked", order: PlaceOrder) -> Market:
    """Read the resting orders that a deep order fills, unless it is going to fill none."""
    funds = read_funds(cursor, [order])
    if not fundable([order], funds, is_alone=True):
        return _load_without_makers(cursor, asked, unread={order.order_id: Decimal(0)})
    reached = reach(cursor, order)
    if reached.makers > settings.MAX_MAKERS_PER_COMMAND:
        market = _load_without_makers(cursor, asked)
        market.books[order.symbol].cut_short.add(order.side.opposite)
        return market
    if order.time_in_force is TimeInForce.FOK and reached.shares < order.quantity:
        return _load_without_makers(cursor, asked)
    is_market_bid = order.side is Side.BID and order.price is None
    if is_market_bid and reached.cost > funds[order.broker_id].available_cash:
        return _load_without_makers(cursor, asked, unread={order.order_id: reached.cost})
    found = _read_market(cursor, msgspec.structs.replace(asked, makers_max=settings.MAX_MAKERS_PER_COMMAND))
    assert found is not None  # the book has been locked since it was measured
    return found.market(asked)


def _load_without_makers(
    cursor: CursorWrapper, asked: "_Asked", *, unread: dict[UUID, Decimal] | None = None
) -> Market:
    found = _read_market(cursor, msgspec.structs.replace(asked, demands=[]))
    assert found is not None
    market = found.market(asked)
    market.unread |= unread or {}
    return market


def _load_for_list(cursor: CursorWrapper, asked: "_Asked", commands: Sequence[Command]) -> Market:
    """Read the resting orders that a list's fundable orders fill, if each of them may run with others."""
    takers = places(commands)
    funded = fundable(takers, read_funds(cursor, takers), is_alone=len(commands) == 1)
    if deep := deep_orders(cursor, funded, asked.cancels):
        raise MakersCutShort(deep)
    asked = msgspec.structs.replace(asked, demands=demands(funded), makers_max=settings.MAX_MAKERS_PER_LIST)
    found = _read_market(cursor, asked)
    if found is None:
        raise MakersCutShort(too_many_together(commands, funded))
    market = found.market(asked)
    unfunded = {each.order_id for each in takers} - {each.order_id for each in funded}
    market.unread |= dict.fromkeys(unfunded, Decimal(0))
    return market


def _read_market(cursor: CursorWrapper, asked: "_Asked") -> "_Found | None":
    """None when takers reach more resting orders than are to be read; then no broker is locked yet."""
    if is_transaction_open():
        cursor.execute(_READ_MARKET, [_encode(asked).decode()])
    else:
        cursor.execute(f"BEGIN; {_READ_MARKET}", [_encode(asked).decode()])
        cursor.nextset()  # the first was BEGIN's
    (found,) = cursor.fetchone()
    return None if found is None else _decode_found(found)


def save_market(cursor: CursorWrapper, market: Market) -> int:
    """Write what has changed, and commit; how many deliveries are due by that."""
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
            "events": outbox.rows(market.events),
            "audit": audit.rows(market.audit),
        },
    )
    due, _ = cursor.fetchone()
    return int(due)


def was_saved(cursor: CursorWrapper, market: Market) -> bool:
    """Whether the transaction that wrote `market` was committed; it has ended once its books can be locked again.

    What it placed is there if it was, whatever became of it since; where it placed nothing it closed orders, for good.
    The time of a cancel is ours alone; expired an order may have been by anybody, all the same.
    """
    cursor.execute(_LOCK_INSTRUMENTS, [list(market.books)])
    if market.placed:
        cursor.execute("SELECT FROM orders_order WHERE id = %s", [market.placed[0].id])
        return bool(cursor.fetchall())
    telling = min(market.changed.values(), key=lambda order: order.cancelled_at is None)
    cursor.execute(_IS_CLOSED, [telling.id, telling.status, telling.cancelled_at])
    return bool(cursor.fetchall())


def _json(rows: Iterable[Any]) -> str | None:
    found = list(rows)
    return _encode(found).decode() if found else None


# --- Reading --------------------------------------------------------------------------------------------------------


class _Taker(msgspec.Struct, frozen=True):
    broker_id: str
    symbol: str
    client_order_id: str | None


class _Asked(msgspec.Struct, frozen=True):
    """What a list of commands has to do with."""

    symbols: list[str]
    cancels: list[UUID]
    cancellers: list[str | None]  # of each of the cancels: whose order it must be; None is anybody's
    sweeps: list[CancelOrders | ExpireOrders]
    takers: list[_Taker]
    demands: list[Demand]
    skip_busy: bool
    makers_max: int  # on each side of a book; where more are reached nothing is read
    batch_max: int
    is_alone: bool = False  # true would read that many all the same

    @classmethod
    def by(cls, commands: Sequence[Command], *, skip_busy: bool) -> "_Asked":
        takers = places(commands)
        cancellers = _cancellers(command for command in commands if isinstance(command, CancelOrder))
        sweeps = [command for command in commands if isinstance(command, CancelOrders | ExpireOrders)]
        return cls(
            symbols=list({command.symbol for command in [*takers, *sweeps]}),
            cancels=list(cancellers),
            cancellers=list(cancellers.values()),
            sweeps=list(dict.fromkeys(sweeps)),
            takers=[_Taker(each.broker_id, each.symbol, each.client_order_id) for each in takers],
            demands=demands(takers),
            skip_busy=skip_busy,
            makers_max=settings.MAX_MAKERS_READ_AT_ONCE,
            batch_max=settings.SWEEP_BATCH,
        )


def _cancellers(cancels: Iterable[CancelOrder]) -> dict[UUID, str | None]:
    """Whose each of the orders to cancel must be; None when it may be anybody's, or several ask for it."""
    owners: dict[UUID, str | None] = {}
    for command in cancels:
        is_agreed = owners.setdefault(command.order_id, command.broker_id) == command.broker_id
        owners[command.order_id] = command.broker_id if is_agreed else None
    return owners


class _Holding(msgspec.Struct, frozen=True):
    broker_id: str
    symbol: str
    quantity: int
    reserved: int
    open_orders: int


class _Found(msgspec.Struct, frozen=True):
    """What was read under the locks; a table of which there was nothing to read is null."""

    now: datetime
    books: list[Book] | None
    accounts: list[Account] | None
    targets: list[OrderState]  # of the cancels
    sweeps: list[list[OrderState]]  # in the order in which they were asked for
    makers: list[OrderState] | None  # of each side of a book the best first
    holdings: list[_Holding] | None
    used: list[OrderState] | None  # under the takers' client_order_ids
    trades: list[TradeState] | None  # of the orders to cancel, oldest first: the answer tells them

    def market(self, asked: _Asked) -> Market:
        orders: dict[UUID, OrderState] = {}

        def keep(found: Iterable[OrderState]) -> list[OrderState]:
            """Each order is one object, however many ways lead to it."""
            return [orders.setdefault(order.id, order) for order in found]

        sweeps = {sweep: keep(found) for sweep, found in zip(asked.sweeps, self.sweeps, strict=True)}
        keep(self.targets)
        return Market(
            self.now,
            self._books(keep(self.makers or [])),
            self._accounts(),
            orders,
            sweeps,
            self._trades(),
            settings.MAX_OPEN_ORDERS,
            asked.skip_busy,
        )

    def _books(self, makers: Iterable[OrderState]) -> dict[str, Book]:
        books = {book.symbol: book for book in self.books or []}
        for maker in makers:
            books[maker.symbol].resting[maker.side].append(maker)
        return books

    def _accounts(self) -> dict[str, Account]:
        """What was read of a broker that is not locked, or not there, is left out."""
        accounts = {account.id: account for account in self.accounts or []}
        for held in self.holdings or []:
            if held.broker_id in accounts:
                position = Position(held.quantity, held.reserved, held.open_orders)
                accounts[held.broker_id].positions[held.symbol] = position
        for order in self.used or []:
            if order.broker_id in accounts:
                assert order.client_order_id is not None
                accounts[order.broker_id].used_client_order_ids[order.client_order_id] = order
        return accounts

    def _trades(self) -> dict[UUID, list[TradeState]]:
        trades: dict[UUID, list[TradeState]] = defaultdict(list)
        for trade in self.trades or []:
            trades[trade.bid_order_id].append(trade)
            trades[trade.ask_order_id].append(trade)
        return trades


_decode_found = msgspec.json.Decoder(_Found).decode


# --- SQL ------------------------------------------------------------------------------------------------------------

# As text: it is decoded here, and not by the driver.
_READ_MARKET = "SELECT orders_read_market(%s::json)::text"

_AWAIT_TURN = "BEGIN; SELECT orders_await_turn(%s)"

_LOCK_INSTRUMENTS = "SELECT FROM exchange_instrument WHERE symbol = ANY(%s) ORDER BY symbol FOR NO KEY UPDATE"

_IS_CLOSED = """
SELECT FROM orders_order WHERE id = %s AND status = %s AND cancelled_at IS NOT DISTINCT FROM %s
"""

# Writes, and ends the transaction, in one message; gives how many deliveries are due, and how many acts are on record.
_SAVE = f"""
SELECT {outbox.PUBLISH}, {audit.RECORD} FROM orders_save_market(
  %(placed)s::json, %(changed)s::json, %(trades)s::json, %(accounts)s::json, %(positions)s::json, %(books)s::json,
  %(now)s);
COMMIT
"""
