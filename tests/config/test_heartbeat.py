"""Heartbeats of beat, the workers and the web processes."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.conf import settings
from django.test import override_settings

from config.celery import app
from config.local.servers import free_port
from exchange import heartbeat
from webhooks.tasks import deliver

OWN_DATABASE = 15


@pytest.fixture(autouse=True)
def _empty_valkey() -> Iterator[None]:
    """Use a separate Valkey database, because processes of other tests continue to write heartbeats to theirs."""
    server, _, _ = settings.REDIS_URL.rpartition("/")
    heartbeat._client.cache_clear()
    with override_settings(REDIS_URL=f"{server}/{OWN_DATABASE}"):
        client = heartbeat._client()
        client.flushdb()
        yield
        client.close()
        heartbeat._client.cache_clear()


def test_the_ages_are_unknown_without_heartbeats() -> None:
    assert heartbeat.read() == heartbeat.Heartbeat(valkey=True, beat_age_seconds=None, worker_age_seconds=None)


def test_sending_the_task_is_beats_heartbeat_and_running_it_the_workers() -> None:
    heartbeat.record.apply_async(expires=1)
    sent = heartbeat.read()
    heartbeat.record()
    ran = heartbeat.read()
    app.control.purge()
    app.pool.force_close_all()  # type: ignore[attr-defined]  # the stubs have another type of pool
    assert sent.beat_age_seconds is not None
    assert 0 <= sent.beat_age_seconds < 5
    assert sent.worker_age_seconds is None
    assert ran.worker_age_seconds is not None
    assert 0 <= ran.worker_age_seconds < 5


@pytest.mark.django_db(transaction=True)
def test_web_processes_and_the_webhook_worker_have_their_own_heartbeats() -> None:
    heartbeat.mark(heartbeat.WEB)
    read = heartbeat.read()
    assert read.web_age_seconds is not None
    assert 0 <= read.web_age_seconds < 5
    assert read.webhooks_age_seconds is None

    deliver(0)
    assert heartbeat.read().webhooks_age_seconds is not None


def test_a_heartbeat_without_valkey_is_skipped() -> None:
    with valkey_at(free_port()):
        heartbeat.mark(heartbeat.WEB)
    assert heartbeat.read().web_age_seconds is None


@contextmanager
def valkey_at(port: int) -> Iterator[None]:
    heartbeat._client().close()
    heartbeat._client.cache_clear()
    with override_settings(REDIS_URL=f"redis://127.0.0.1:{port}/0"):
        yield
        heartbeat._client().close()
        heartbeat._client.cache_clear()


def test_the_heartbeats_report_an_unavailable_valkey() -> None:
    with valkey_at(free_port()):
        assert heartbeat.read() == heartbeat.Heartbeat(valkey=False, beat_age_seconds=None, worker_age_seconds=None)


def test_reading_the_heartbeats_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, valkey_at(silent.getsockname()[1]):
        started = time.monotonic()
        assert not heartbeat.read().valkey
        assert time.monotonic() - started < 5 * settings.VALKEY_TIMEOUT_SECONDS  # two attempts


def test_beats_schedule_is_complete_and_every_message_expires() -> None:
    schedule = app.conf.beat_schedule
    assert {entry["task"]: entry["schedule"].seconds for entry in schedule.values()} == {
        "exchange.heartbeat.record": settings.HEARTBEAT_SECONDS,
        "orders.tasks.sweep_expired": settings.EXPIRY_SWEEP_SECONDS,
        "orders.tasks.roll_up": settings.BARS_EVERY_SECONDS,
        "backoffice.tasks.clean_up": settings.CLEAN_UP_EVERY_SECONDS,
        "webhooks.tasks.drop_old": settings.WEBHOOK_RETENTION_EVERY_SECONDS,
        "orders.tasks.tend_reconcile_runs": settings.RECONCILE_CHECK_EVERY_SECONDS,
        "exchange.tasks.drop_rejects": settings.REJECTION_RETENTION_EVERY_SECONDS,
        "webhooks.tasks.deliver": settings.WEBHOOK_DRAIN_EVERY_SECONDS,
    }
    assert all(entry["options"]["expires"] > 0 for entry in schedule.values())
