"""The Celery application: what beat starts and when, and what worker processes must not share."""

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery, schedules
from celery.signals import worker_before_create_process
from django.conf import settings
from django.db import connections

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

# What no worker took in this time is dropped: beat has sent the next one long since. Beat's clock says when a message
# ends and the worker's says when that is, so this is also how far a worker's may be ahead before it drops everything.
BEAT_MESSAGE_SECONDS = 60.0

_started_at, _started = datetime.now(UTC), time.monotonic()

app = Celery("bourse", include=["exchange.heartbeat"])
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@app.on_after_configure.connect
def schedule(sender: Celery, **_: Any) -> None:
    """What beat sends; read late, because the settings are not there yet when this module is imported."""
    sender.conf.beat_schedule = {
        "heartbeat": _every(settings.HEARTBEAT_SECONDS, "exchange.heartbeat.record"),
        "sweep_expired": _every(settings.EXPIRY_SWEEP_SECONDS, "orders.tasks.sweep_expired"),
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


@worker_before_create_process.connect
def close_pools(**_: Any) -> None:
    """A fork would share the parent's connections, and two processes would talk over one socket."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        if hasattr(connection, "close_pool"):  # PostgreSQL's has; the type of all backends does not
            connection.close_pool()
