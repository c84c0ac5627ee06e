"""What the database's clock and its failures mean to us."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import psycopg
import psycopg_pool
from django.db import InterfaceError, OperationalError, connection
from django.db.backends.utils import CursorWrapper
from psycopg.types.datetime import TimestamptzLoader

from exchange.errors import OutcomeUnknown


def prepared_cursor() -> CursorWrapper:
    """A cursor whose statements are planned once per connection: planning the write path's takes longer than running.

    For hand-written SQL only. Django's own statements are put together on this side: bound by the server, it sends
    whole numbers in as many bytes as it thinks their column has, and cuts off what is above.
    """
    connection.ensure_connection()
    plain = psycopg.Cursor(connection.connection)
    plain.adapters.register_loader("timestamptz", TimestamptzLoader)  # in C, where Django's is in Python
    cursor: CursorWrapper = connection._prepare_cursor(plain)  # type: ignore[attr-defined]
    return cursor


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
