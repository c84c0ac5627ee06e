"""Real order flow, sent again: LOBSTER messages over HTTP to a running exchange, its book compared after each.

Standard library only: this is a client, and knows of the exchange what a broker knows. The maker places and cancels
what rests, the taker sends the executions. Which of the maker's orders at a price is filled is the exchange's decision
and not always the file's, which has a past that we do not see. What must come out right is the total of each level: a
cancel that finds too little left of its own order takes the rest from the neighbours at that price.
"""

import http.client
import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orders.terms import Side, TimeInForce

FILE_LEVELS = 10  # levels a side in every row of a book file
TOP_LEVELS = 5  # levels a side that are compared
MAX_DIFFERENCES = 5  # described in the report; the others are only counted
HTTP_TIMEOUT_SECONDS = 20
TICK_SIZE = "0.0001"  # the unit of the file's prices: each of them is on tick
INITIAL_CASH = 10**15
INITIAL_SHARES = 10**12
DOCUMENT_NUMBER = "00000000000"


class ReplayError(Exception):
    """The replay cannot start or go on; the message is one sentence that a person can act on."""


# --- The files ------------------------------------------------------------------------------------------------------


class MessageType(IntEnum):
    PLACED = 1
    PARTLY_CANCELLED = 2
    CANCELLED = 3
    EXECUTED = 4
    EXECUTED_HIDDEN = 5


@dataclass(frozen=True, slots=True)
class Message:
    """A row of the message file; `side` is the resting order's, also when it is executed."""

    type: MessageType
    file_id: int
    quantity: int
    price: Decimal
    side: Side

    @property
    def change(self) -> int:
        """What the message does to the total of its level."""
        if self.type is MessageType.EXECUTED_HIDDEN:
            return 0
        return self.quantity if self.type is MessageType.PLACED else -self.quantity


@dataclass(frozen=True, slots=True)
class Level:
    price: Decimal
    quantity: int


@dataclass(frozen=True, slots=True)
class Book:
    """Both sides, best level first, without the empty levels."""

    bids: tuple[Level, ...]
    asks: tuple[Level, ...]

    def levels(self, side: Side) -> tuple[Level, ...]:
        return self.bids if side is Side.BID else self.asks

    def quantity_at(self, side: Side, price: Decimal) -> int:
        return sum(level.quantity for level in self.levels(side) if level.price == price)

    def top(self) -> "Book":
        return Book(self.bids[:TOP_LEVELS], self.asks[:TOP_LEVELS])

    def __str__(self) -> str:
        bids, asks = (", ".join(f"{level.quantity} at {level.price}" for level in self.levels(side)) for side in Side)
        return f"bids {bids or 'none'}; asks {asks or 'none'}"


def read_rows(messages_path: Path, book_path: Path) -> Iterator[tuple[Message, Book]]:
    """Each message with the book after it; read it once without sending anything to learn that every row is good."""
    messages, books = _lines(messages_path), _lines(book_path)
    if len(messages) != len(books):
        raise ReplayError(
            f"{messages_path} has {len(messages)} rows and {book_path} has {len(books)}:"
            " row n of one must belong to row n of the other."
        )
    for number, (message, book) in enumerate(zip(messages, books, strict=True), 1):
        try:
            path = messages_path
            parsed = parse_message(message)
            path = book_path
            yield parsed, parse_book(book)
        except ValueError as error:
            raise ReplayError(f"{path}, line {number}: {error}.") from error


def parse_message(row: str) -> Message:
    """Seconds after midnight, type, order id, size, price, direction; ValueError says what is wrong with the row."""
    values = row.split(",")
    if len(values) != 6:
        raise ValueError(f"a message has 6 values, not {len(values)}")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", values[0]):
        raise ValueError(f"{values[0]!r} is not a time in seconds")
    kind, file_id, quantity, price, direction = map(_whole, values[1:])
    if kind not in set(MessageType):
        raise ValueError(f"{kind} is not a message type from 1 to 5")
    if quantity <= 0 or price <= 0:
        raise ValueError("the size and the price of a message must be greater than 0")
    if direction not in (1, -1):
        raise ValueError(f"the direction must be 1 or -1, not {direction}")
    return Message(MessageType(kind), file_id, quantity, _dollars(price), Side.BID if direction == 1 else Side.ASK)


