"""Reconciliation runs: started by an operator or a command, executed by a worker, and stored with their findings.

The process that executes a run holds the run's advisory lock until after the run has ended. PostgreSQL releases the
lock with the session. A run that has begun and not ended, and whose lock is free, is therefore abandoned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from uuid import UUID

import msgspec
import structlog
from celery import current_app
from django.conf import settings
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models.functions import Now

from exchange.audit import Action, Actor, Entry, record
from exchange.database import database_now
from exchange.errors import ReconcileUnderWay
from orders.models import ReconcileRun
from orders.reconciliation import checks
from webhooks.wakeup import connection_with_timeouts

TASK = "orders.tasks.run_reconcile"
ABANDONED = "The process was stopped, killed or timed out before the run had a result."
_LOCK_CLASS = 0x7265636F  # first key of all advisory locks of runs
_START_LOCK = 0  # second key of the lock held while a run is created; a run's own lock has another one

_log = structlog.get_logger(__name__)


def start(*, by: Actor, reason: str = "") -> ReconcileRun:
    """Create a run for a worker. Raise `ReconcileUnderWay` if another one is waiting or running."""
    maintain()  # ends abandoned runs first
    with transaction.atomic(durable=True):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [_LOCK_CLASS, _START_LOCK])
        if ReconcileRun.objects.unfinished().exists():
            raise ReconcileUnderWay
        run = _create(ReconcileRun(), by, reason)
    _send_to_worker(run.pk)
    return run


def run_now(*, by: Actor) -> ReconcileRun:
    """Create a run and execute it here, also while others run. Return it when it has ended."""
    run = ReconcileRun()
    with _run_lock(run.pk) as is_ours:
        assert is_ours
        with transaction.atomic(durable=True):
            _create(run, by, "")
        _run_checks(run.pk)
    run.refresh_from_db()
    return run


def perform(run_id: UUID) -> None:
    """Execute a run, unless another process executes it or has executed it."""
    with _run_lock(run_id) as is_ours:
        if is_ours:
            _run_checks(run_id)


def maintain() -> None:
    """Send waiting runs to a worker again, and end abandoned runs."""
    for run in ReconcileRun.objects.unfinished().order_by("pk"):
        if run.started_at is None:
            _send_to_worker(run.pk)
        else:
            _end_if_abandoned(run.pk)


def _create(run: ReconcileRun, by: Actor, reason: str) -> ReconcileRun:
    run.asked_by, run.asked_at, run.checks = by.name, database_now(), len(checks.CHECKS)
    run.save(force_insert=True)
    record(Entry.of(by, Action.RECONCILE_START, run.pk, reason=reason))
    return run


def _send_to_worker(run_id: UUID) -> None:
    """Send a run to a worker. The message may be lost, because `maintain` repeats it."""
    try:
        with connection_with_timeouts(settings.REDIS_URL) as valkey:
            expires = settings.RECONCILE_MESSAGE_SECONDS
            current_app.send_task(TASK, (str(run_id),), connection=valkey, retry=False, expires=expires)
    except Exception as error:  # `maintain` sends it again
        _log.warning("reconcile_put_off", run=str(run_id), error=str(error))


def _run_checks(run_id: UUID) -> None:
    """Run all checks in one snapshot, and commit each finding at once, so that the progress is visible."""
    if not ReconcileRun.objects.unfinished().filter(pk=run_id, started_at=None).update(started_at=Now()):
        return
    with _second_connection() as cursor:
        try:
            with checks.snapshot() as snapshot_cursor:
                for finding in checks.findings(snapshot_cursor):
                    cursor.execute(
                        _ADD_FINDING, {"id": run_id, "finding": msgspec.json.encode(asdict(finding)).decode()}
                    )
        except BaseException as error:  # also Ctrl-C
            cursor.execute(_END, {"id": run_id, "error": _first_line(error)})
            raise
        cursor.execute(_END, {"id": run_id, "error": ""})


_ADD_FINDING = """
UPDATE orders_reconcilerun SET findings = findings || %(finding)s::jsonb WHERE id = %(id)s AND finished_at IS NULL
"""

_END = """
UPDATE orders_reconcilerun SET finished_at = clock_timestamp(), error = %(error)s
WHERE id = %(id)s AND finished_at IS NULL
"""


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][: ReconcileRun._meta.get_field("error").max_length]


def _end_if_abandoned(run_id: UUID) -> None:
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", [_LOCK_CLASS, _lock_key(run_id)])
        (is_free,) = cursor.fetchone()
        if is_free:
            cursor.execute(_END, {"id": run_id, "error": ABANDONED})


@contextmanager
def _run_lock(run_id: UUID) -> Iterator[bool]:
    """Hold the run's lock and yield True, or yield False if another process holds it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", [_LOCK_CLASS, _lock_key(run_id)])
        (is_ours,) = cursor.fetchone()
    try:
        yield is_ours
    finally:
        if is_ours:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s, %s)", [_LOCK_CLASS, _lock_key(run_id)])


def _lock_key(run_id: UUID) -> int:
    """The second key of the run's lock: a positive integer from the random end of its id."""
    return run_id.int % 0x7FFFFFFF + 1


@contextmanager
def _second_connection() -> Iterator[CursorWrapper]:
    """A second connection in autocommit, because the first one has the snapshot open."""
    second = connection.copy()
    try:
        with second.cursor() as cursor:
            yield cursor
    finally:
        second.close()
