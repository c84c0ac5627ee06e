"""The matching rule: price-time priority and trade prices.

Values in, values out: no database, clock or broker. Standard library only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from exchange.rules import Pricing
from orders.enums import Side, TimeInForce


@dataclass(frozen=True, slots=True)
class Maker:
    """A resting order, with the fields that matching needs."""

    order_id: UUID
    price: Decimal
    remaining: int


@dataclass(frozen=True, slots=True)
class Fill:
    """The matcher's decision to trade `quantity` shares with a maker at `price`."""

    order_id: UUID
    price: Decimal
    quantity: int


def match(
    *,
    side: Side,
    quantity: int,
    limit: Decimal | None,
    time_in_force: TimeInForce,
    pricing: Pricing,
    book: Iterable[Maker],
) -> list[Fill]:
    """Fill a taker against `book`, the opposite side in priority order. `limit` is None for a market order."""
    fills: list[Fill] = []
    unfilled = quantity
    for maker in book:  # lazy: read no further than the taker can reach
        if unfilled == 0 or not crosses(side, limit, maker.price):
            break
        executed = min(unfilled, maker.remaining)
        fills.append(Fill(maker.order_id, trade_price(side, limit, maker.price, pricing), executed))
        unfilled -= executed
    if time_in_force is TimeInForce.FOK and unfilled:
        return []
    return fills


def crosses(side: Side, limit: Decimal | None, maker_price: Decimal) -> bool:
    """True if a taker may trade with a maker at `maker_price`: the bid is at least as high as the ask."""
    if limit is None:
        return True
    return limit >= maker_price if side is Side.BID else limit <= maker_price


def trade_price(side: Side, limit: Decimal | None, maker_price: Decimal, pricing: Pricing) -> Decimal:
    """The seller's price between two limit orders; otherwise (market order or `maker` pricing), the maker's."""
    if side is Side.ASK and limit is not None and pricing is Pricing.SELLER:
        return limit
    return maker_price
