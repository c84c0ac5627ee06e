"""The Celery application, with beat's schedule."""

import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery, schedules
from celery.beat import Service
from celery.signals import beat_init, worker_before_create_process, worker_ready
from django.conf import settings
from django.db import connections
from kombu.transport import redis

from exchange.watchdog import Watchdog

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.backoffice")

# A message that no worker received in this time is dropped; beat has sent the next one by then. Beat's clock sets the
# expiry and the worker's clock checks it: a worker whose clock is ahead by more drops every message.
BEAT_MESSAGE_SECONDS = 60.0

# Beat repeats every message, so Valkey need not store unacknowledged ones. Otherwise, if Valkey stops, kombu 5.7.0 ends
# a worker that is processing a message: it acknowledges over a connection that no longer exists.
redis.Channel.ack_emulation = redis.Channel.do_restore = False

_started_at, _started = datetime.now(UTC), time.monotonic()

app = Celery("bourse", include=["exchange.heartbeat", "config.worker_timers"])
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@app.on_after_configure.connect
def schedule(sender: Celery, **_: Any) -> None:
    """Set beat's schedule, once the settings can be read, which is after the import of this module."""
    sender.conf.beat_schedule = {
        "heartbeat": _every(settings.HEARTBEAT_SECONDS, "exchange.heartbeat.record"),
        "clean_up": _every(settings.CLEAN_UP_EVERY_SECONDS, "backoffice.tasks.clean_up"),
        "sweep_expired": _every(settings.EXPIRY_SWEEP_SECONDS, "orders.tasks.sweep_expired"),
        "drop_old": _every(settings.WEBHOOK_RETENTION_EVERY_SECONDS, "webhooks.tasks.drop_old"),
        "roll_up": _every(settings.BARS_EVERY_SECONDS, "orders.tasks.roll_up"),
        "drop_rejects": _every(settings.REJECTION_RETENTION_EVERY_SECONDS, "exchange.tasks.drop_rejects"),
        "tend_reconcile_runs": _every(settings.RECONCILE_CHECK_EVERY_SECONDS, "orders.tasks.tend_reconcile_runs"),
        **{
            f"deliver-{shard}": _every(settings.WEBHOOK_DRAIN_EVERY_SECONDS, "webhooks.tasks.deliver", shard)
            for shard in range(settings.WEBHOOK_SHARDS)
        },
    }


def _every(seconds: float, task: str, *arguments: Any) -> dict[str, Any]:
    every = schedules.schedule(seconds, nowfun=monotonic_now)
    return {"task": task, "args": arguments, "schedule": every, "options": {"expires": BEAT_MESSAGE_SECONDS}}


def monotonic_now() -> datetime:
    """Return the start of this process plus the time since, as beat's clock.

    With the system clock, beat would send nothing for an hour after that clock was set back by an hour.
    """
    return _started_at + timedelta(seconds=time.monotonic() - _started)


@beat_init.connect
def stop_at_once(sender: Service, **_: Any) -> None:
    """Replace the signal handler of Celery 5.7.0.

    It closes the connection that beat may be using, and the resulting error prevents the exit.
    """

    def stop(*_: Any) -> None:
        sender.stop()  # in case SystemExit is caught
        raise SystemExit

    for number in [signal.SIGTERM, signal.SIGINT]:
        signal.signal(number, stop)


@worker_ready.connect
@beat_init.connect
def start_watchdog(**_: Any) -> None:
    """Have this process replaced if it stops responding. A frozen dispatcher would keep the lock of its shard."""
    watchdog = Watchdog(settings.WATCHDOG_SECONDS)
    threading.Thread(target=watchdog.run, name="watchdog", daemon=True).start()


@worker_before_create_process.connect
def close_pools(**_: Any) -> None:
    """Close the parent's connections before a fork, so that no two processes share a socket."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        if hasattr(connection, "close_pool"):  # only PostgreSQL's backend has a pool
            connection.close_pool()
