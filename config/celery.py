"""The Celery application: what beat starts and when, and what worker processes must not share."""

import os
from typing import Any

from celery import Celery
from celery.signals import worker_before_create_process
from django.conf import settings
from django.db import connections

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

BEAT_MESSAGE_SECONDS = 10.0  # what no worker took in this time is dropped: beat has sent the next one long since

app = Celery("bourse", include=["exchange.heartbeat"])
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@app.on_after_configure.connect
def schedule(sender: Celery, **_: Any) -> None:
    """What beat sends; read late, because the settings are not there yet when this module is imported."""
    sender.conf.beat_schedule = {
        "heartbeat": _every(settings.HEARTBEAT_SECONDS, "exchange.heartbeat.record"),
        "sweep_expired": _every(settings.EXPIRY_SWEEP_SECONDS, "orders.tasks.sweep_expired"),
    }


def _every(seconds: float, task: str) -> dict[str, Any]:
    return {"task": task, "schedule": seconds, "options": {"expires": BEAT_MESSAGE_SECONDS}}


@worker_before_create_process.connect
def close_pools(**_: Any) -> None:
    """A fork would share the parent's connections, and two processes would talk over one socket."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        if hasattr(connection, "close_pool"):  # PostgreSQL's has; the type of all backends does not
            connection.close_pool()
