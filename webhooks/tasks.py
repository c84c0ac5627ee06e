"""Celery tasks: `deliver`, which has a worker of its own and is sent after commits and by beat, and retention."""

from typing import Any

import psycopg
import structlog
from celery import shared_task
from celery.signals import worker_shutting_down

from exchange import heartbeat
from webhooks import dispatcher, retention
from webhooks.wakeup import TASK

_log = structlog.get_logger(__name__)


@shared_task(name=TASK, acks_late=False)  # a lost message does no harm: beat sends the next one
def deliver(shard: int) -> None:
    """Send the due deliveries of a shard.

    Messages also arrive while another thread is sending; each serves as this worker's heartbeat.
    """
    heartbeat.mark(heartbeat.WEBHOOKS)
    try:
        dispatcher.drain(shard)
    except psycopg.OperationalError as error:
        _log.warning("deliveries_put_off", shard=shard, error=str(error))


@shared_task
def drop_old() -> None:
    """Delete old responses and health counts."""
    retention.delete_old()


@worker_shutting_down.connect
def stop(**_: Any) -> None:
    """Let a worker that shuts down finish the deliveries in flight, and claim no more."""
    dispatcher.stop()
