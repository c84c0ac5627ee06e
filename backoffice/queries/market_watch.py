"""Market figures of many instruments at once, and candles of one.

Prices are read from the order book and the trades, daily sums from the bars, which lag by a few seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import connection
from django.db.models import Exists, OuterRef, Q

from exchange.models import Instrument
from exchange.rules import InstrumentStatus, price_decimals, rounded
from orders.market_data import BEST
from orders.models import Trade

QUIET_AFTER = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Figures:
    """Current prices of an instrument, and its figures since 00:00 UTC.

    The change is measured from the last trade before 00:00 UTC or, if there is none, from the first trade today.
    """

    best_bid: Decimal | None
    best_ask: Decimal | None
    spread: Decimal | None
    last_price: Decimal | None
    last_trade_at: datetime | None
    change: Decimal | None  # None: no trade today
    change_percent: Decimal | None
    first_price: Decimal | None  # today, like all that follow
    high: Decimal | None
    low: Decimal | None
    trades: int
    volume: int
    value: Decimal
    open_orders: int

    @property
    def mid(self) -> Decimal | None:
        """The exact mean of bid and ask: with one more decimal than a price if the spread is an odd number of ticks."""
        return (self.best_bid + self.best_ask) / 2 if self.best_bid and self.best_ask else None


@dataclass(frozen=True, slots=True)
class Candle:
    """The trades of an interval: open, high, low, close and volume."""

    at: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: int


def figures_of(symbols: Sequence[str]) -> dict[str, Figures]:
    """Return the figures of these instruments, read by one statement, so at a single point in time."""
    with connection.cursor() as cursor:
        cursor.execute(_FIGURES, {"symbols": list(symbols)})
        names = [column.name for column in cursor.description]
        found = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return {row["symbol"]: _figures(row) for row in found}


def is_quiet(now: datetime) -> Q:
    """Return the condition for instruments in trading without a trade for `QUIET_AFTER`."""
    lately = Trade.objects.filter(instrument=OuterRef("pk"), executed_at__gte=now - QUIET_AFTER)
    return Q(~Exists(lately), status=InstrumentStatus.TRADING)


def candles(instrument: Instrument, since: datetime, step: timedelta) -> list[Candle]:
    """Return a candle for each `step` with trades since then, oldest first."""
    decimals = price_decimals(instrument.tick_size)
    with connection.cursor() as cursor:
        parameters: dict[str, Any] = {"symbol": instrument.pk, "since": since, "step": step}
        cursor.execute(_CANDLES, parameters)
        rows = cursor.fetchall()
    return [_candle(decimals, *row) for row in rows]


def _candle(decimals: int, at: datetime, *numbers: Decimal) -> Candle:
    open_, high, low, close = (rounded(price, decimals) for price in numbers[:4])
    return Candle(at, open_, high, low, close, int(numbers[4]))


def _figures(row: dict[str, Any]) -> Figures:
    decimals = price_decimals(row["tick_size"])
    prices = ("best_bid", "best_ask", "last_price", "first_price", "previous_price", "high", "low")
    shown = {name: None if row[name] is None else rounded(row[name], decimals) for name in prices}
    best_bid, best_ask, last, first = shown["best_bid"], shown["best_ask"], shown["last_price"], shown["first_price"]
    reference = shown["previous_price"] or first
    change = last - reference if last and first and reference else None
    return Figures(
        best_bid=best_bid,
        best_ask=best_ask,
        spread=best_ask - best_bid if best_bid and best_ask else None,
        last_price=last,
        last_trade_at=row["last_trade_at"],
        change=change,
        change_percent=rounded(change * 100 / reference, 2) if change is not None and reference else None,
        first_price=first,
        high=shown["high"],
        low=shown["low"],
        trades=row["trades"],
        volume=int(row["volume"]),
        value=row["value"],
        open_orders=int(row["open_orders"]),
    )


# --- SQL ------------------------------------------------------------------------------------------------------------

# Holdings count their open orders, including expired ones until the sweep, so the books need not be counted. They have
# no index by symbol and are therefore read once for all symbols.
_FIGURES = f"""
SELECT i.symbol, i.tick_size, {BEST.format(side="bid")} AS best_bid, {BEST.format(side="ask")} AS best_ask,
       last.price AS last_price, last.executed_at AS last_trade_at, first.price AS first_price,
       previous.price AS previous_price, bars.*, coalesce(held.open_orders, 0) AS open_orders
FROM exchange_instrument i
CROSS JOIN (SELECT date_trunc('day', statement_timestamp(), 'UTC') AS began_at) today
LEFT JOIN LATERAL (
  SELECT t.price, t.executed_at FROM orders_trade t WHERE t.symbol = i.symbol
  ORDER BY t.executed_at DESC, t.id DESC LIMIT 1
) last ON true
LEFT JOIN LATERAL (
  SELECT t.price FROM orders_trade t WHERE t.symbol = i.symbol AND t.executed_at >= today.began_at
  ORDER BY t.executed_at, t.id LIMIT 1
) first ON true
LEFT JOIN LATERAL (
  SELECT t.price FROM orders_trade t WHERE t.symbol = i.symbol AND t.executed_at < today.began_at
  ORDER BY t.executed_at DESC, t.id DESC LIMIT 1
) previous ON true
CROSS JOIN LATERAL (
  SELECT max(b.high) AS high, min(b.low) AS low, coalesce(sum(b.trades), 0) AS trades,
         coalesce(sum(b.volume), 0) AS volume, coalesce(sum(b.value), 0) AS value
  FROM orders_bar b WHERE b.symbol = i.symbol AND b.minute >= today.began_at
) bars
LEFT JOIN (
  SELECT h.symbol, sum(h.open_orders) AS open_orders FROM exchange_holding h
  WHERE h.symbol = ANY(%(symbols)s) GROUP BY h.symbol
) held ON held.symbol = i.symbol
WHERE i.symbol = ANY(%(symbols)s)
"""

_CANDLES = """
SELECT date_bin(%(step)s, minute, %(since)s), (array_agg(open ORDER BY minute))[1], max(high), min(low),
       (array_agg(close ORDER BY minute DESC))[1], sum(volume)
FROM orders_bar
WHERE symbol = %(symbol)s AND minute >= %(since)s AND open IS NOT NULL
GROUP BY 1 ORDER BY 1
"""
