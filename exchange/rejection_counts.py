"""Counts of rejected orders. They leave no rows, so each web process counts them and adds its counts to the database.

An order counts if it was certainly not placed, for any reason (`is_rejection`). A batch that is rejected as a whole
counts as one order. Counts are saved every two seconds, so a killed process loses at most those of two seconds.
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
RETENTION = timedelta(days=2)
DELETE_BATCH = 1_000

_NOT_EXECUTED = HTTPStatus.SERVICE_UNAVAILABLE
_counts: Counter[int] = Counter()  # by the Unix time at which the bucket begins
_lock = Lock()


def is_rejection(status: int) -> bool:
    """True if this status means that an authenticated request was not executed.

    After a 5xx other than `503`, this is unknown. Responses sent before authentication count as well, except for `401`.
    """
    if status == HTTPStatus.UNAUTHORIZED:
        return False
    return HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR or status == _NOT_EXECUTED


def add(orders: int, clock: Callable[[], float] = time.time) -> None:
    """Count `orders` rejections."""
    if orders:
        bucket = int(clock()) // BUCKET_SECONDS * BUCKET_SECONDS
        with _lock:
            _counts[bucket] += orders


def flush() -> None:
    """Add the counts since the last flush to the stored ones. After a failure, they are kept for the next flush."""
    with _lock:
        counts = dict(_counts)
        _counts.clear()
    if not counts:
        return
    try:
        with connection.cursor() as cursor:
            moments = [datetime.fromtimestamp(bucket, UTC) for bucket in sorted(counts)]
            cursor.execute(_ADD, [moments, [counts[bucket] for bucket in sorted(counts)]])
    except DatabaseFailure:
        with _lock:
            _counts.update(counts)
        raise


def summary(now: datetime, midnight: datetime, minutes: int) -> tuple[int, int, list[int]]:
    """Return the counts of the last sixty seconds, of the day, and of each of the last whole minutes."""
    this_minute = now.replace(second=0, microsecond=0)
    counts = RejectedOrders.objects.filter(at__gte=min(midnight, this_minute - minutes * MINUTE))
    by_minute = counts.annotate(minute=TruncMinute("at")).values_list("minute")
    last_minute = Sum("count", filter=Q(at__gt=now - MINUTE), default=0)
    rows = list(by_minute.annotate(rejected=Sum("count"), last_minute=last_minute))
    rejected = {minute: count for minute, count, _ in rows}
    today = sum(count for minute, count in rejected.items() if minute >= midnight)
    charted_minutes = (this_minute - n * MINUTE for n in range(minutes, 0, -1))
    return sum(row[2] for row in rows), today, [rejected.get(minute, 0) for minute in charted_minutes]


def delete_old() -> None:
    """Delete counts older than `RETENTION`, in batches."""
    old = RejectedOrders.objects.filter(at__lt=Now() - RETENTION).order_by("at").values("at")[:DELETE_BATCH]
    while RejectedOrders.objects.filter(at__in=old).delete()[0] == DELETE_BATCH:
        pass


_ADD = """
INSERT INTO exchange_rejectedorders AS stored (at, count) SELECT * FROM unnest(%s::timestamptz[], %s::bigint[])
ON CONFLICT (at) DO UPDATE SET count = stored.count + EXCLUDED.count
"""
