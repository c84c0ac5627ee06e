"""What the database's clock and its failures mean to us."""

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
    """A transaction that begins in one message with its first statement; the caller commits it with its last.

    `atomic` sends BEGIN and COMMIT in messages of their own, and waits for both responses. A transaction that was not
    committed is rolled back. It must not be part of another, and `on_commit` is refused in it. It may be open already,
    if its beginning had to wait. Losing the connection with the last message leaves the outcome unknown.
    """
    with connection.cursor() as cursor:
        is_free = not connection.in_atomic_block and connection.autocommit
        if not is_free or not (_is_idle() or is_transaction_open()):
            raise RuntimeError("A transaction of its own cannot be part of another.")
        connection.autocommit = False  # Django's only: psycopg's would send BEGIN in a message of its own
        try:
            with connection.execute_wrapper(_begin_with_first):
                yield cursor
        finally:
            _roll_back()
            connection.autocommit = True


def _begin_with_first(
    execute: Callable[..., Any], sql: str, parameters: Any, many: bool, context: dict[str, Any]
) -> Any:
    """Put BEGIN in front of the first statement, and skip its empty result."""
    if not _is_idle():
        return execute(sql, parameters, many, context)
    result = execute(f"BEGIN; {sql}", parameters, many, context)
    context["cursor"].nextset()
    return result


def is_transaction_open() -> bool:
    """Whether the server is known to be in a transaction, in which nothing has failed."""
    return _transaction_status() is TransactionStatus.INTRANS


def _is_idle() -> bool:
    """Whether the server is known to have no transaction open."""
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
    """The database's clock, now: not when the transaction began, nor when it started to wait for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        (now,) = cursor.fetchone()
    assert isinstance(now, datetime)
    return now


@contextmanager
def lock_timeout(limit: str) -> Iterator[None]:
    """Wait for locks no longer than this in here; what runs out of patience is an `OperationalError`."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", [limit])
    try:
        yield
    finally:  # the connection is the pool's, and its next user's
        with connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")


@contextmanager
def already_committed() -> Iterator[None]:
    """What fails in here fails after a commit: however it fails, nobody may hear that nothing was done."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise OutcomeUnknown from error


def is_connection_lost(error: Exception) -> bool:
    """Whether nothing more will be heard from the server: then what was sent last may have been done."""
    cause = error.__cause__
    if not isinstance(cause, psycopg.Error):
        return True
    return cause.sqlstate is None or cause.sqlstate.startswith(("08", "57P"))  # connection exceptions; shutdowns


def is_lock_timeout(error: Exception) -> bool:
    """Whether somebody else held for too long what was to be locked."""
    return isinstance(error.__cause__, psycopg.errors.LockNotAvailable)


def replace_lost_connections() -> None:
    """Where one connection was lost the others may be dead too: test the pool now, so that only this request pays.

    A test at every checkout costs a round trip each time, and waits seconds between one dead connection and the next.
    """
    pool: psycopg_pool.ConnectionPool = connection.pool  # type: ignore[attr-defined]  # PostgreSQL's has one
    pool.check()
