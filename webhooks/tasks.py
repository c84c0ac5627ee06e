"""What sends the deliveries: started by a hint after each commit, and by beat every second in case one was lost.

And what drops the old answers to them, which is none of the dispatching workers' business.
"""

from typing import Any

import psycopg
import structlog
from celery import shared_task
from celery.signals import worker_shutting_down

from exchange import heartbeat
from webhooks import dispatcher, retention
from webhooks.wakeup import TASK

_log = structlog.get_logger(__name__)


@shared_task(name=TASK, acks_late=False)  # a message lost is as good as one that never came
def deliver(shard: int) -> None:
    """Send what is due in one shard.

    While one thread sends, others are asked to all the same: that is this worker's heartbeat.
    """
    heartbeat.mark(heartbeat.WEBHOOKS)
    try:
        dispatcher.drain(shard)
    except psycopg.OperationalError as error:
        _log.warning("deliveries_put_off", shard=shard, error=str(error))


@shared_task
def drop_old() -> None:
    """Drop what is no longer kept."""
    retention.delete_old()


@worker_shutting_down.connect
def stop(**_: Any) -> None:
    """A worker that was told to stop finishes what is on its way, and claims nothing more."""
    dispatcher.stop()
