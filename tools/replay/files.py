"""Parser of LOBSTER's files: one message per row, and the ten best levels after each. Every value is checked."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from pathlib import Path

from orders.enums import Side

FILE_LEVELS = 10  # per side in every row of a book file
TOP_LEVELS = 5  # per side that are compared


class ReplayError(Exception):
    """The replay cannot start or continue; the message is a sentence that a person can act on."""


class MessageType(IntEnum):
    PLACED = 1
    PARTLY_CANCELLED = 2
    CANCELLED = 3
    EXECUTED = 4
    EXECUTED_HIDDEN = 5


@dataclass(frozen=True, slots=True)
class Message:
    """A row of the message file. `side` is the side of the resting order, also for an execution."""

    type: MessageType
    file_id: int
    quantity: int
    price: Decimal
    side: Side

    @property
    def change(self) -> int:
        """Change of the total quantity of the message's level."""
        if self.type is MessageType.EXECUTED_HIDDEN:
            return 0
        return self.quantity if self.type is MessageType.PLACED else -self.quantity


@dataclass(frozen=True, slots=True)
class BookLevel:
    price: Decimal
    quantity: int


@dataclass(frozen=True, slots=True)
class Book:
    """Both sides, best level first, without empty levels."""

    bids: tuple[BookLevel, ...]
    asks: tuple[BookLevel, ...]

    def levels(self, side: Side) -> tuple[BookLevel, ...]:
        return self.bids if side is Side.BID else self.asks

    def quantity_at(self, side: Side, price: Decimal) -> int:
        return sum(level.quantity for level in self.levels(side) if level.price == price)

    def top(self) -> "Book":
        return Book(self.bids[:TOP_LEVELS], self.asks[:TOP_LEVELS])

    def __str__(self) -> str:
        bids, asks = (", ".join(f"{level.quantity} at {level.price}" for level in self.levels(side)) for side in Side)
        return f"bids {bids or 'none'}; asks {asks or 'none'}"


def read_rows(messages_path: Path, book_path: Path) -> Iterator[tuple[Message, Book]]:
    """Yield each message with the book after it. To validate all rows, exhaust it without sending anything."""
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
    """Parse seconds after midnight, type, order id, size, price and direction; raise ValueError for a bad row."""
    values = row.split(",")
    if len(values) != 6:
        raise ValueError(f"a message has 6 values, not {len(values)}")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", values[0]):
        raise ValueError(f"{values[0]!r} is not a time in seconds")
    kind, file_id, quantity, price, direction = map(_parse_integer, values[1:])
    if kind not in set(MessageType):
        raise ValueError(f"{kind} is not a message type from 1 to 5")
    if quantity <= 0 or price <= 0:
        raise ValueError("the size and the price of a message must be greater than 0")
    if direction not in (1, -1):
        raise ValueError(f"the direction must be 1 or -1, not {direction}")
    return Message(MessageType(kind), file_id, quantity, _to_dollars(price), Side.BID if direction == 1 else Side.ASK)


def parse_book(row: str) -> Book:
    """Parse ask price, ask size, bid price and bid size of each level; raise ValueError for a bad row."""
    values = [_parse_integer(text) for text in row.split(",")]
    if len(values) != 4 * FILE_LEVELS:
        raise ValueError(f"a book row has {4 * FILE_LEVELS} values, not {len(values)}")
    return Book(bids=_levels(values[2::4], values[3::4]), asks=_levels(values[0::4], values[1::4]))


def _levels(prices: list[int], quantities: list[int]) -> tuple[BookLevel, ...]:
    """Return the levels of one side. A missing level has size 0 and a dummy price (9999999999 or -9999999999)."""
    pairs = [(price, quantity) for price, quantity in zip(prices, quantities, strict=True) if quantity]
    if any(price <= 0 or quantity < 0 for price, quantity in pairs):
        raise ValueError("the size and the price of a level must be greater than 0, or the size 0")
    return tuple(BookLevel(_to_dollars(price), quantity) for price, quantity in pairs)


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


def _parse_integer(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _to_dollars(price: int) -> Decimal:
    return Decimal(price).scaleb(-4)
