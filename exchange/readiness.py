"""Whether orders can be taken. Each web process finds out at most once in `READINESS_CACHE_SECONDS`.

One request at a time asks the database and Valkey. The others get the last answer, or "no" when the database has kept
that one waiting for `READINESS_PATIENCE_SECONDS`.
"""

import time
from threading import Lock

import msgspec
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from exchange import heartbeat
from exchange.bodies import ReadinessBody
from exchange.database import replace_lost_connections
from exchange.http.threads import compute_once


class Readiness:
    """The last answer, when it was asked for, and since when somebody has been asking for the next."""

    def __init__(self) -> None:
        self._answer: ReadinessBody | None = None
        self._asked_at = 0.0
        self._refreshing_since: float | None = None
        self._refreshing = Lock()

    def current(self) -> ReadinessBody:
        """The answer that is remembered, or a new one. It waits only for the database and Valkey."""
        if known := self.remembered():
            return known
        if not self._refreshing.acquire(timeout=settings.READINESS_PATIENCE_SECONDS):
            return ReadinessBody(False, False, None, None)
        try:
            return self.remembered() or self._refresh()
        finally:
            self._refreshing.release()

    def remembered(self) -> ReadinessBody | None:
        """An answer that needs nobody to be asked, if there is one."""
        now, since, age = time.monotonic(), self._refreshing_since, time.monotonic() - self._asked_at
        if self._answer is None or (since is None and age >= settings.READINESS_CACHE_SECONDS):
            return None
        if since is not None and now - since >= settings.READINESS_PATIENCE_SECONDS:
            return msgspec.structs.replace(self._answer, database=False)
        if age < settings.READINESS_CACHE_SECONDS + settings.READINESS_PATIENCE_SECONDS:
            return self._answer
        return None  # nobody has asked for long: wait for what is being found out

    def _refresh(self) -> ReadinessBody:
        asked_at = self._refreshing_since = time.monotonic()
        try:
            is_ready, pulse = _database_is_ready(), heartbeat.read()
        finally:
            self._refreshing_since = None
        answer = ReadinessBody(is_ready, pulse.valkey, pulse.beat_age_seconds, pulse.worker_age_seconds)
        self._asked_at, self._answer = asked_at, answer
        return answer


_readiness = Readiness()


def current() -> ReadinessBody:
    """Whether orders can be taken, as of at most `READINESS_CACHE_SECONDS` ago unless the database keeps us waiting."""
    return _readiness.current()


def remembered() -> ReadinessBody | None:
    """The same, if nobody needs to be asked."""
    return _readiness.remembered()


def _database_is_ready() -> bool:
    """Whether the database answers and has every migration of this code."""
    try:
        return _migrations() <= MigrationRecorder(connection).applied_migrations().keys()
    except (DatabaseError, InterfaceError):
        replace_lost_connections()
        return False


@compute_once
def _migrations() -> frozenset[tuple[str, str]]:
    """What this code has on disk; Django reloads modules to find out."""
    return frozenset(MigrationLoader(None, ignore_no_migrations=True).disk_migrations)
