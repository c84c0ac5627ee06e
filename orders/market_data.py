"""Market data: prices, books and quotes. Each is one statement, so it shows one moment of the market.

No locks are taken, so nothing may be decided on these values. The write path reads its own.
"""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import msgspec
from django.conf import settings
from django.db import connection

from exchange.errors import FieldError, SymbolNotFound, ValidationFailed
from exchange.json_codec import Instant
from exchange.rules import mean, price_decimals, round_cash, rounded
from orders.enums import Side


class Level(msgspec.Struct, frozen=True):
    """Orders of one side at one price."""

    price: Decimal
    total_quantity: int
    order_count: int


class BookSnapshot(msgspec.Struct, frozen=True):
    """Both sides of a book at one moment, best prices first."""

    symbol: str
    bids: list[Level]
    asks: list[Level]
    spread: Decimal | None
    sequence: int
    snapshot_at: Instant


class PriceSummary(msgspec.Struct, frozen=True):
    """An instrument's prices: VWAP in the window, last trade, best bid and ask, mean limit of recent orders."""

    symbol: str
    current_price: Decimal | None
    window: str
    trades_in_window: int
    last_price: Decimal | None
    last_trade_at: Instant | None
    best_bid: Decimal | None
    best_ask: Decimal | None
    mid: Decimal | None
    moving_average: Decimal | None


class QuoteLevel(msgspec.Struct, frozen=True):
    """Trades at one price."""

    price: Decimal
    quantity: int


class Quote(msgspec.Struct, frozen=True):
    """The fills that a market order would get now, by price level, from at most the best 1,000 orders.

    `fillable_quantity` is a lower bound when it is less than `quantity`, because further orders are not read.
    """

    symbol: str
    side: Side
    quantity: int
    fillable_quantity: int
    average_price: Decimal | None
    total: Decimal
    levels: list[QuoteLevel]


def book_snapshot(symbol: str, depth: int) -> BookSnapshot:
    """Read the best `depth` levels of both sides."""
    with connection.cursor() as cursor:
        cursor.execute(_BOOK, {"symbol": symbol, "depth": depth})
        rows = cursor.fetchall()
    if not rows:
        raise SymbolNotFound
    tick_size, sequence, snapshot_at = rows[0][:3]
    decimals = price_decimals(tick_size)
    sides: dict[Side, list[Level]] = {Side.BID: [], Side.ASK: []}
    for _, _, _, side, price, total_quantity, order_count in rows:
        if price is not None:
            sides[Side(side)].append(Level(rounded(price, decimals), int(total_quantity), order_count))
    bids, asks = sides[Side.BID], sides[Side.ASK]
    spread = asks[0].price - bids[0].price if bids and asks else None
    return BookSnapshot(symbol, bids, asks, spread, sequence, snapshot_at)


def price_summary(symbol: str) -> PriceSummary:
    """Read an instrument's prices."""
    row = _one_row(_PRICE, symbol)
    decimals = price_decimals(row["tick_size"])
    best_bid, best_ask, last_price = row["best_bid"], row["best_ask"], row["last_price"]
    current_price = _rounded(last_price, decimals)
    if row["trades_in_window"]:
        current_price = mean(row["window_value"], row["window_quantity"], decimals)
    has_both = best_bid is not None and best_ask is not None
    return PriceSummary(
        symbol=symbol,
        current_price=current_price,
        window=f"{settings.PRICE_WINDOW // timedelta(minutes=1)}m",
        trades_in_window=row["trades_in_window"],
        last_price=_rounded(last_price, decimals),
        last_trade_at=row["last_trade_at"],
        best_bid=_rounded(best_bid, decimals),
        best_ask=_rounded(best_ask, decimals),
        mid=mean(best_bid + best_ask, 2, decimals) if has_both else None,
        moving_average=mean(row["limit_sum"], row["limit_count"], decimals) if row["limit_count"] else None,
    )


