"""Readiness check for `/readyz`: can orders be accepted?

A web process queries the database and Valkey at most once per `READINESS_CACHE_SECONDS`, and from one request at a
time. The other requests get the last result, or "not ready" once the database has kept the query waiting for
`READINESS_TIMEOUT_SECONDS`.
"""

import time
from threading import Lock

import msgspec
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from exchange import heartbeat
from exchange.database import replace_lost_connections
from exchange.http.threads import compute_once
from exchange.response_bodies import ReadinessBody


class Readiness:
    """The cached result, the time of its query, and the start of the query in progress."""

    def __init__(self) -> None:
        self._result: ReadinessBody | None = None
        self._queried_at = 0.0
        self._refreshing_since: float | None = None
        self._refreshing = Lock()

    def current(self) -> ReadinessBody:
        """Return the cached result or query a new one. May wait for the database and Valkey."""
        if result := self.cached():
            return result
        if not self._refreshing.acquire(timeout=settings.READINESS_TIMEOUT_SECONDS):
            return ReadinessBody(False, False, None, None)
        try:
            return self.cached() or self._refresh()
        finally:
            self._refreshing.release()

    def cached(self) -> ReadinessBody | None:
        """Return a result that needs no query, if there is one."""
        now, since = time.monotonic(), self._refreshing_since
        age = now - self._queried_at
        if self._result is None or (since is None and age >= settings.READINESS_CACHE_SECONDS):
            return None
        if since is not None and now - since >= settings.READINESS_TIMEOUT_SECONDS:
            return msgspec.structs.replace(self._result, database=False)
        if age < settings.READINESS_CACHE_SECONDS + settings.READINESS_TIMEOUT_SECONDS:
            return self._result
        return None  # the last result is too old: wait for the query in progress

    def _refresh(self) -> ReadinessBody:
        queried_at = self._refreshing_since = time.monotonic()
        try:
            is_ready, ages = _database_is_ready(), heartbeat.read()
        finally:
            self._refreshing_since = None
        result = ReadinessBody(is_ready, ages.valkey, ages.beat_age_seconds, ages.worker_age_seconds)
        self._queried_at, self._result = queried_at, result
        return result


_readiness = Readiness()


def current() -> ReadinessBody:
    """Return the cached result or query a new one. May wait for the database and Valkey."""
    return _readiness.current()


def cached() -> ReadinessBody | None:
    """Return a result that needs no query, if there is one."""
    return _readiness.cached()


def _database_is_ready() -> bool:
    """True if the database responds and has all migrations of this code."""
    try:
        return _migrations() <= MigrationRecorder(connection).applied_migrations().keys()
    except (DatabaseError, InterfaceError):
        replace_lost_connections()
        return False


@compute_once
def _migrations() -> frozenset[tuple[str, str]]:
    """Return the migrations on disk. Computed once, because Django reloads modules for it."""
    return frozenset(MigrationLoader(None, ignore_no_migrations=True).disk_migrations)
