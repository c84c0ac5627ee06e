"""The connection pool recovers from an outage of PostgreSQL."""

import time
from contextlib import suppress

import psycopg
import psycopg_pool
import pytest
from django.conf import settings

from config.local.servers import Postgres
from tests import trading

pytestmark = pytest.mark.processes

OUTAGE_SECONDS = 7.5  # the pool's default backoff, doubled each time, has just begun a pause of eight seconds
BACK_SECONDS = 4.0


def test_connections_recover_soon_after_postgresql_restarts(postgres: Postgres) -> None:
    options = settings.DATABASES["default"]["OPTIONS"]["pool"] | {"timeout": 0.2}
    with psycopg_pool.ConnectionPool(postgres.url("bourse"), **options) as pool:
        assert is_up(pool, trading.TIMEOUT_SECONDS)
        postgres.child.stop()
        lost_at = time.monotonic()
        while time.monotonic() < lost_at + OUTAGE_SECONDS:
            assert not is_up(pool)
        postgres.start("bourse")
        back_at = time.monotonic()
        while not is_up(pool):
            assert time.monotonic() < back_at + BACK_SECONDS


def is_up(pool: psycopg_pool.ConnectionPool, timeout: float | None = None) -> bool:
    with suppress(psycopg.OperationalError), pool.connection(timeout) as connection:
        connection.execute("SELECT")
        return True
    return False
