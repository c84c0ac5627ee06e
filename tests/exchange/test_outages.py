"""An outage of PostgreSQL: requests are rejected at once, and succeed again soon after it."""

import time
from collections.abc import Iterator
from contextlib import suppress

import dj_database_url
import pytest
from django.conf import settings
from django.db import OperationalError, connection, connections
from pytest_django import DjangoDbBlocker

from config.local.processes import wait_until
from config.local.servers import Postgres
from exchange.postgresql.base import DatabaseWrapper

pytestmark = pytest.mark.processes

OUTAGE_SECONDS = 7.5  # the pool's default backoff, doubled each time, has just begun a pause of eight seconds
AT_ONCE_SECONDS = 0.5
BACK_SECONDS = 3.0


@pytest.fixture
def wrapper(postgres: Postgres, django_db_blocker: DjangoDbBlocker) -> Iterator[DatabaseWrapper]:
    """A connection to the test's own PostgreSQL, with the settings of the application."""
    connections.settings["own"] = connection.settings_dict | dj_database_url.parse(
        postgres.url("bourse"), engine="exchange.postgresql"
    )
    connections.settings["own"]["OPTIONS"] = connection.settings_dict["OPTIONS"]
    own = connections["own"]
    assert isinstance(own, DatabaseWrapper)
    with django_db_blocker.unblock():
        yield own
    own.close_pool()
    del connections["own"], connections.settings["own"]


def test_requests_fail_at_once_during_an_outage_and_succeed_soon_after_it(
    postgres: Postgres, wrapper: DatabaseWrapper
) -> None:
    assert is_up(wrapper)
    postgres.child.stop()
    lost_at = time.monotonic()
    assert not is_up(wrapper)
    wrapper.replace_lost_connections()
    assert not is_up(wrapper)
    assert time.monotonic() - lost_at < settings.DATABASE_RESTART_SECONDS + AT_ONCE_SECONDS

    def fails_at_once() -> bool:
        started = time.monotonic()
        return not is_up(wrapper) and time.monotonic() - started < AT_ONCE_SECONDS

    assert wait_until(lambda: not fails_at_once() or time.monotonic() > lost_at + OUTAGE_SECONDS, 2 * OUTAGE_SECONDS)
    assert fails_at_once()
    postgres.start("bourse")
    assert wait_until(lambda: is_up(wrapper), BACK_SECONDS)


def is_up(wrapper: DatabaseWrapper) -> bool:
    try:
        with suppress(OperationalError), wrapper.cursor() as cursor:
            cursor.execute("SELECT")
            return True
        return False
    finally:
        wrapper.close()
