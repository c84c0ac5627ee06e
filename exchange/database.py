"""Transactions, clock, timeouts and failures of the database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg
import psycopg_pool
from django.db import Error, InterfaceError, OperationalError, connection
from django.db.backends.utils import CursorWrapper
from psycopg.pq import TransactionStatus

from exchange.errors import OutcomeUnknown


@contextmanager
def own_transaction() -> Iterator[CursorWrapper]:
    """Transaction whose BEGIN is sent with its first statement, and whose COMMIT the caller sends with the last.

    `atomic` would send BEGIN and COMMIT as separate messages and wait for both responses. A transaction that was not
    committed is rolled back. It must not be nested, and `on_commit` is not available in it. It may already be open, if
    the caller began it to wait for a lock. If the connection is lost with the last message, the outcome is unknown.
    """
    with connection.cursor() as cursor:
        is_free = not connection.in_atomic_block and connection.autocommit
        if not is_free or not (_is_idle() or is_transaction_open()):
            raise RuntimeError("A transaction of its own cannot be part of another.")
        connection.autocommit = False  # Django's only: psycopg's setting would send BEGIN as a separate message
        try:
            with connection.execute_wrapper(_begin_with_first):
                yield cursor
        finally:
            _roll_back()
            connection.autocommit = True


def _begin_with_first(
    execute: Callable[..., Any], sql: str, parameters: Any, many: bool, context: dict[str, Any]
) -> Any:
    """Send BEGIN with the first statement, and skip its empty result."""
    if not _is_idle():
        return execute(sql, parameters, many, context)
    result = execute(f"BEGIN; {sql}", parameters, many, context)
    context["cursor"].nextset()
    return result


def is_transaction_open() -> bool:
    """True if the server is in a transaction without an error."""
    return _transaction_status() is TransactionStatus.INTRANS


def _is_idle() -> bool:
    """True if the server has no open transaction."""
    return _transaction_status() is TransactionStatus.IDLE


def _transaction_status() -> TransactionStatus:
    plain: psycopg.Connection = connection.connection
    return plain.info.transaction_status


def _roll_back() -> None:
    if _is_idle():
        return
    try:
        connection.rollback()
    except Error:  # the connection is lost, and the transaction with it
        connection.close()


def database_now() -> datetime:
    """Return the current time of the database, not the start of the transaction or of a wait for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        (now,) = cursor.fetchone()
    assert isinstance(now, datetime)
    return now


@contextmanager
def lock_timeout(limit: str) -> Iterator[None]:
    """Set the lock timeout within the block. A statement that exceeds it raises `OperationalError`."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", [limit])
    try:
        yield
    finally:  # the connection returns to the pool
        with connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")


@contextmanager
def already_committed() -> Iterator[None]:
    """Convert database errors after a commit to `OutcomeUnknown`: the request was at least partly executed."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise OutcomeUnknown from error


def is_connection_lost(error: Exception) -> bool:
    """True if the connection is lost, so that the last statement may or may not have been executed."""
    cause = error.__cause__
    if not isinstance(cause, psycopg.Error):
        return True
    return cause.sqlstate is None or cause.sqlstate.startswith(("08", "57P"))  # connection exceptions; shutdowns


def is_lock_timeout(error: Exception) -> bool:
    """True if a lock could not be taken within the lock timeout."""
    return isinstance(error.__cause__, psycopg.errors.LockNotAvailable)


def has_no_connection(error: Exception) -> bool:
    """True if nothing was executed because the pool has no connection."""
    return isinstance(error.__cause__, psycopg_pool.PoolTimeout | psycopg_pool.TooManyRequests)


def replace_lost_connections() -> None:
    """Replace all dead connections of this process after one was lost."""
    connection.replace_lost_connections()  # type: ignore[attr-defined]  # a method of `exchange.postgresql`
