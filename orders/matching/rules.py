"""Who trades with whom, at which price: the market's rule and nothing else.

Price decides, then arrival. Values in, values out; nothing here knows a database, a clock or a broker.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from exchange.rules import Pricing
from orders.enums import Side, TimeInForce


@dataclass(frozen=True, slots=True)
class Maker:
    """A resting order, as far as matching needs to know it."""

    order_id: UUID
    price: Decimal
    remaining: int


@dataclass(frozen=True, slots=True)
class Fill:
    """A decision: so many shares, at this price, against this maker."""

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
    """Fill a taker against `book`, the opposite side in priority; `limit` is None for a market order."""
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
    """Whether a taker may trade at `maker_price`: a bid at least as high as the ask it meets."""
    if limit is None:
        return True
    return limit >= maker_price if side is Side.BID else limit <= maker_price


def trade_price(side: Side, limit: Decimal | None, maker_price: Decimal, pricing: Pricing) -> Decimal:
    """The seller's price between two limit orders, whichever came first; the maker's under `maker` pricing."""
    if side is Side.ASK and limit is not None and pricing is Pricing.SELLER:
        return limit
    return maker_price
