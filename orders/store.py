"""The write path's SQL: takes the locks, reads what a list of commands can touch, writes what they changed.

The order of locks is the same for everybody, or there are deadlocks: instruments by symbol, then brokers by id.
Whatever is decided on is read in a statement after the lock that guards it: in a statement that locks one row and reads
others, those are older than the lock. A transaction is two messages: one begins it, locks and reads, the other writes
and commits; where processes take turns, one before has begun it. What they do is in functions of the database, which
migrations tell: `0004_read_market.py` (but for `0006`), `0005_save_market.py` and `0007_await_turn.py` here,
`0004_publish.py` of `webhooks`. Rows travel as JSON: one list per table to write, one document of all that is read.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Self
from uuid import UUID

import msgspec
from django.conf import settings
from django.db.backends.utils import CursorWrapper

from exchange import audit
from exchange.database import is_transaction_open
from orders.commands import CancelOrder, CancelOrders, Command, ExpireOrders, PlaceOrder
from orders.market import Market
from orders.state import Account, Book, OrderState, Position, TradeState
from orders.terms import Side
from webhooks import outbox

BookSide = tuple[str, Side]  # one side of the book of a symbol

_encode = msgspec.json.Encoder(decimal_format="number").encode


def await_turn(cursor: CursorWrapper) -> None:
    """Begin, and wait until no other transaction has its turn, or no longer; the turn ends with the transaction."""
    milliseconds = max(round(settings.SEQUENCER_TURN_SECONDS * 1000), 1)  # of PostgreSQL's time-outs 0 is none
    cursor.execute(_AWAIT_TURN, [milliseconds])


def load_market(
    cursor: CursorWrapper, commands: Sequence[Command], *, skip_busy: bool = False, however_deep: bool = False
) -> Market:
    """Begin unless that is done, lock and read all that `commands` can touch; no book is read after brokers are locked.

    Books and brokers that others hold are waited for, or left out with `skip_busy`. `MakersCutShort` is raised when
    more than `MAX_MAKERS_PER_LIST` resting orders of one side are reached; with `however_deep` a command alone may.
    """
    asked = _Asked.by(commands, skip_busy=skip_busy)
    found = _read_market(cursor, asked)
    if found is not None:
        return found.market(asked)
    fundable = _fundable(cursor, commands)
    is_alone = len(commands) == 1 and however_deep
    asked = _deeper(cursor, asked, _demands(fundable), is_alone=is_alone)
    found = _read_market(cursor, asked)
    if found is None:
        raise MakersCutShort.of(asked.demands)
    market = found.market(asked)
    market.unfunded = {each.order_id for each in _places(commands)} - {each.order_id for each in fundable}
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


class MakersCutShort(Exception):
    """Together the commands reach more resting orders than one transaction reads; nothing was done.

    `deep` are the sides of books on which they do. `parts` of the commands are executed one after the other.
    """

    def __init__(self, deep: Iterable[BookSide]) -> None:
        super().__init__()
        self.deep = frozenset(deep)

    @classmethod
    def of(cls, demands: Iterable["Demand"]) -> Self:
        return cls((demand.book, demand.book_side) for demand in demands)

    def is_about(self, command: Command) -> bool:
        """Whether it would take from one of those sides."""
        return isinstance(command, PlaceOrder) and (command.symbol, command.side.opposite) in self.deep

    def shares(self, commands: Iterable[Command]) -> "Counter[BookSide]":
        """How many shares the commands would take from each of those sides."""
        shares: Counter[BookSide] = Counter()
        for command in commands:
            if isinstance(command, PlaceOrder) and self.is_about(command):
                shares[command.symbol, command.side.opposite] += command.quantity
        return shares

    def parts(self, commands: Sequence[Command]) -> list[list[Command]]:
        """The commands in their order: each that takes from a deep side by itself, and the others between them."""
        parts: list[list[Command]] = []
        for command in commands:
            if parts and not (self.is_about(command) or self.is_about(parts[-1][-1])):
                parts[-1].append(command)
            else:
                parts.append([command])
        return parts


class Demand(msgspec.Struct, frozen=True):
    """How much of one side of a book takers want, and down to which rank."""

    book: str
    book_side: Side
    wanted: int
    worst_rank: str = "Infinity"


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
    is_alone: bool  # reads `makers_max` and one more on each side, rather than nothing, where there are more
    skip_busy: bool
    makers_max: int
    batch_max: int

    @classmethod
    def by(cls, commands: Sequence[Command], *, skip_busy: bool) -> "_Asked":
        places = _places(commands)
        cancellers = _cancellers(command for command in commands if isinstance(command, CancelOrder))
        sweeps = [command for command in commands if isinstance(command, CancelOrders | ExpireOrders)]
        return cls(
            symbols=list({command.symbol for command in [*places, *sweeps]}),
            cancels=list(cancellers),
            cancellers=list(cancellers.values()),
            sweeps=list(dict.fromkeys(sweeps)),
            takers=[_Taker(each.broker_id, each.symbol, each.client_order_id) for each in places],
            demands=_demands(places),
            is_alone=False,
            skip_busy=skip_busy,
            makers_max=settings.MAX_MAKERS_READ_AT_ONCE,
            batch_max=settings.SWEEP_BATCH,
        )


def _demands(places: Sequence[PlaceOrder]) -> list[Demand]:
    """What takers want of each side of each book, for the sum of their quantities."""
    takers: dict[tuple[str, Side], list[PlaceOrder]] = defaultdict(list)
    for command in places:
        takers[command.symbol, command.side.opposite].append(command)
    return [
        Demand(symbol, side, sum(taker.quantity for taker in group), str(max(_worst_rank(taker) for taker in group)))
        for (symbol, side), group in takers.items()
    ]


def _cancellers(cancels: Iterable[CancelOrder]) -> dict[UUID, str | None]:
    """Whose each of the orders to cancel must be; None when it may be anybody's, or several ask for it."""
    owners: dict[UUID, str | None] = {}
    for command in cancels:
        is_agreed = owners.setdefault(command.order_id, command.broker_id) == command.broker_id
        owners[command.order_id] = command.broker_id if is_agreed else None
    return owners


