"""The Celery application: what beat starts and when, and what worker processes must not share."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery, schedules
from celery.beat import Service
from celery.signals import beat_init, worker_before_create_process
from django.conf import settings
from django.db import connections
from kombu.transport import redis

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.backoffice")

# What no worker took in this time is dropped: beat has sent the next one long since. Beat's clock says when a message
# ends and the worker's says when that is, so this is also how far a worker's may be ahead before it drops everything.
BEAT_MESSAGE_SECONDS = 60.0

# A message is a hint that beat repeats, so Valkey need not remember the one in hand. If it did, kombu 5.7.0 would end a
# worker that has one in hand when Valkey goes away: it then acknowledges over a connection that it has forgotten.
redis.Channel.ack_emulation = redis.Channel.do_restore = False

_started_at, _started = datetime.now(UTC), time.monotonic()

app = Celery("bourse", include=["exchange.heartbeat"])
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@app.on_after_configure.connect
def schedule(sender: Celery, **_: Any) -> None:
    """What beat sends; read late, because the settings are not there yet when this module is imported."""
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
    every = schedules.schedule(seconds, nowfun=steady_now)
    return {"task": task, "args": arguments, "schedule": every, "options": {"expires": BEAT_MESSAGE_SECONDS}}


def steady_now() -> datetime:
    """The time when this process started plus the time since: beat's only clock, which never steps.

    By the wall clock it would send nothing for an hour after the machine's was set back an hour.
    """
    return _started_at + timedelta(seconds=time.monotonic() - _started)


@beat_init.connect
def stop_at_once(sender: Service, **_: Any) -> None:
    """Celery 5.7.0's own handler closes the connection that beat may be sending over; its failure hides the exit."""

    def stop(*_: Any) -> None:
        sender.stop()  # should this exit be lost too
        raise SystemExit

    for number in [signal.SIGTERM, signal.SIGINT]:
        signal.signal(number, stop)


@worker_before_create_process.connect
def close_pools(**_: Any) -> None:
    """A fork would share the parent's connections, and two processes would talk over one socket."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        if hasattr(connection, "close_pool"):  # PostgreSQL's has; the type of all backends does not
            connection.close_pool()
