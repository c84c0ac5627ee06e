"""Django's PostgreSQL backend, with an error at once while PostgreSQL is unavailable.

The pool of psycopg would keep each request waiting for `DATABASE_POOL_TIMEOUT_SECONDS`. An outage starts if an attempt
to connect fails after a connection was lost, or after the pool had none in that time. During an outage, requests wait
only as long as a restart of PostgreSQL takes. The first attempt that succeeds ends it.
"""

import time
from dataclasses import dataclass
from threading import Thread
from typing import Any

import structlog
from django.conf import settings
from django.db.backends.postgresql import base
from psycopg_pool import PoolTimeout

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Outage:
    """The outage of this process's database, if `since` is set. Needs no lock: an additional attempt does no harm."""

    since: float | None = None
    next_attempt_at: float = 0.0


_outage = _Outage()


class DatabaseWrapper(base.DatabaseWrapper):
    """A thread's connection to the database."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if self.pool is None:
            return super().get_new_connection(conn_params)
        while self._is_unavailable():
            if _outage.since and time.monotonic() - _outage.since > settings.DATABASE_RESTART_SECONDS:
                raise PoolTimeout("PostgreSQL is unavailable.")
            time.sleep(settings.DATABASE_ATTEMPT_SECONDS)
        try:
            return super().get_new_connection(conn_params)
        except PoolTimeout:
            self._attempt()
            raise

    def close_pool(self) -> None:
        super().close_pool()
        _outage.since = None

    def replace_lost_connections(self) -> None:
        """Test all connections of the pool after one was lost, because the others may be dead too.

        Testing at every checkout would cost a round trip each time, and would wait seconds between two dead ones.
        """
        self.pool.check()
        if _outage.since is None:
            self._attempt()

    def _is_unavailable(self) -> bool:
        """True if PostgreSQL is unavailable and the pool is empty. Makes an attempt in the background if one is due."""
        if _outage.since is None:
            return False
        if time.monotonic() >= _outage.next_attempt_at:
            _outage.next_attempt_at = time.monotonic() + settings.DATABASE_CONNECT_TIMEOUT_SECONDS
            Thread(target=self._attempt, name="database", daemon=True).start()
        return not self.pool.get_stats()["pool_available"]

    def _attempt(self) -> None:
        """Try to connect, and start or end the outage."""
        try:
            self.Database.connect(**self.get_connection_params()).close()
        except self.Database.OperationalError as error:
            _outage.next_attempt_at = time.monotonic() + settings.DATABASE_ATTEMPT_SECONDS
            if _outage.since is None:
                _outage.since = time.monotonic()
                _log.warning("database_unavailable", error=str(error))
        else:
            if _outage.since is not None:
                _log.warning("database_available", seconds=round(time.monotonic() - _outage.since, 1))
                _outage.since = None
