"""How many orders were refused: they leave no rows, so each web process counts them and adds its count to the others'.

What counts is an attempt to place an order that was certainly not placed, for whatever reason: `is_refusal`. A batch
that is refused as a whole counts as one, an order in a batch by itself. Counts go to the database every two seconds, so
a process that is killed takes no more than that along.
"""

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from threading import Lock

from django.db import Error as DatabaseFailure
from django.db import connection
from django.db.models import Q, Sum
from django.db.models.functions import Now, TruncMinute

from exchange.models import RejectedOrders

BUCKET_SECONDS = 10
MINUTE = timedelta(minutes=1)
KEPT = timedelta(days=2)
DROPPED_AT_ONCE = 1_000

_NOT_DONE = HTTPStatus.SERVICE_UNAVAILABLE
_counted: Counter[int] = Counter()  # by the second at which the bucket begins
_lock = Lock()


def is_refusal(status: int) -> bool:
    """Whether an answer says to who may ask that nothing was done; with any 5xx but `503` that is unknown.

    What is turned away at the door counts, too, though nobody has looked there at whose it is.
    """
    if status == HTTPStatus.UNAUTHORIZED:
        return False
    return HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR or status == _NOT_DONE


def note(orders: int, clock: Callable[[], float] = time.time) -> None:
    """So many orders were refused just now."""
    if orders:
        bucket = int(clock()) // BUCKET_SECONDS * BUCKET_SECONDS
        with _lock:
            _counted[bucket] += orders


def write() -> None:
    """Add what was counted since the last time to what is stored; what could not be stored is kept for the next."""
    with _lock:
        counted = dict(_counted)
        _counted.clear()
    if not counted:
        return
    try:
        with connection.cursor() as cursor:
            moments = [datetime.fromtimestamp(bucket, UTC) for bucket in sorted(counted)]
            cursor.execute(_ADD, [moments, [counted[bucket] for bucket in sorted(counted)]])
    except DatabaseFailure:
        with _lock:
            _counted.update(counted)
        raise


def overview(now: datetime, midnight: datetime, minutes: int) -> tuple[int, int, list[int]]:
    """How many were refused in the sixty seconds before now, in the day, and in each of the last whole minutes."""
    this = now.replace(second=0, microsecond=0)
    asked = RejectedOrders.objects.filter(at__gte=min(midnight, this - minutes * MINUTE))
    by_minute = asked.annotate(minute=TruncMinute("at")).values_list("minute")
    lately = Sum("count", filter=Q(at__gt=now - MINUTE), default=0)
    rows = list(by_minute.annotate(refused=Sum("count"), lately=lately))
    found = {minute: count for minute, count, _ in rows}
    today = sum(count for minute, count in found.items() if minute >= midnight)
    charted = (this - n * MINUTE for n in range(minutes, 0, -1))
    return sum(row[2] for row in rows), today, [found.get(minute, 0) for minute in charted]


def drop_old() -> None:
    """Drop what is older than two days."""
    old = RejectedOrders.objects.filter(at__lt=Now() - KEPT).order_by("at").values("at")[:DROPPED_AT_ONCE]
    while RejectedOrders.objects.filter(at__in=old).delete()[0] == DROPPED_AT_ONCE:
        pass


_ADD = """
INSERT INTO exchange_rejectedorders AS stored (at, count) SELECT * FROM unnest(%s::timestamptz[], %s::bigint[])
ON CONFLICT (at) DO UPDATE SET count = stored.count + EXCLUDED.count
"""
