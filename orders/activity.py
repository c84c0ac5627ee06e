"""Trading activity for the back office: the last minute from orders and trades, earlier minutes from `Bar` rows.

Bars are computed from orders and trades, repeatedly for the last minutes, so that late commits are included. Orders
have no index by time, but their ids are UUIDs of version 7, which begin with a timestamp. The orders and trades of a
minute are therefore a range of the primary key: read with a margin, then filtered by their time.
"""

import itertools
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.backends.utils import CursorWrapper

from exchange.database import database_now
from exchange.ids import first_id_at

MINUTE = timedelta(minutes=1)
# Maximum difference between an order's id and its time: the id is chosen before the order waits, by another clock.
ID_MARGIN = timedelta(minutes=1)
MIN_STEPS = 4  # even beyond the time limit: the last two minutes, a pause after them, and one step of progress
STEP_ROWS = 50_000  # orders or trades per step, unless one minute has more


@dataclass(frozen=True, slots=True)
class Activity:
    """The number of orders and trades, and the value of the trades."""

    orders: int = 0
    trades: int = 0
    value: Decimal = Decimal(0)

    def __add__(self, other: "Activity") -> "Activity":
        return Activity(self.orders + other.orders, self.trades + other.trades, self.value + other.value)


@dataclass(frozen=True, slots=True)
class Overview:
    """Activity of the last 60 seconds, of today, and of the last full minutes, oldest first."""

    last_minute: Activity
    today: Activity
    minutes: list[Activity]


# --- Bars -----------------------------------------------------------------------------------------------------------


def roll_up() -> None:
    """Update the bars, from one minute before the last bar until now. After a long pause, stop when the time is up.

    The minute before the last bar suffices, because a transaction commits within 15 seconds or not at all.
    """
    started = time.monotonic()
    with connection.cursor() as cursor:
        now = database_now()
        begin = _first_minute(cursor, now)
        for step in itertools.count():
            if begin > now or (step >= MIN_STEPS and time.monotonic() - started > settings.BARS_TIME_LIMIT_SECONDS):
                break
            end = _step_end(cursor, begin, now)
            cursor.execute(ROLL_UP, roll_up_parameters(begin, end))
            begin = end


def roll_up_parameters(begin: datetime, end: datetime) -> dict[str, Any]:
    """The parameters with which `ROLL_UP` computes the bars from `begin` to `end`."""
    first_id, end_id = first_id_at(begin - ID_MARGIN), first_id_at(end + ID_MARGIN)
    return {"begin": begin, "end": end, "first_id": first_id, "end_id": end_id}


def _first_minute(cursor: CursorWrapper, now: datetime) -> datetime:
    """One minute before the last bar, or before the first order or trade. At the latest, the previous minute."""
    cursor.execute(_LAST_DONE)
    (last,) = cursor.fetchone()
    return _minute_of(min(last or now, now)) - MINUTE


def _step_end(cursor: CursorWrapper, begin: datetime, now: datetime) -> datetime:
    """The end of a step of at most `STEP_ROWS` orders or trades, or of one minute. Empty minutes cost nothing."""
    cursor.execute(_STEP, {"first_id": first_id_at(begin), "rows": STEP_ROWS})
    (reached,) = cursor.fetchone()
    return max(_minute_of(reached or now + MINUTE), begin + MINUTE)


