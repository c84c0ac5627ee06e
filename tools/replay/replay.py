"""Sends each message as the order or cancel it stands for, and compares the book after it.

The maker places and cancels what rests, the taker sends the executions. Which of the maker's orders at a price is
filled is the exchange's decision and not always the file's, which has a past that we do not see. What must come out
right is the total of each level: a cancel that finds too little left of its own order takes the rest from the
neighbours at that price.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from orders.enums import Side, TimeInForce
from tools.replay.client import Account, Exchange, Placed
from tools.replay.files import Book, Level, Message, MessageType

MAX_DIFFERENCES = 5  # described in the report; the others are only counted


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