def quote_cost(quantity: int) -> int:
    """The number of requests that a quote counts as, by the number of orders, of at least one share, it may read."""
    orders = min(quantity, settings.MAX_MAKERS_PER_QUOTE)
    return max(-(-orders // settings.QUOTE_ORDERS_PER_REQUEST), 1)


def quote(symbol: str, side: Side, quantity: int) -> Quote:
    """Quote a market order against at most the best `MAX_MAKERS_PER_QUOTE` resting orders."""
    most = settings.MAX_MAKERS_PER_QUOTE
    with connection.cursor() as cursor:
        cursor.execute(_QUOTE, {"symbol": symbol, "side": side.opposite, "wanted": quantity, "most": most})
        rows = cursor.fetchall()
    if not rows:
        raise SymbolNotFound
    tick_size, lot_size = rows[0][:2]
    if quantity % lot_size:
        detail = f"Must be a multiple of the lot size, {lot_size}."
        raise ValidationFailed(errors=[FieldError("quantity", "off_lot", detail)])
    levels = [(price, int(taken)) for _, _, price, taken in rows if price is not None]
    decimals = price_decimals(tick_size)
    total = sum((price * taken for price, taken in levels), Decimal(0))
    fillable = sum(taken for _, taken in levels)
    return Quote(
        symbol=symbol,
        side=side,
        quantity=quantity,
        fillable_quantity=fillable,
        average_price=mean(total, fillable, decimals) if fillable else None,
        total=round_cash(total),
        levels=[QuoteLevel(rounded(price, decimals), taken) for price, taken in levels],
    )


def _one_row(sql: str, symbol: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "symbol": symbol,
        "window": str(settings.PRICE_WINDOW),  # as text, because psycopg converts a timedelta slowly
        "latest": settings.MOVING_AVERAGE_ORDERS,
    }
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        row = cursor.fetchone()
        if row is None:
            raise SymbolNotFound
        return dict(zip((column.name for column in cursor.description), row, strict=True))


def _rounded(price: Decimal | None, decimals: int) -> Decimal | None:
    return None if price is None else rounded(price, decimals)


_WORKING = """
orders_is_working(o.status) AND (o.expires_at IS NULL OR o.expires_at > statement_timestamp())"""

_BOOK = f"""
SELECT i.tick_size, i.sequence, statement_timestamp(), half.side, level.price, level.total_quantity, level.order_count
FROM exchange_instrument i
CROSS JOIN (VALUES ('bid'), ('ask')) AS half(side)
LEFT JOIN LATERAL (
  SELECT o.rank, abs(o.rank) AS price, sum(o.quantity - o.filled_quantity) AS total_quantity, count(*) AS order_count
  FROM orders_order o
  WHERE o.symbol = %(symbol)s AND o.side = half.side AND {_WORKING}
  GROUP BY o.rank ORDER BY o.rank LIMIT %(depth)s
) level ON true
WHERE i.symbol = %(symbol)s
ORDER BY half.side, level.rank
"""

# Always reads the best 1,000 orders: one such scan takes as long as reading about 50 of them order by order.
_QUOTE = f"""
SELECT i.tick_size, i.lot_size, level.price, level.taken
FROM exchange_instrument i
LEFT JOIN LATERAL (
  SELECT maker.rank, abs(maker.rank) AS price, sum(least(maker.remaining, %(wanted)s - maker.ahead)) AS taken
  FROM (
    SELECT best.rank, best.remaining,
           sum(best.remaining) OVER (ORDER BY best.rank, best.sequence ROWS UNBOUNDED PRECEDING)
             - best.remaining AS ahead
    FROM (
      SELECT o.rank, o.sequence, o.quantity - o.filled_quantity AS remaining FROM orders_order o
      WHERE o.symbol = %(symbol)s AND o.side = %(side)s AND {_WORKING}
      ORDER BY o.rank, o.sequence LIMIT %(most)s
    ) best
  ) maker
  WHERE maker.ahead < %(wanted)s
  GROUP BY maker.rank
) level ON true
WHERE i.symbol = %(symbol)s
ORDER BY level.rank
"""

# The best price of a side of the book of instrument `i`, read through the index of the write path.
BEST = f"""
(SELECT o.price FROM orders_order o WHERE o.symbol = i.symbol AND o.side = '{{side}}' AND {_WORKING}
 ORDER BY o.rank, o.sequence LIMIT 1)"""

# The symbol is a constant everywhere: with `o.symbol = i.symbol` the planner sorts the history of a busy symbol.
_PRICE = f"""
SELECT i.tick_size, w.trades_in_window, w.window_value, w.window_quantity,
       last.price AS last_price, last.executed_at AS last_trade_at,
       {BEST.format(side="bid")} AS best_bid, {BEST.format(side="ask")} AS best_ask, a.limit_sum, a.limit_count
FROM exchange_instrument i
CROSS JOIN LATERAL (
  SELECT count(*) AS trades_in_window, sum(t.price * t.quantity) AS window_value, sum(t.quantity) AS window_quantity
  FROM orders_trade t WHERE t.symbol = %(symbol)s AND t.executed_at > statement_timestamp() - %(window)s::interval
) w
LEFT JOIN LATERAL (
  SELECT t.price, t.executed_at FROM orders_trade t WHERE t.symbol = %(symbol)s
  ORDER BY t.executed_at DESC, t.id DESC LIMIT 1
) last ON true
CROSS JOIN LATERAL (
  SELECT sum(latest.price) AS limit_sum, count(*) AS limit_count
  FROM (SELECT o.price, o.created_at FROM orders_order o WHERE o.symbol = %(symbol)s AND o.type = 'limit'
        ORDER BY o.sequence DESC LIMIT %(latest)s) latest
  WHERE latest.created_at > statement_timestamp() - %(window)s::interval
) a
WHERE i.symbol = %(symbol)s
"""
