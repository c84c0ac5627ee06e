"""The runs of the reconciliation, which are kept: who asked for it, how far it is, what it found.

Whoever makes a run holds an advisory lock of its own from before it begins until after it has ended. PostgreSQL gives
the lock up with the session: so a run that has begun, has not ended, and whose lock is free has lost its maker, however
that came about, and will not go on.
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
ABANDONED = "Whoever made it was stopped, killed or out of time before there was a verdict."
_LOCK_CLASS = 0x7265636F  # the first half of the advisory locks' numbers: nobody else's here; the second is the run's,
_START_LOCK = 0  # or that of whoever asks for one

_log = structlog.get_logger(__name__)


def start(*, by: Actor, reason: str = "") -> ReconcileRun:
    """Ask for a run, which a worker makes; refused while another is under way."""
    maintain()  # one that lost its maker is not
    with transaction.atomic(durable=True):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [_LOCK_CLASS, _START_LOCK])
        if ReconcileRun.objects.unfinished().exists():
            raise ReconcileUnderWay
        run = _create(ReconcileRun(), by, reason)
    _send_to_worker(run.pk)
    return run


def run_now(*, by: Actor) -> ReconcileRun:
    """Ask for a run and make it here, whatever else is under way; as it was when it ended."""
    run = ReconcileRun()
    with _run_lock(run.pk) as is_ours:
        assert is_ours
        with transaction.atomic(durable=True):
            _create(run, by, "")
        _run_checks(run.pk)
    run.refresh_from_db()
    return run


def perform(run_id: UUID) -> None:
    """Make a run that was asked for, unless somebody is at it or has been."""
    with _run_lock(run_id) as is_ours:
        if is_ours:
            _run_checks(run_id)


def maintain() -> None:
    """Hand what has not begun to a worker once more, and end what has lost its maker."""
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
    """Hand a run to a worker by a message, which may be lost: beat sees to it again."""
    try:
        with connection_with_timeouts(settings.REDIS_URL) as valkey:
            expires = settings.RECONCILE_MESSAGE_SECONDS
            current_app.send_task(TASK, (str(run_id),), connection=valkey, retry=False, expires=expires)
    except Exception as error:  # whatever it is, the run waits a little longer
        _log.warning("reconcile_put_off", run=str(run_id), error=str(error))


def _run_checks(run_id: UUID) -> None:
    """Run every check in one snapshot, and note each verdict at once, where others can see it."""
    if not ReconcileRun.objects.unfinished().filter(pk=run_id, started_at=None).update(started_at=Now()):
        return
    with _second_connection() as cursor:
        try:
            with checks.snapshot() as snapshot_cursor:
                for finding in checks.findings(snapshot_cursor):
                    cursor.execute(
                        _ADD_FINDING, {"id": run_id, "finding": msgspec.json.encode(asdict(finding)).decode()}
                    )
        except BaseException as error:  # Ctrl-C, too
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
    """Hold the run's lock in here, if nobody else does; whether we do."""
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
    """The end of its id, which is random, as a positive integer of PostgreSQL."""
    return run_id.int % 0x7FFFFFFF + 1


@contextmanager
def _second_connection() -> Iterator[CursorWrapper]:
    """A second connection, whose statements are committed one by one: the first has the snapshot open."""
    second = connection.copy()
    try:
        with second.cursor() as cursor:
            yield cursor
    finally:
        second.close()
