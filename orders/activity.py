"""How much is going on: orders and trades of the last minute as they are, and of every minute before as `Bar`s.

A bar is summed up from orders and trades, and the last minutes are summed up again and again: what was committed late
is in it the next time, and doing it twice changes nothing. There is no index of all orders by their time. But ids are
UUIDs of version 7 and begin with the moment they were chosen, so a minute's orders and trades are a range of the
primary key: taken with a margin, of which only those count whose own time is in the minute.
"""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.backends.utils import CursorWrapper

from exchange.database import database_now

MINUTE = timedelta(minutes=1)
# How far an order's id may be from its time: it is chosen before the order waits for its turn, by another clock.
ID_MARGIN = timedelta(minutes=1)
STEP_ROWS = 50_000  # orders or trades that are summed up at once, unless one minute has more


@dataclass(frozen=True, slots=True)
class Activity:
    """Orders that were accepted, trades between them, and what those were worth."""

    orders: int = 0
    trades: int = 0
    value: Decimal = Decimal(0)


# --- Bars -----------------------------------------------------------------------------------------------------------


def roll_up() -> None:
    """Bring the bars up to now, from a minute before the last one; after a long pause as far as time allows.

    A transaction ends within 15 seconds or not at all, so it is late by a minute at most.
    """
    started = time.monotonic()
    with connection.cursor() as cursor:
        now = database_now()
        begin = _begin(cursor, now)
        while begin <= now and time.monotonic() - started < settings.BARS_SECONDS:
            end = _end(cursor, begin, now)
            cursor.execute(ROLL_UP, span(begin, end))
            begin = end


def span(begin: datetime, end: datetime) -> dict[str, Any]:
    """What `ROLL_UP` asks for, to make the bars of the minutes from `begin` until `end`."""
    first_id, end_id = _first_id(begin - ID_MARGIN), _first_id(end + ID_MARGIN)
    return {"begin": begin, "end": end, "first_id": first_id, "end_id": end_id}


def _begin(cursor: CursorWrapper, now: datetime) -> datetime:
    """A minute before the last bar, or before the first order or trade; but before this minute at the latest."""
    cursor.execute(_LAST_DONE)
    (last,) = cursor.fetchone()
    return _minute_of(min(last or now, now)) - MINUTE


def _end(cursor: CursorWrapper, begin: datetime, now: datetime) -> datetime:
    """So far that there are not too many rows until then; a minute without any costs nothing."""
    cursor.execute(_STEP, {"first_id": _first_id(begin), "rows": STEP_ROWS})
    (reached,) = cursor.fetchone()
    return max(_minute_of(reached or now + MINUTE), begin + MINUTE)


def _minute_of(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def _first_id(at: datetime) -> UUID:
    """The least that an id chosen at this moment can be."""
    return UUID(int=round(at.timestamp() * 1000) << 80)


# --- What the dashboard shows ---------------------------------------------------------------------------------------


def last_minute(now: datetime) -> Activity:
    """The sixty seconds before `now`, as the orders and trades themselves tell it."""
    since = now - MINUTE
    with connection.cursor() as cursor:
        cursor.execute(_LIVE, {"since": since, "first_id": _first_id(since - ID_MARGIN)})
        return Activity(*cursor.fetchone())


def of_each_instrument(since: datetime) -> dict[str, tuple[Activity, int]]:
    """What the bars since then say of each instrument, and how many of its shares were traded."""
    with connection.cursor() as cursor:
        cursor.execute(_BY_INSTRUMENT, [since])
        return {symbol: (Activity(*sums), int(volume)) for symbol, volume, *sums in cursor.fetchall()}


def of_each_minute(since: datetime, until: datetime) -> list[Activity]:
    """What the bars say of all instruments together, minute by minute."""
    with connection.cursor() as cursor:
        cursor.execute(_BY_MINUTE, [since, until])
        found = {minute: Activity(*sums) for minute, *sums in cursor.fetchall()}
    return [found.get(since + n * MINUTE, Activity()) for n in range((until - since) // MINUTE)]


def behind_since(now: datetime) -> datetime | None:
    """Up to when the bars are complete, if they miss something that happened more than a minute ago."""
    cut_off = _minute_of(now) - MINUTE
    with connection.cursor() as cursor:
        cursor.execute(_NEWEST, {"cut_off": cut_off, "end_id": _first_id(cut_off)})
        newest, last_bar = cursor.fetchone()
    if newest is None or (last_bar is not None and _minute_of(newest) <= last_bar):
        return None
    return last_bar or _minute_of(newest)


# --- SQL ------------------------------------------------------------------------------------------------------------

# Of a minute's trades the first and the last are looked up in the tape: sorting all of them took six times as long.
# What is there already and right is not written again; bars are locked in the order of their index, as by everybody.
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
SELECT (SELECT count(*) FROM orders_order WHERE id >= %(first_id)s AND created_at > %(since)s), count(*),
       coalesce(sum(price * quantity), 0)
FROM orders_trade WHERE id >= %(first_id)s AND executed_at > %(since)s
"""

_SUMS = "sum(orders), sum(trades), sum(value)"

_BY_INSTRUMENT = f"SELECT symbol, sum(volume), {_SUMS} FROM orders_bar WHERE minute >= %s GROUP BY symbol"

_BY_MINUTE = f"SELECT minute, {_SUMS} FROM orders_bar WHERE minute >= %s AND minute < %s GROUP BY minute"

_NEWEST = """
SELECT greatest(
  (SELECT created_at FROM orders_order WHERE id < %(end_id)s AND created_at < %(cut_off)s ORDER BY id DESC LIMIT 1),
  (SELECT executed_at FROM orders_trade WHERE id < %(end_id)s AND executed_at < %(cut_off)s ORDER BY id DESC LIMIT 1)),
  (SELECT max(minute) FROM orders_bar)
"""
