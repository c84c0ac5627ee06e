"""What the database's clock and its failures mean to us."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from django.db import InterfaceError, OperationalError, connection

from exchange.errors import OutcomeUnknown


def database_now() -> datetime:
    """The database's clock, now: not when the transaction began, nor when it started to wait for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        (now,) = cursor.fetchone()
    assert isinstance(now, datetime)
    return now


@contextmanager
def already_committed() -> Iterator[None]:
    """What fails in here fails after a commit: however it fails, nobody may hear that nothing was done."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise OutcomeUnknown from error
