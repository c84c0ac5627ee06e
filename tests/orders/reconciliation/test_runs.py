"""Runs of the reconciliation are kept, told while they are made, and always end, whatever befalls who makes them."""

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
from tests.trading import PATIENCE_SECONDS, in_thread

pytestmark = pytest.mark.django_db(transaction=True)

OLGA = Actor(ActorKind.USER, "olga", "10.0.0.9", "request-1")
CHECKS = list(checks.CHECKS)
CASH = "cash is what came in, plus sales, less purchases"
DELIVERIES = "every delivery is of an event and a subscription that exist"
BEFORE_DELIVERIES = CHECKS.index(DELIVERIES)


def as_it_is(run: ReconcileRun) -> ReconcileRun:
    return ReconcileRun.objects.get(pk=run.pk)


def ended(run: ReconcileRun) -> ReconcileRun:
    """The run, once it has ended."""
    assert wait_until(lambda: as_it_is(run).finished_at is not None, PATIENCE_SECONDS)
    return as_it_is(run)


def execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


@contextmanager
def deliveries_locked() -> Iterator[None]:
    """In here the check of the deliveries waits, and those after it, until it has waited too long for a lock."""
    with transaction.atomic():
        execute("LOCK TABLE webhooks_delivery IN ACCESS EXCLUSIVE MODE")
        yield


def test_a_worker_makes_the_run_that_was_asked_for(celery: Celery) -> None:
    celery.worker().start()

    asked = runs.start(by=OLGA, reason="end of the day")
    run = ended(asked)

    assert (asked.state, run.state) == (RunState.WAITING, RunState.AGREES)
    assert (run.asked_by, run.checks, run.differences, run.error) == ("olga", len(CHECKS), 0, "")
    assert [(finding["check"], finding["count"]) for finding in run.findings] == [(check, 0) for check in CHECKS]
    assert run.started_at is not None
    assert run.finished_at is not None
    assert run.asked_at <= run.started_at <= run.finished_at
    assert list(AuditEntry.objects.values_list("actor", "address", "request_id", "action", "subject", "reason")) == [
        ("olga", "10.0.0.9", "request-1", "reconcile.start", str(run.pk), "end of the day")
    ]


def test_a_broken_balance_is_found_and_told(celery: Celery) -> None:
    trading.broker("alice")
    execute("UPDATE exchange_broker SET cash = cash + 0.0001 WHERE id = 'alice'")
    celery.worker().start()

    run = ended(runs.start(by=OLGA))

    assert (run.state, run.differences) == (RunState.DIFFERS, 1)
    assert [(finding["check"], finding["examples"]) for finding in run.findings if finding["count"]] == [
        (CASH, ["alice has 1000000.0001, journal says 1000000.0000"])
    ]
    execute("UPDATE exchange_broker SET cash = cash - 0.0001 WHERE id = 'alice'")


def test_beat_sees_to_a_run_whose_message_was_lost(celery: Celery, settings: Settings) -> None:
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    run = runs.start(by=OLGA)

    start_all(celery.worker(), celery.beat())

    assert ended(run).state == RunState.AGREES


def test_progress_is_seen_at_once_and_a_killed_worker_ends_the_run(celery: Celery) -> None:
    worker = celery.worker()
    worker.start()
    with deliveries_locked():
        run = in_thread(partial(runs.start, by=OLGA)).result(PATIENCE_SECONDS)
        assert wait_until(lambda: len(as_it_is(run).findings) == BEFORE_DELIVERIES, PATIENCE_SECONDS)
        in_thread(runs.tend).result(PATIENCE_SECONDS)
        assert as_it_is(run).state == RunState.RUNNING
        worker.kill()

    start_all(celery.worker("another"), celery.beat())
    run = ended(run)

    assert (run.state, run.error) == (RunState.BROKE_OFF, runs.ABANDONED)
    assert len(run.findings) == BEFORE_DELIVERIES


def test_one_at_a_time(celery: Celery) -> None:
    def attempt() -> ReconcileRun | None:
        try:
            return runs.start(by=OLGA)
        except ReconcileUnderWay:
            return None

    with transaction.atomic():
        execute(f"SELECT pg_advisory_xact_lock({runs._LOCKS}, {runs._ASKING})")
        asking = [in_thread(attempt) for _ in range(2)]
        assert wait_until(lambda: waiting_for_locks() == 2, PATIENCE_SECONDS)
    started = [each.result(PATIENCE_SECONDS) for each in asking]

    assert sorted(started, key=lambda run: run is None) == [ReconcileRun.objects.get(), None]
    assert AuditEntry.objects.count() == 1


def waiting_for_locks() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return int(cursor.fetchone()[0])


def test_a_run_that_lost_its_maker_stands_in_nobodys_way(celery: Celery) -> None:
    lost = runs.start(by=OLGA)
    ReconcileRun.objects.update(started_at=lost.asked_at)

    runs.start(by=OLGA)

    assert as_it_is(lost).error == runs.ABANDONED


def test_a_run_that_somebody_makes_is_nobody_elses(celery: Celery) -> None:
    run = runs.start(by=OLGA)
    with deliveries_locked():
        making = in_thread(partial(runs.perform, run.pk))
        assert wait_until(lambda: len(as_it_is(run).findings) == BEFORE_DELIVERIES, PATIENCE_SECONDS)
        in_thread(partial(runs.perform, run.pk)).result(PATIENCE_SECONDS)
        assert as_it_is(run).state == RunState.RUNNING
    making.result(PATIENCE_SECONDS)

    made = as_it_is(run)
    runs.perform(run.pk)

    assert made.state == RunState.AGREES
    assert as_it_is(run).findings == made.findings


def test_a_run_that_somebody_is_about_to_make_is_nobody_elses(celery: Celery) -> None:
    run = runs.start(by=OLGA)
    with runs._held(run.pk) as is_ours:
        in_thread(partial(runs.perform, run.pk)).result(PATIENCE_SECONDS)

    assert is_ours
    assert as_it_is(run).state == RunState.WAITING


def test_a_check_that_fails_ends_the_run(celery: Celery) -> None:
    run = runs.start(by=OLGA)

    with deliveries_locked(), pytest.raises(OperationalError):
        in_thread(partial(runs.perform, run.pk)).result(PATIENCE_SECONDS)

    failed = as_it_is(run)
    assert (failed.state, failed.error) == (RunState.BROKE_OFF, "canceling statement due to lock timeout")
    assert len(failed.findings) == BEFORE_DELIVERIES
    assert ReconcileRun.objects.under_way().count() == 0


def test_the_commands_runs_are_kept_too_whatever_is_under_way(celery: Celery) -> None:
    waiting = runs.start(by=OLGA)

    call_command("reconcile", "--timings")

    kept = ReconcileRun.objects.exclude(pk=waiting.pk).get()
    assert (kept.asked_by, kept.state, len(kept.findings)) == ("manage.py reconcile", RunState.AGREES, len(CHECKS))
    assert as_it_is(waiting).state == RunState.WAITING
    assert AuditEntry.objects.filter(actor_kind=ActorKind.COMMAND, subject=str(kept.pk)).count() == 1


def test_a_worker_gives_it_time() -> None:
    assert tasks.run_reconcile.time_limit == settings.RECONCILE_TASK_SECONDS
