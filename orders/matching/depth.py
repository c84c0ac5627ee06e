"""Measures how many resting orders a new order reaches, without reading them.

A deep order, which reaches many, is executed in a separate transaction. It reads the resting orders only if it is going
to trade: an order that its broker cannot pay for, that would fill too many resting orders, or that is fill-or-kill and
cannot be filled, reads none.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

import msgspec
from django.conf import settings
from django.db.backends.utils import CursorWrapper

from exchange.json_codec import encode_json
from orders.enums import Side
from orders.matching.commands import CancelOrder, Command, PlaceOrder

BookSide = tuple[str, Side]  # one side of the book of a symbol


class TooManyMakers(Exception):
    """The commands reach more resting orders than one batch may read. None was executed.

    `deep` are the orders that need a transaction of their own; there is at least one.
    """

    def __init__(self, deep: Iterable[PlaceOrder]) -> None:
        super().__init__()
        self._deep = frozenset(order.order_id for order in deep)
        assert self._deep  # without one, splitting the commands would never end

    def is_deep(self, command: Command) -> bool:
        """True if the command is a deep order."""
        return isinstance(command, PlaceOrder) and command.order_id in self._deep

    def split(self, commands: Sequence[Command]) -> list[list[Command]]:
        """Split the commands, in order, into parts: each deep order by itself, and the commands between them."""
        parts: list[list[Command]] = []
        for command in commands:
            if parts and not (self.is_deep(command) or self.is_deep(parts[-1][-1])):
                parts[-1].append(command)
            else:
                parts.append([command])
        return parts


class Demand(msgspec.Struct, frozen=True):
    """The shares that takers want from one side of a book, and the worst rank that they accept."""

    book: str
    book_side: Side
    wanted: int
    worst_rank: str = "Infinity"


def place_commands(commands: Iterable[Command]) -> list[PlaceOrder]:
    """The new orders among the commands."""
    return [command for command in commands if isinstance(command, PlaceOrder)]


def demands(takers: Iterable[PlaceOrder]) -> list[Demand]:
    """The demand of all takers together, for each side of each book."""
    by_side: dict[BookSide, list[PlaceOrder]] = defaultdict(list)
    for taker in takers:
        by_side[_book_side_of(taker)].append(taker)
    return [
        Demand(symbol, side, sum(taker.quantity for taker in group), str(max(_worst_rank(taker) for taker in group)))
        for (symbol, side), group in by_side.items()
    ]


def _book_side_of(taker: PlaceOrder) -> BookSide:
    return taker.symbol, taker.side.opposite


def _worst_rank(taker: PlaceOrder) -> Decimal:
    """The worst rank of the opposite side that the order's price crosses. Ranks ascend from the best."""
    if taker.price is None:
        return Decimal("Infinity")
    return taker.price if taker.side is Side.BID else -taker.price


# --- One order ------------------------------------------------------------------------------------------------------


class Reach(NamedTuple):
    """The resting orders that an order would fill, their shares, and the cash that they cost."""

    makers: int
    shares: int
    cost: Decimal


def measure_reach(cursor: CursorWrapper, order: PlaceOrder) -> Reach:
    """Measure the order's fills, up to one resting order more than `MAX_MAKERS_PER_COMMAND`."""
    (demand,) = demands([order])
    parameters = msgspec.structs.asdict(demand) | {"most": settings.MAX_MAKERS_PER_COMMAND}
    cursor.execute(_REACH, parameters)
    makers, shares, cost = cursor.fetchone()
    return Reach(int(makers), int(shares), Decimal(cost))


# --- Several orders -------------------------------------------------------------------------------------------------


def find_deep_orders(cursor: CursorWrapper, takers: Sequence[PlaceOrder], targets: Sequence[UUID]) -> list[PlaceOrder]:
    """The takers that would each fill more than `MAX_MAKERS_READ_AT_ONCE` resting orders.

    The shares of the resting orders in `targets` do not count, because the batch may cancel these orders first.
    """
    most = settings.MAX_MAKERS_READ_AT_ONCE
    large = [taker for taker in takers if taker.quantity > most]  # a resting order has at least one share
    if not large:
        return []
    cursor.execute(
        _FIRST_TOO_DEEP, {"demands": encode_json(demands(large)).decode(), "targets": list(targets), "most": most}
    )
    beyond = {(symbol, side): (rank, shares) for symbol, side, rank, shares in cursor.fetchall()}

    def is_deep(taker: PlaceOrder) -> bool:
        if _book_side_of(taker) not in beyond:
            return False
        rank, shares = beyond[_book_side_of(taker)]
        return bool(rank <= _worst_rank(taker) and shares < taker.quantity)

    return [taker for taker in large if is_deep(taker)]


def largest_takers(commands: Sequence[Command], takers: Sequence[PlaceOrder]) -> list[PlaceOrder]:
    """The largest takers, chosen so that the others fill at most `MAX_MAKERS_PER_BATCH` resting orders of each side.

    An order for n shares fills at most n resting orders. It also passes over those that the commands cancel.
    """
    cancelled = sum(
        0 if isinstance(command, PlaceOrder) else 1 if isinstance(command, CancelOrder) else settings.SWEEP_BATCH
        for command in commands
    )
    capacity = Counter({_book_side_of(taker): settings.MAX_MAKERS_PER_BATCH - cancelled for taker in takers})
    removed = []
    for taker in sorted(takers, key=lambda each: each.quantity):
        if taker.quantity <= capacity[_book_side_of(taker)]:
            capacity[_book_side_of(taker)] -= taker.quantity
        else:
            removed.append(taker)
    return removed