def parse_book(row: str) -> Book:
    """Ask price, ask size, bid price, bid size, level after level; ValueError says what is wrong with the row."""
    values = [_whole(text) for text in row.split(",")]
    if len(values) != 4 * FILE_LEVELS:
        raise ValueError(f"a book row has {4 * FILE_LEVELS} values, not {len(values)}")
    return Book(bids=_levels(values[2::4], values[3::4]), asks=_levels(values[0::4], values[1::4]))


def _levels(prices: list[int], quantities: list[int]) -> tuple[Level, ...]:
    """The levels of one side; one with size 0 is not there, and its price is a dummy (9999999999 or -9999999999)."""
    pairs = [(price, quantity) for price, quantity in zip(prices, quantities, strict=True) if quantity]
    if any(price <= 0 or quantity < 0 for price, quantity in pairs):
        raise ValueError("the size and the price of a level must be greater than 0, or the size 0")
    return tuple(Level(_dollars(price), quantity) for price, quantity in pairs)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    except FileNotFoundError as error:
        raise ReplayError(f"There is no file {path}.") from error
    except OSError as error:
        raise ReplayError(f"{path} cannot be read: {error.strerror}.") from error
    if not lines:
        raise ReplayError(f"{path} has no rows.")
    return lines


def _whole(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _dollars(price: int) -> Decimal:
    return Decimal(price).scaleb(-4)


# --- The exchange, over HTTP ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Account:
    """A broker and its key."""

    broker_id: str
    key: str


@dataclass(frozen=True, slots=True)
class Placed:
    """What the exchange answered to a new order."""

    order_id: str
    filled_quantity: int
    remaining_quantity: int
    trades: int


class Exchange:
    """What the replay needs of a running exchange, over one connection that is kept open."""

    def __init__(self, base_url: str, operator_key: str) -> None:
        self._base_url = base_url
        self._operator_key = operator_key
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or url.hostname is None:
            raise ReplayError(f"{base_url!r} is not the URL of an exchange.")
        self._path = url.path.rstrip("/")
        connection = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._connection = connection(url.hostname, url.port, timeout=HTTP_TIMEOUT_SECONDS)

    def close(self) -> None:
        self._connection.close()

    def list_instrument(self, symbol: str) -> None:
        instrument = {"symbol": symbol, "name": "Replayed order flow", "tick_size": TICK_SIZE}
        self._call(self._operator_key, "POST", "/stocks", instrument)

    def open_account(self, broker_id: str, symbol: str) -> Account:
        holdings = [{"symbol": symbol, "quantity": INITIAL_SHARES}]
        broker = {"broker_id": broker_id, "initial_cash": INITIAL_CASH, "initial_holdings": holdings}
        return Account(broker_id, self._call(self._operator_key, "POST", "/brokers", broker)["api_key"])

    def place(self, account: Account, symbol: str, side: Side, level: Level, time_in_force: TimeInForce) -> Placed:
        order = {
            "type": "limit",
            "broker_id": account.broker_id,
            "document_number": DOCUMENT_NUMBER,
            "side": side,
            "symbol": symbol,
            "price": format(level.price, "f"),
            "quantity": level.quantity,
            "time_in_force": time_in_force,
        }
        answer = self._call(account.key, "POST", "/orders", order)
        return Placed(
            order_id=answer["order_id"],
            filled_quantity=answer["filled_quantity"],
            remaining_quantity=answer["remaining_quantity"],
            trades=len(answer["trades"]),
        )

    def cancel(self, account: Account, order_id: str) -> int:
        """Cancel the order and return how much of it was left: 0 when it was done already."""
        answer = self._call(account.key, "DELETE", f"/orders/{order_id}", accept=("order_not_cancellable",))
        remaining: int = answer.get("remaining_quantity", 0)
        return remaining

    def book(self, account: Account, symbol: str) -> Book:
        answer = self._call(account.key, "GET", f"/stocks/{symbol}/book?depth={FILE_LEVELS}")
        bids, asks = (
            tuple(Level(Decimal(level["price"]), level["total_quantity"]) for level in answer[side])
            for side in ("bids", "asks")
        )
        return Book(bids, asks)

    def _call(
        self, key: str, method: str, path: str, content: dict[str, Any] | None = None, accept: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The answer to one request; a refusal ends the replay, unless its code is one of `accept`."""
        status, answer = self._exchange(key, method, path, content)
        if status >= 300 and answer.get("code") not in accept:
            code, detail = answer.get("code", "without a code"), answer.get("detail", "no detail.")
            raise ReplayError(f"{method} {path} was refused ({status} {code}): {detail}")
        return answer

    def _exchange(self, key: str, method: str, path: str, content: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {key}"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        sent = None if content is None else json.dumps(content).encode()
        try:
            self._connection.request(method, self._path + path, sent, headers)
            response = self._connection.getresponse()
            received = response.read()
        except TimeoutError as error:
            seconds = HTTP_TIMEOUT_SECONDS
            raise ReplayError(f"The exchange at {self._base_url} did not answer within {seconds} seconds.") from error
        except (OSError, http.client.HTTPException) as error:
            raise ReplayError(f"No exchange can be reached at {self._base_url}: start it with `make run`.") from error
        try:
            answer = json.loads(received, parse_float=Decimal)  # money never passes through a binary float
        except ValueError as error:
            raise ReplayError(f"What answers at {self._base_url} is not the exchange.") from error
        return response.status, answer


# --- The replay -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Report:
    """What was sent and what came of it."""

    requests: int = 0  # orders, cancels and looks at the book
    orders: int = 0
    trades: int = 0
    books: int = 0
    wrong_books: int = 0
    wrong_executions: int = 0
    seeds: int = 0  # levels set to the file's size after the first row
    elapsed_seconds: float = 0.0
    differences: list[str] = field(default_factory=list)

    @property
    def orders_per_second(self) -> float:
        return self.orders / self.elapsed_seconds if self.elapsed_seconds else 0.0

    @property
    def is_right(self) -> bool:
        return not self.wrong_books and not self.wrong_executions

    def differs(self, description: str) -> None:
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(description)


@dataclass(slots=True)
class Resting:
    """An order of the maker in the book; `file_id` is None when it was seeded."""

    order_id: str
    file_id: int | None
    quantity: int


class Replay:
    """One run against a fresh instrument, by two fresh brokers; `suffix` (up to 11 digits) makes their names unique."""

    def __init__(self, exchange: Exchange, suffix: str) -> None:
        self.symbol = f"R{suffix}"
        self.report = Report()
        self._exchange = exchange
        exchange.list_instrument(self.symbol)
        self._maker = exchange.open_account(f"replay-maker-{suffix}", self.symbol)
        self._taker = exchange.open_account(f"replay-taker-{suffix}", self.symbol)
        # The maker's orders by side and price, in the exchange's priority.
        self._resting: dict[Side, dict[Decimal, list[Resting]]] = {side: {} for side in Side}

    def run(self, rows: Iterable[tuple[Message, Book]]) -> Report:
        """Send every message and compare the book after each."""
        started = time.perf_counter()
        before: Book | None = None
        for number, (message, book) in enumerate(rows, 1):
            if before is None:
                self._open(message, book)
            self._send(number, message)
            if before is not None:
                self._bring_into_view(message, before, book)
            self._compare(number, book)
            before = book
        self.report.elapsed_seconds = time.perf_counter() - started
        return self.report

    def _open(self, message: Message, book: Book) -> None:
        """Place the book that becomes the first row's once the first message is sent."""
        for side in Side:
            for level in book.levels(side):
                if (side, level.price) != (message.side, message.price):
                    self._rest(side, level)
        own = book.quantity_at(message.side, message.price) - message.change
        if own > 0:
            self._rest(message.side, Level(message.price, own))

    def _send(self, number: int, message: Message) -> None:
        level = Level(message.price, message.quantity)
        match message.type:
            case MessageType.PLACED:
                self._rest(message.side, level, message.file_id)
            case MessageType.PARTLY_CANCELLED | MessageType.CANCELLED:
                self._withdraw(message.side, level, message.file_id)
            case MessageType.EXECUTED:
                placed = self._place(self._taker, message.side.opposite, level, TimeInForce.IOC)
                if placed.filled_quantity != message.quantity:
                    self.report.wrong_executions += 1
                    filled, wanted = placed.filled_quantity, message.quantity
                    self.report.differs(f"row {number}: {filled} of {wanted} were executed at {message.price}")
            case MessageType.EXECUTED_HIDDEN:
                pass

    def _bring_into_view(self, message: Message, before: Book, book: Book) -> None:
        """Set the levels that the file did not show in the row before: what happened there, no message told."""
        for side in Side:
            shown = {level.price for level in before.levels(side)} | {message.price}
            for level in book.levels(side):
                if level.price not in shown:
                    self._set(side, level)

    def _set(self, side: Side, level: Level) -> None:
        missing = level.quantity - sum(order.quantity for order in self._resting[side].get(level.price, []))
        if missing == 0:
            return
        self.report.seeds += 1
        if missing > 0:
            self._rest(side, Level(level.price, missing))
        else:
            self._withdraw(side, Level(level.price, -missing))

    def _compare(self, number: int, expected: Book) -> None:
        self.report.requests += 1
        self.report.books += 1
        found = self._exchange.book(self._maker, self.symbol)
        if found.top() != expected.top():
            self.report.wrong_books += 1
            self.report.differs(f"row {number}: expected {expected.top()}; found {found.top()}")

    def _rest(self, side: Side, level: Level, file_id: int | None = None) -> None:
        """Place an order of the maker; what is left of it rests behind the others at its price."""
        placed = self._place(self._maker, side, level, TimeInForce.GTC)
        if placed.remaining_quantity:
            order = Resting(placed.order_id, file_id, placed.remaining_quantity)
            self._resting[side].setdefault(level.price, []).append(order)

    def _withdraw(self, side: Side, level: Level, file_id: int | None = None) -> None:
        """Take so much off a level: from the file's order first, then from seeded ones, then from the others."""
        orders = self._resting[side].get(level.price, [])
        wanted = level.quantity
        for order in sorted(orders, key=lambda order: (order.file_id != file_id, order.file_id is not None)):
            if wanted == 0:
                break
            cancelled = self._cancel(order)
            orders.remove(order)
            rest = max(cancelled - wanted, 0)
            wanted -= cancelled - rest
            if rest:
                self._rest(side, Level(level.price, rest), order.file_id)

    def _place(self, account: Account, side: Side, level: Level, time_in_force: TimeInForce) -> Placed:
        self.report.requests += 1
        placed = self._exchange.place(account, self.symbol, side, level, time_in_force)
        self.report.orders += 1
        self.report.trades += placed.trades
        self._fill(side.opposite, placed.filled_quantity)
        return placed

    def _cancel(self, order: Resting) -> int:
        self.report.requests += 1
        return self._exchange.cancel(self._maker, order.order_id)

    def _fill(self, side: Side, quantity: int) -> None:
        """Note on the maker's orders what the exchange filled: best price first, then arrival."""
        levels = self._resting[side]
        while quantity and levels:
            price = max(levels) if side is Side.BID else min(levels)
            orders = levels[price]
            while quantity and orders:
                filled = min(quantity, orders[0].quantity)
                orders[0].quantity -= filled
                quantity -= filled
                if not orders[0].quantity:
                    orders.pop(0)
            if not orders:
                del levels[price]