def _places(commands: Iterable[Command]) -> list[PlaceOrder]:
    return [command for command in commands if isinstance(command, PlaceOrder)]


def _fundable(cursor: CursorWrapper, commands: Sequence[Command]) -> list[PlaceOrder]:
    """The orders that their brokers may be able to pay for; what the others would take need not be read.

    By itself an order needs what is free. In a list, shares can come to a broker from the list's other sellers, and
    cash from its other buyers: no order can need more than all of them own, and what they buy and sell meanwhile.
    """
    places = _places(commands)
    cursor.execute(_FUNDS, [list({each.broker_id for each in places}), list({each.symbol for each in places})])
    funds = {broker_id: _decode_funds(found) for broker_id, found in cursor.fetchall()}
    is_alone = len(commands) == 1
    sellers = {(each.broker_id, each.symbol) for each in places if each.side is Side.ASK}
    buyers = {each.broker_id for each in places if each.side is Side.BID}
    shares: dict[str, int] = defaultdict(int)
    for broker_id, symbol in sellers:
        shares[symbol] += funds[broker_id].shares(symbol, is_alone=is_alone) if broker_id in funds else 0
    for each in places:
        if (each.broker_id, each.symbol) in sellers and each.side is Side.BID:
            shares[each.symbol] += each.quantity
    sell_too = any(broker_id in buyers for broker_id, _ in sellers)  # for cash of whoever bids in the book
    cash = sum((funds[each].spendable(is_alone=is_alone) for each in buyers & funds.keys()), Decimal(0))

    def may_be_paid(order: PlaceOrder) -> bool:
        if order.side is Side.ASK:
            return order.quantity <= shares[order.symbol]
        return order.price is None or sell_too or order.price * order.quantity <= cash

    return [order for order in places if may_be_paid(order)]


def _deeper(cursor: CursorWrapper, asked: _Asked, demands: list[Demand], *, is_alone: bool) -> _Asked:
    """To read as much as may be read at a time; unless a command is alone, no side may be deeper than that."""
    makers_max = settings.MAX_MAKERS_PER_COMMAND if is_alone else settings.MAX_MAKERS_PER_LIST
    if not is_alone:
        cursor.execute(_DEEP, [_json(demands), asked.cancels, makers_max, makers_max])
        deep = [(symbol, Side(side)) for symbol, side in cursor.fetchall()]
        if deep:
            raise MakersCutShort(deep)
    return msgspec.structs.replace(asked, demands=demands, is_alone=is_alone, makers_max=makers_max)


class _Funds(msgspec.Struct, frozen=True):
    """What a broker owns, and how much of it its open orders hold."""

    cash: Decimal
    reserved_cash: Decimal
    holdings: dict[str, tuple[int, int]]  # by symbol

    def shares(self, symbol: str, *, is_alone: bool) -> int:
        quantity, reserved = self.holdings.get(symbol, (0, 0))
        return quantity - reserved if is_alone else quantity

    def spendable(self, *, is_alone: bool) -> Decimal:
        return self.cash - self.reserved_cash if is_alone else self.cash


_decode_funds = msgspec.json.Decoder(_Funds).decode


def _worst_rank(command: PlaceOrder) -> Decimal:
    """The last rank of the opposite side that the command's price crosses; ranks ascend from the best."""
    if command.price is None:
        return Decimal("Infinity")
    return command.price if command.side is Side.BID else -command.price


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
    beyond: list[OrderState] | None  # on each side that has more makers than a command may fill the next one
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
        for unread in self.beyond or []:
            books[unread.symbol].cut_short.add(unread.side)
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

# Read before the brokers are locked, and decides nothing: who can pay by the time of its turn is told to try again.
_FUNDS = """
SELECT b.id, json_build_object('cash', b.cash, 'reserved_cash', b.reserved_cash, 'holdings', coalesce((
  SELECT json_object_agg(h.symbol, json_build_array(h.quantity, h.reserved)) FROM exchange_holding h
  WHERE h.broker_id = b.id AND h.symbol = ANY(asked.symbols)), '{}'))::text
FROM (SELECT %s::text[] AS brokers, %s::text[] AS symbols) asked JOIN exchange_broker b ON b.id = ANY(asked.brokers)
"""

_DEEP = """
SELECT (maker).symbol, (maker).side
FROM orders_reachable(%s::json, %s::uuid[], clock_timestamp(), %s) GROUP BY 1, 2 HAVING count(*) > %s
"""

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