# --- Funds ----------------------------------------------------------------------------------------------------------


class Funds(msgspec.Struct, frozen=True):
    """A broker's cash and shares, and how much of them its open orders reserve."""

    cash: Decimal
    reserved_cash: Decimal
    holdings: dict[str, tuple[int, int]]  # by symbol: quantity, reserved

    @property
    def available_cash(self) -> Decimal:
        return self.cash - self.reserved_cash

    def shares(self, symbol: str, *, is_alone: bool) -> int:
        quantity, reserved = self.holdings.get(symbol, (0, 0))
        return quantity - reserved if is_alone else quantity

    def spendable(self, *, is_alone: bool) -> Decimal:
        return self.available_cash if is_alone else self.cash


_decode_funds = msgspec.json.Decoder(Funds).decode
_NOTHING = Funds(Decimal(0), Decimal(0), {})


def read_funds(cursor: CursorWrapper, takers: Sequence[PlaceOrder]) -> dict[str, Funds]:
    """Read the funds of the takers' brokers: cash, and shares of the takers' symbols."""
    cursor.execute(_FUNDS, [list({each.broker_id for each in takers}), list({each.symbol for each in takers})])
    funds: dict[str, Funds] = defaultdict(lambda: _NOTHING)
    funds |= {broker_id: _decode_funds(found) for broker_id, found in cursor.fetchall()}
    return funds


def fundable_orders(takers: Sequence[PlaceOrder], funds: dict[str, Funds], *, is_alone: bool) -> list[PlaceOrder]:
    """The orders that their brokers may be able to pay for. The others fill nothing, so no makers are read for them.

    A single order needs available funds. In a batch, a broker can get shares from the batch's other sellers and cash
    from its other buyers, so the limit is the total of their funds, plus the purchases of the sellers in the batch.
    """
    sellers = {(each.broker_id, each.symbol) for each in takers if each.side is Side.ASK}
    buyers = {each.broker_id for each in takers if each.side is Side.BID}
    shares: Counter[str] = Counter()
    for broker_id, symbol in sellers:
        shares[symbol] += funds[broker_id].shares(symbol, is_alone=is_alone)
    for each in takers:
        if (each.broker_id, each.symbol) in sellers and each.side is Side.BID:
            shares[each.symbol] += each.quantity
    sell_too = any(broker_id in buyers for broker_id, _ in sellers)  # their sales may bring cash from bids in the book
    cash = sum((funds[each].spendable(is_alone=is_alone) for each in buyers), Decimal(0))

    def is_fundable(order: PlaceOrder) -> bool:
        if order.side is Side.ASK:
            return order.quantity <= shares[order.symbol]
        return order.price is None or sell_too or order.price * order.quantity <= cash

    return [order for order in takers if is_fundable(order)]


# --- SQL ------------------------------------------------------------------------------------------------------------

# `before`: the shares of the resting orders with a better priority.
_REACH = """
SELECT count(*), coalesce(sum(taken), 0), coalesce(sum(taken * price), 0) FROM (
  SELECT price, least(remaining, %(wanted)s - before) AS taken FROM (
    SELECT price, remaining, sum(remaining) OVER (ORDER BY rank, sequence) - remaining AS before FROM (
      SELECT o.price, o.quantity - o.filled_quantity AS remaining, o.rank, o.sequence FROM orders_order o
      WHERE o.symbol = %(book)s AND o.side = %(book_side)s AND orders_is_working(o.status)
        AND o.rank <= %(worst_rank)s::numeric AND (o.expires_at IS NULL OR o.expires_at > clock_timestamp())
      ORDER BY o.rank, o.sequence LIMIT %(most)s + 1) best) passed
  WHERE before < %(wanted)s) reached
"""

# The first resting order beyond the limit on each side: its rank, and the shares with a better priority.
_FIRST_TOO_DEEP = """
SELECT d.book, d.book_side, beyond.rank, beyond.before
FROM json_to_recordset(%(demands)s::json) AS d(book text, book_side text, worst_rank numeric) CROSS JOIN LATERAL (
  SELECT rank, sum(counted) OVER (ORDER BY rank, sequence) - counted AS before FROM (
    SELECT o.rank, o.sequence,
           CASE WHEN o.id = ANY (%(targets)s::uuid[]) THEN 0 ELSE o.quantity - o.filled_quantity END AS counted
    FROM orders_order o
    WHERE o.symbol = d.book AND o.side = d.book_side AND orders_is_working(o.status)
      AND o.rank <= d.worst_rank AND (o.expires_at IS NULL OR o.expires_at > clock_timestamp())
    ORDER BY o.rank, o.sequence LIMIT %(most)s + 1) best
  ORDER BY rank, sequence OFFSET %(most)s) beyond
"""

# Read before the brokers are locked, so only a hint: an order whose funds arrive before the lock is `overloaded`.
_FUNDS = """
SELECT b.id, json_build_object('cash', b.cash, 'reserved_cash', b.reserved_cash, 'holdings', coalesce((
  SELECT json_object_agg(h.symbol, json_build_array(h.quantity, h.reserved)) FROM exchange_holding h
  WHERE h.broker_id = b.id AND h.symbol = ANY(args.symbols)), '{}'))::text
FROM (SELECT %s::text[] AS brokers, %s::text[] AS symbols) args JOIN exchange_broker b ON b.id = ANY(args.brokers)
"""
