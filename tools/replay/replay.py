"""Replay of messages: sends each one as an order or a cancel, and compares the book after it.

The maker places and cancels resting orders, the taker sends executions. At a price, the exchange may fill another order
of the maker than the file does, because the file lacks the book's earlier history. Only the total of each level must be
equal: if an order has too little left to cancel, other orders at its price are reduced.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from orders.enums import Side, TimeInForce
from tools.replay.client import BrokerCredentials, ExchangeClient, PlacedOrder
from tools.replay.files import Book, BookLevel, Message, MessageType

MAX_DIFFERENCES = 5  # described in the report; more are only counted


@dataclass(slots=True)
class Report:
    """Counts of the requests and their results."""

    requests: int = 0  # orders, cancels and reads of the book
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

    def add_difference(self, description: str) -> None:
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(description)


@dataclass(slots=True)
class RestingOrder:
    """An order of the maker in the book; `file_id` is None for a seeded one."""

    order_id: str
    file_id: int | None
    quantity: int


class Replay:
    """A run with a new instrument and two new brokers. `suffix` (up to 11 digits) makes their names unique."""

    def __init__(self, exchange: ExchangeClient, suffix: str) -> None:
        self.symbol = f"R{suffix}"
        self.report = Report()
        self._exchange = exchange
        exchange.list_instrument(self.symbol)
        self._maker = exchange.open_account(f"replay-maker-{suffix}", self.symbol)
        self._taker = exchange.open_account(f"replay-taker-{suffix}", self.symbol)
        # The maker's orders by side and price, in the exchange's priority.
        self._resting: dict[Side, dict[Decimal, list[RestingOrder]]] = {side: {} for side in Side}

    def run(self, rows: Iterable[tuple[Message, Book]]) -> Report:
        """Send every message and compare the book after each."""
        started = time.perf_counter()
        before: Book | None = None
        for number, (message, book) in enumerate(rows, 1):
            if before is None:
                self._place_first_book(message, book)
            self._send(number, message)
            if before is not None:
                self._seed_new_levels(message, before, book)
            self._compare(number, book)
            before = book
        self.report.elapsed_seconds = time.perf_counter() - started
        return self.report

    def _place_first_book(self, message: Message, book: Book) -> None:
        """Place the orders of the first row's book, except for the effect of its message."""
        for side in Side:
            for level in book.levels(side):
                if (side, level.price) != (message.side, message.price):
                    self._place_resting(side, level)
        own = book.quantity_at(message.side, message.price) - message.change
        if own > 0:
            self._place_resting(message.side, BookLevel(message.price, own))

    def _send(self, number: int, message: Message) -> None:
        level = BookLevel(message.price, message.quantity)
        match message.type:
            case MessageType.PLACED:
                self._place_resting(message.side, level, message.file_id)
            case MessageType.PARTLY_CANCELLED | MessageType.CANCELLED:
                self._reduce_level(message.side, level, message.file_id)
            case MessageType.EXECUTED:
                placed = self._place(self._taker, message.side.opposite, level, TimeInForce.IOC)
                if placed.filled_quantity != message.quantity:
                    self.report.wrong_executions += 1
                    filled, wanted = placed.filled_quantity, message.quantity
                    self.report.add_difference(f"row {number}: {filled} of {wanted} were executed at {message.price}")
            case MessageType.EXECUTED_HIDDEN:
                pass

    def _seed_new_levels(self, message: Message, before: Book, book: Book) -> None:
        """Set the levels that were not in the previous row: no message described their earlier changes."""
        for side in Side:
            shown = {level.price for level in before.levels(side)} | {message.price}
            for level in book.levels(side):
                if level.price not in shown:
                    self._set_level(side, level)

    def _set_level(self, side: Side, level: BookLevel) -> None:
        missing = level.quantity - sum(order.quantity for order in self._resting[side].get(level.price, []))
        if missing == 0:
            return
        self.report.seeds += 1
        if missing > 0:
            self._place_resting(side, BookLevel(level.price, missing))
        else:
            self._reduce_level(side, BookLevel(level.price, -missing))

    def _compare(self, number: int, expected: Book) -> None:
        self.report.requests += 1
        self.report.books += 1
        found = self._exchange.book(self._maker, self.symbol)
        if found.top() != expected.top():
            self.report.wrong_books += 1
            self.report.add_difference(f"row {number}: expected {expected.top()}; found {found.top()}")

    def _place_resting(self, side: Side, level: BookLevel, file_id: int | None = None) -> None:
        """Place an order of the maker; its remainder rests behind the others at its price."""
        placed = self._place(self._maker, side, level, TimeInForce.GTC)
        if placed.remaining_quantity:
            order = RestingOrder(placed.order_id, file_id, placed.remaining_quantity)
            self._resting[side].setdefault(level.price, []).append(order)

    def _reduce_level(self, side: Side, level: BookLevel, file_id: int | None = None) -> None:
        """Cancel this quantity at a level: of the file's order first, then of seeded ones, then of the others."""
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
                self._place_resting(side, BookLevel(level.price, rest), order.file_id)

    def _place(
        self, credentials: BrokerCredentials, side: Side, level: BookLevel, time_in_force: TimeInForce
    ) -> PlacedOrder:
        self.report.requests += 1
        placed = self._exchange.place(credentials, self.symbol, side, level, time_in_force)
        self.report.orders += 1
        self.report.trades += placed.trades
        self._record_fill(side.opposite, placed.filled_quantity)
        return placed

    def _cancel(self, order: RestingOrder) -> int:
        self.report.requests += 1
        return self._exchange.cancel(self._maker, order.order_id)

    def _record_fill(self, side: Side, quantity: int) -> None:
        """Deduct a fill from the maker's orders: best price first, then arrival."""
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
