"""Expiry of due orders: books of all instruments together in few transactions, without waiting for locked books."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog
from django.conf import settings
from django.db import connection

from orders.matching import batches, service
from orders.matching.commands import ExpireOrders, Swept

_SWEEP_LOCK = 0x65787069  # advisory lock of the session that sweeps, used here only

_log = structlog.get_logger(__name__)


def expire_due_orders() -> None:
    """Expire the orders of all books that are past their `expires_at`, unless another process is doing so.

    Locked books and brokers are skipped and tried again. After `EXPIRY_ATTEMPTS` attempts without success they are left
    to the next sweep.
    """
    with _sweep_lock() as is_ours:
        due = _due_books() if is_ours else {}
        attempts = 0
        while due and attempts < settings.EXPIRY_ATTEMPTS:
            if attempts:
                time.sleep(settings.EXPIRY_RETRY_SECONDS)
            closed = _expire(due)
            attempts = 0 if any(closed.values()) else attempts + 1
            due = {book: count for book, count in due.items() if closed[book] < count or count == settings.SWEEP_BATCH}
        if due:
            _log.warning("expiry_put_off", symbols=list(due))


@contextmanager
def _sweep_lock() -> Iterator[bool]:
    """Hold the lock of the session that sweeps. Yield False if another session has it.

    A frozen process loses the session, so that another one can sweep.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [_SWEEP_LOCK])
        (is_ours,) = cursor.fetchone()
        if is_ours:
            cursor.execute("SELECT set_config('idle_session_timeout', %s, false)", [str(settings.IDLE_LOCK_TIMEOUT_MS)])
    try:
        yield is_ours
    finally:
        if is_ours:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_advisory_unlock(%s), set_config('idle_session_timeout', NULL, false)", [_SWEEP_LOCK]
                )


def _due_books() -> dict[str, int]:
    """The number of due orders of each book that has any, at most `SWEEP_BATCH`."""
    with connection.cursor() as cursor:
        cursor.execute(_DUE_BOOKS, [settings.SWEEP_BATCH])
        return dict(cursor.fetchall())


def _expire(due: Mapping[str, int]) -> dict[str, int]:
    """Expire up to `SWEEP_BATCH` orders of each book. Return the number of each book; of a locked book, that is 0."""
    closed = {}
    for symbols in _transactions(due):
        has_begun = batches.try_begin(service.begin_with_batch_lock)
        commands = [ExpireOrders(symbol) for symbol in symbols]
        outcomes = batches.execute(commands, is_retry=not has_begun, skip_busy=True)
        for symbol, outcome in zip(symbols, outcomes, strict=True):
            closed[symbol] = outcome.closed if isinstance(outcome, Swept) else 0
    return closed


def _transactions(due: Mapping[str, int]) -> Iterator[list[str]]:
    """Distribute the books over transactions of about `EXPIRY_BATCH` orders, which other requests wait for."""
    symbols: list[str] = []
    orders = 0
    for symbol, count in due.items():
        if symbols and orders + count > settings.EXPIRY_BATCH:
            yield symbols
            symbols, orders = [], 0
        symbols.append(symbol)
        orders += count
    if symbols:
        yield symbols


_DUE_BOOKS = """
SELECT i.symbol, due.orders
FROM exchange_instrument i
CROSS JOIN LATERAL (
  SELECT count(*) AS orders FROM (
    SELECT FROM orders_order o
    WHERE o.symbol = i.symbol AND orders_is_working(o.status)
      AND o.expires_at IS NOT NULL AND o.expires_at <= statement_timestamp()
    LIMIT %s
  ) first
) due
WHERE due.orders > 0
ORDER BY i.symbol
"""
