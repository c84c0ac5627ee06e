"""Reconciliation runs are stored, show their progress and always end, even if their worker is killed."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import OperationalError, connection, transaction
from pytest_django import Settings

from config.local.processes import wait_until
from config.local.servers import free_port
from exchange.audit import Actor, ActorKind
from exchange.errors import ReconcileUnderWay
from exchange.models import AuditEntry
from orders import tasks
from orders.models import ReconcileRun, RunState
from orders.reconciliation import checks, runs
from tests import trading
from tests.celery_processes import Celery, start_all
from tests.trading import TIMEOUT_SECONDS, start_thread

pytestmark = pytest.mark.django_db(transaction=True)

OLGA = Actor(ActorKind.USER, "olga", "10.0.0.9", "request-1")
CHECKS = list(checks.CHECKS)
CASH = "cash equals transfers plus sales minus purchases"
DELIVERIES = "deliveries refer to existing events and subscriptions"
BEFORE_DELIVERIES = CHECKS.index(DELIVERIES)


def reloaded(run: ReconcileRun) -> ReconcileRun:
    return ReconcileRun.objects.get(pk=run.pk)


def wait_for_end(run: ReconcileRun) -> ReconcileRun:
    """Wait until the run has ended and return it."""
    assert wait_until(lambda: reloaded(run).finished_at is not None, TIMEOUT_SECONDS)
    return reloaded(run)


def execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


@contextmanager
def deliveries_locked() -> Iterator[None]:
    """Block the check of the deliveries, and the checks after it, until the lock timeout."""
    with transaction.atomic():
        execute("LOCK TABLE webhooks_delivery IN ACCESS EXCLUSIVE MODE")
        yield


def test_a_worker_executes_a_requested_run(celery: Celery) -> None:
    celery.worker().start()

    requested = runs.start(by=OLGA, reason="end of the day")
    run = wait_for_end(requested)

    assert (requested.state, run.state) == (RunState.WAITING, RunState.OK)
    assert (run.asked_by, run.checks, run.differences, run.error) == ("olga", len(CHECKS), 0, "")
    assert [(finding["check"], finding["count"]) for finding in run.findings] == [(check, 0) for check in CHECKS]
    assert run.started_at is not None
    assert run.finished_at is not None
    assert run.asked_at <= run.started_at <= run.finished_at
    assert list(AuditEntry.objects.values_list("actor", "address", "request_id", "action", "subject", "reason")) == [
        ("olga", "10.0.0.9", "request-1", "reconcile.start", str(run.pk), "end of the day")
    ]


def test_a_wrong_balance_is_found_and_reported(celery: Celery) -> None:
    trading.broker("alice")
    execute("UPDATE exchange_broker SET cash = cash + 0.0001 WHERE id = 'alice'")
    celery.worker().start()

    run = wait_for_end(runs.start(by=OLGA))

    assert (run.state, run.differences) == (RunState.DIFFERENCES, 1)
    assert [(finding["check"], finding["examples"]) for finding in run.findings if finding["count"]] == [
        (CASH, ["alice has 1000000.0001, journal says 1000000.0000"])
    ]
    execute("UPDATE exchange_broker SET cash = cash - 0.0001 WHERE id = 'alice'")


def test_beat_starts_a_run_whose_message_was_lost(celery: Celery, settings: Settings) -> None:
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    run = runs.start(by=OLGA)

    start_all(celery.worker(), celery.beat())

    assert wait_for_end(run).state == RunState.OK


def test_progress_is_visible_and_a_killed_worker_ends_the_run(celery: Celery) -> None:
    worker = celery.worker()
    worker.start()
    with deliveries_locked():
        run = start_thread(partial(runs.start, by=OLGA)).result(TIMEOUT_SECONDS)
        assert wait_until(lambda: len(reloaded(run).findings) == BEFORE_DELIVERIES, TIMEOUT_SECONDS)
        start_thread(runs.maintain).result(TIMEOUT_SECONDS)
        assert reloaded(run).state == RunState.RUNNING
        worker.kill()

    start_all(celery.worker("another"), celery.beat())
    run = wait_for_end(run)

    assert (run.state, run.error) == (RunState.INCOMPLETE, runs.ABANDONED)
    assert len(run.findings) == BEFORE_DELIVERIES


def test_only_one_run_starts_at_a_time(celery: Celery) -> None:
    def attempt() -> ReconcileRun | None:
        try:
            return runs.start(by=OLGA)
        except ReconcileUnderWay:
            return None

    with transaction.atomic():
        execute(f"SELECT pg_advisory_xact_lock({runs._LOCK_CLASS}, {runs._START_LOCK})")
        attempts = [start_thread(attempt) for _ in range(2)]
        assert wait_until(lambda: count_awaited_locks() == 2, TIMEOUT_SECONDS)
    started = [each.result(TIMEOUT_SECONDS) for each in attempts]

    assert sorted(started, key=lambda run: run is None) == [ReconcileRun.objects.get(), None]
    assert AuditEntry.objects.count() == 1


def count_awaited_locks() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return int(cursor.fetchone()[0])


def test_an_abandoned_run_does_not_block_the_next(celery: Celery) -> None:
    lost = runs.start(by=OLGA)
    ReconcileRun.objects.update(started_at=lost.asked_at)

    runs.start(by=OLGA)

    assert reloaded(lost).error == runs.ABANDONED


def test_a_running_run_is_not_executed_again(celery: Celery) -> None:
    run = runs.start(by=OLGA)
    with deliveries_locked():
        execution = start_thread(partial(runs.perform, run.pk))
        assert wait_until(lambda: len(reloaded(run).findings) == BEFORE_DELIVERIES, TIMEOUT_SECONDS)
        start_thread(partial(runs.perform, run.pk)).result(TIMEOUT_SECONDS)
        assert reloaded(run).state == RunState.RUNNING
    execution.result(TIMEOUT_SECONDS)

    finished = reloaded(run)
    runs.perform(run.pk)

    assert finished.state == RunState.OK
    assert reloaded(run).findings == finished.findings


def test_a_claimed_run_is_not_executed_again(celery: Celery) -> None:
    run = runs.start(by=OLGA)
    with runs._run_lock(run.pk) as is_ours:
        start_thread(partial(runs.perform, run.pk)).result(TIMEOUT_SECONDS)

    assert is_ours
    assert reloaded(run).state == RunState.WAITING


def test_a_failing_check_ends_the_run(celery: Celery) -> None:
    run = runs.start(by=OLGA)

    with deliveries_locked(), pytest.raises(OperationalError):
        start_thread(partial(runs.perform, run.pk)).result(TIMEOUT_SECONDS)

    failed = reloaded(run)
    assert (failed.state, failed.error) == (RunState.INCOMPLETE, "canceling statement due to lock timeout")
    assert len(failed.findings) == BEFORE_DELIVERIES
    assert ReconcileRun.objects.unfinished().count() == 0


def test_runs_of_the_command_are_stored_beside_a_waiting_run(celery: Celery) -> None:
    waiting = runs.start(by=OLGA)

    call_command("reconcile", "--timings")

    run = ReconcileRun.objects.exclude(pk=waiting.pk).get()
    assert (run.asked_by, run.state, len(run.findings)) == ("manage.py reconcile", RunState.OK, len(CHECKS))
    assert reloaded(waiting).state == RunState.WAITING
    assert AuditEntry.objects.filter(actor_kind=ActorKind.COMMAND, subject=str(run.pk)).count() == 1


def test_the_task_has_its_own_time_limit() -> None:
    assert tasks.run_reconcile.time_limit == settings.RECONCILE_TASK_SECONDS
