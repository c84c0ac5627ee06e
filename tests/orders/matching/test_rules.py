"""The matching rules alone: priority, price and quantity."""

from dataclasses import dataclass, replace
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.rules import Pricing
from orders.enums import Side, TimeInForce
from orders.matching.rules import Fill, Maker, match

BID, ASK = Side.BID, Side.ASK
SELLER, MAKER = Pricing.SELLER, Pricing.MAKER
GTC, IOC, FOK = TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK


def maker(number: int, price: str, remaining: int) -> Maker:
    return Maker(UUID(int=number), Decimal(price), remaining)


@pytest.mark.parametrize(
    ("case", "side", "quantity", "limit", "time_in_force", "pricing", "book", "expected"),
    [
        ("an empty book", BID, 5, "10", GTC, SELLER, [], []),
        ("equal prices trade", BID, 1000, "10", GTC, SELLER, [("10", 1000)], [(1, "10", 1000)]),
        ("a bid of 20 meets an ask of 10: at 10", BID, 5, "20", GTC, SELLER, [("10", 5)], [(1, "10", 5)]),
        ("an ask of 10 meets a bid of 20: at 10", ASK, 5, "10", GTC, SELLER, [("20", 5)], [(1, "10", 5)]),
        ("maker pricing: at 20", ASK, 5, "10", GTC, MAKER, [("20", 5)], [(1, "20", 5)]),
        ("a bid below the ask does not trade", BID, 5, "10", GTC, SELLER, [("20", 5)], []),
        ("an ask above the bid does not trade", ASK, 5, "20", GTC, SELLER, [("10", 5)], []),
        ("one tick apart does not trade", BID, 5, "9.9999", GTC, SELLER, [("10", 5)], []),
        (
            "two asks of 500 and a bid of 1500",
            BID, 1500, "10", GTC, SELLER, [("10", 500), ("10", 500)], [(1, "10", 500), (2, "10", 500)],
        ),
        ("limited by the taker", BID, 7, "10", GTC, SELLER, [("10", 5), ("10", 5)], [(1, "10", 5), (2, "10", 2)]),
        ("limited by the price", BID, 9, "10", GTC, SELLER, [("10", 5), ("11", 5)], [(1, "10", 5)]),
        ("a market bid", BID, 6, None, IOC, SELLER, [("10", 5), ("99", 5)], [(1, "10", 5), (2, "99", 1)]),
        ("a market ask", ASK, 6, None, IOC, SELLER, [("9", 5), ("1", 5)], [(1, "9", 5), (2, "1", 1)]),
        ("fill or kill, in full", BID, 10, "10", FOK, SELLER, [("9", 5), ("10", 5)], [(1, "9", 5), (2, "10", 5)]),
        ("fill or kill, one short", BID, 11, "10", FOK, SELLER, [("9", 5), ("10", 5)], []),
        ("a market fill or kill, one short", ASK, 11, None, FOK, SELLER, [("9", 10)], []),
    ],
)  # fmt: skip
def test_match_returns_the_expected_fills(
    case: str,
    side: Side,
    quantity: int,
    limit: str | None,
    time_in_force: TimeInForce,
    pricing: Pricing,
    book: list[tuple[str, int]],
    expected: list[tuple[int, str, int]],
) -> None:
    fills = match(
        side=side,
        quantity=quantity,
        limit=None if limit is None else Decimal(limit),
        time_in_force=time_in_force,
        pricing=pricing,
        book=[maker(number, price, remaining) for number, (price, remaining) in enumerate(book, 1)],
    )

    assert fills == [Fill(UUID(int=number), Decimal(price), filled) for number, price, filled in expected], case


def test_match_reads_only_makers_that_the_taker_reaches() -> None:
    read = []

    def book() -> object:
        for number in range(1, 100):
            read.append(number)
            yield maker(number, "10", 5)

    match(side=BID, quantity=10, limit=Decimal(10), time_in_force=GTC, pricing=Pricing.SELLER, book=book())  # type: ignore[arg-type]  # a generator of makers

    assert len(read) <= 3