def _minute_of(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def start_of_day(now: datetime) -> datetime:
    """The last 00:00 UTC before `now`."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


# --- Dashboard ------------------------------------------------------------------------------------------------------


def overview(now: datetime, midnight: datetime, minutes: int) -> Overview:
    """The overview from bars, and from orders and trades where the last bars may be incomplete."""
    this = _minute_of(now)
    bars_until = max(this - MINUTE, midnight)
    last_minute, rest = _live(now, bars_until)
    bars = _totals_by_minute(min(midnight, this - minutes * MINUTE), this)
    today = sum((bar for minute, bar in bars.items() if midnight <= minute < bars_until), rest)
    charted = (this - n * MINUTE for n in range(minutes, 0, -1))
    return Overview(last_minute, today, [bars.get(minute, Activity()) for minute in charted])


def _live(now: datetime, since: datetime) -> tuple[Activity, Activity]:
    """The activity of the last 60 seconds, and since `since`."""
    last = now - MINUTE
    with connection.cursor() as cursor:
        cursor.execute(_LIVE, {"last": last, "since": since, "first_id": first_id_at(min(last, since) - ID_MARGIN)})
        *lately, orders, trades, value = cursor.fetchone()
    return Activity(*lately), Activity(orders, trades, value)


def _totals_by_minute(since: datetime, until: datetime) -> dict[datetime, Activity]:
    """The totals of all instruments' bars, by minute."""
    with connection.cursor() as cursor:
        cursor.execute(_BY_MINUTE, [since, until])
        return {minute: Activity(*sums) for minute, *sums in cursor.fetchall()}


def volumes(since: datetime) -> dict[str, int]:
    """The shares of each instrument traded since then, according to its bars."""
    with connection.cursor() as cursor:
        cursor.execute(_VOLUMES, [since])
        return {symbol: int(volume) for symbol, volume in cursor.fetchall()}


def behind_since(now: datetime) -> datetime | None:
    """The minute of the last bar (without bars, of the newest order or trade) if the bars are late, otherwise None.

    Bars are late if they miss an order or trade that is older than a minute.
    """
    cut_off = _minute_of(now) - MINUTE
    with connection.cursor() as cursor:
        cursor.execute(_NEWEST, {"cut_off": cut_off, "end_id": first_id_at(cut_off)})
        newest, last_bar = cursor.fetchone()
    if newest is None or (last_bar is not None and _minute_of(newest) <= last_bar):
        return None
    return last_bar or _minute_of(newest)


# --- SQL ------------------------------------------------------------------------------------------------------------

# The first and last trade of a minute are looked up in the tape, because sorting all trades took six times as long.
# Unchanged bars are not written. All writers lock bars in the order of their index.
ROLL_UP = """
INSERT INTO orders_bar AS bar (symbol, minute, orders, trades, volume, value, open, high, low, close)
SELECT symbol, minute, sum(orders), sum(trades), sum(volume), sum(value), max(open), max(high), max(low), max(close)
FROM (
  SELECT symbol, date_trunc('minute', created_at) AS minute, count(*) AS orders, 0 AS trades, 0 AS volume, 0 AS value,
         NULL::numeric AS open, NULL::numeric AS high, NULL::numeric AS low, NULL::numeric AS close
  FROM orders_order
  WHERE id >= %(first_id)s AND id < %(end_id)s AND created_at >= %(begin)s AND created_at < %(end)s
  GROUP BY 1, 2
  UNION ALL
  SELECT symbol, minute, 0, trades, volume, value, opening.price, high, low, closing.price
  FROM (
    SELECT symbol, date_trunc('minute', executed_at) AS minute, count(*) AS trades, sum(quantity) AS volume,
           sum(price * quantity) AS value, max(price) AS high, min(price) AS low
    FROM orders_trade
    WHERE id >= %(first_id)s AND id < %(end_id)s AND executed_at >= %(begin)s AND executed_at < %(end)s
    GROUP BY 1, 2
  ) traded
  CROSS JOIN LATERAL (
    SELECT price FROM orders_trade t WHERE t.symbol = traded.symbol AND t.executed_at >= minute
    ORDER BY executed_at, id LIMIT 1
  ) opening
  CROSS JOIN LATERAL (
    SELECT price FROM orders_trade t WHERE t.symbol = traded.symbol AND t.executed_at < minute + interval '1 minute'
    ORDER BY executed_at DESC, id DESC LIMIT 1
  ) closing
) part
GROUP BY symbol, minute
ORDER BY minute, symbol
ON CONFLICT (minute, symbol) DO UPDATE
SET orders = EXCLUDED.orders, trades = EXCLUDED.trades, volume = EXCLUDED.volume, value = EXCLUDED.value,
    open = EXCLUDED.open, high = EXCLUDED.high, low = EXCLUDED.low, close = EXCLUDED.close
WHERE (bar.orders, bar.trades) IS DISTINCT FROM (EXCLUDED.orders, EXCLUDED.trades)
"""

_LAST_DONE = """
SELECT coalesce(
  (SELECT max(minute) FROM orders_bar),
  least((SELECT created_at FROM orders_order ORDER BY id LIMIT 1),
        (SELECT executed_at FROM orders_trade ORDER BY id LIMIT 1)))
"""

_STEP = """
SELECT least(
  (SELECT uuid_extract_timestamp(id) FROM orders_order WHERE id >= %(first_id)s ORDER BY id OFFSET %(rows)s LIMIT 1),
  (SELECT uuid_extract_timestamp(id) FROM orders_trade WHERE id >= %(first_id)s ORDER BY id OFFSET %(rows)s LIMIT 1))
"""

_LIVE = """
SELECT orders_lately, trades_lately, value_lately, orders, trades, value
FROM (
  SELECT count(*) FILTER (WHERE created_at > %(last)s) AS orders_lately,
         count(*) FILTER (WHERE created_at >= %(since)s) AS orders
  FROM orders_order WHERE id >= %(first_id)s
) ordered, (
  SELECT count(*) FILTER (WHERE executed_at > %(last)s) AS trades_lately,
         coalesce(sum(price * quantity) FILTER (WHERE executed_at > %(last)s), 0) AS value_lately,
         count(*) FILTER (WHERE executed_at >= %(since)s) AS trades,
         coalesce(sum(price * quantity) FILTER (WHERE executed_at >= %(since)s), 0) AS value
  FROM orders_trade WHERE id >= %(first_id)s
) traded
"""

_VOLUMES = "SELECT symbol, sum(volume) FROM orders_bar WHERE minute >= %s GROUP BY symbol"

_BY_MINUTE = """
SELECT minute, sum(orders), sum(trades), sum(value) FROM orders_bar
WHERE minute >= %s AND minute < %s GROUP BY minute
"""

_NEWEST = """
SELECT greatest(
  (SELECT created_at FROM orders_order WHERE id < %(end_id)s AND created_at < %(cut_off)s ORDER BY id DESC LIMIT 1),
  (SELECT executed_at FROM orders_trade WHERE id < %(end_id)s AND executed_at < %(cut_off)s ORDER BY id DESC LIMIT 1)),
  (SELECT max(minute) FROM orders_bar)
"""