# --- Comparison with a naive market ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taker:
    number: int
    side: Side
    quantity: int
    limit: Decimal | None
    time_in_force: TimeInForce


Trades = list[tuple[int, int, Decimal, int]]  # taker, maker, price, quantity


def naive_market(takers: list[Taker], pricing: Pricing) -> Trades:
    """Sort all resting orders for each taker, and check each of them."""
    trades: Trades = []
    resting: list[Taker] = []
    for taker in takers:
        left, taken = taker.quantity, dict[int, tuple[Decimal, int]]()
        for other in sorted((o for o in resting if o.side != taker.side), key=lambda o: (rank_of(o), o.number)):
            bid, ask = (taker, other) if taker.side == "bid" else (other, taker)
            if left and (bid.limit is None or ask.limit is None or bid.limit >= ask.limit):
                price = other.limit if pricing == "maker" or ask.limit is None else ask.limit
                taken[other.number] = (price or Decimal(0), min(left, other.quantity))
                left -= taken[other.number][1]
        if left and taker.time_in_force == "fok":
            continue
        trades += [(taker.number, number, *fill) for number, fill in taken.items()]
        rests = [replace(taker, quantity=left)] if left and taker.time_in_force == "gtc" else []
        less = [replace(o, quantity=o.quantity - taken.get(o.number, (0, 0))[1]) for o in resting]
        resting = [o for o in less if o.quantity] + rests
    return trades


def rank_of(taker: Taker) -> Decimal:
    assert taker.limit is not None
    return taker.limit if taker.side == "ask" else -taker.limit


def market(takers: list[Taker], pricing: Pricing) -> Trades:
    """Apply `match` to sides that are kept in priority order."""
    sides: dict[Side, list[tuple[tuple[Decimal, int], Maker]]] = {BID: [], ASK: []}
    trades: Trades = []
    for taker in takers:
        others = sides[taker.side.opposite]
        fills = match(
            side=taker.side,
            quantity=taker.quantity,
            limit=taker.limit,
            time_in_force=taker.time_in_force,
            pricing=pricing,
            book=[resting for _, resting in others],
        )
        taken = {fill.order_id: fill.quantity for fill in fills}
        left = [(rank, replace(m, remaining=m.remaining - taken.get(m.order_id, 0))) for rank, m in others]
        sides[taker.side.opposite] = [(rank, m) for rank, m in left if m.remaining]
        rest = taker.quantity - sum(taken.values())
        if rest and taker.time_in_force == GTC and taker.limit is not None:
            rank = (-taker.limit if taker.side is BID else taker.limit, taker.number)
            sides[taker.side].append((rank, Maker(UUID(int=taker.number), taker.limit, rest)))
            sides[taker.side].sort(key=lambda entry: entry[0])
        trades += [(taker.number, fill.order_id.int, fill.price, fill.quantity) for fill in fills]
    return trades


prices = st.integers(95, 105).map(lambda ticks: Decimal(ticks) / 10)
shapes = st.one_of(
    st.tuples(prices, st.sampled_from([GTC, GTC, GTC, IOC, FOK])),
    st.tuples(st.none(), st.sampled_from([IOC, FOK])),
)
sequences = st.lists(st.tuples(st.sampled_from(Side), st.integers(1, 12), shapes), max_size=30)


@settings(max_examples=300, deadline=None)
@given(sequences, st.sampled_from(Pricing))
def test_trades_equal_those_of_a_naive_market(
    orders: list[tuple[Side, int, tuple[Decimal | None, TimeInForce]]], pricing: Pricing
) -> None:
    takers = [Taker(number, side, quantity, *shape) for number, (side, quantity, shape) in enumerate(orders, 1)]

    assert market(takers, pricing) == naive_market(takers, pricing)
