"""Timers of the workers: deliveries and expiries also run without a message, so that both continue without Valkey.

Celery and beat remain the normal way: beat sends a message every second, and a timer comes after a few.
"""

import threading
from collections.abc import Callable
from functools import partial

import structlog
from billiard import current_process
from celery import current_app
from celery.signals import worker_init, worker_process_init, worker_shutdown
from django.conf import settings
from django.db import connections

from orders.tasks import sweep_expired
from webhooks import dispatcher
from webhooks.wakeup import QUEUE

_log = structlog.get_logger(__name__)
_timers: "list[WorkerTimer]" = []


class WorkerTimer(threading.Thread):
    """Thread that calls a function every `WORKER_TIMER_SECONDS`, as a message would."""

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self._function = function
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(settings.WORKER_TIMER_SECONDS):
            try:
                self._function()
            except Exception as error:  # on any error, the next run tries again
                _log.warning("timed_run_failed", timer=self.name, error=str(error))
            finally:
                connections.close_all()

    def stop(self) -> None:
        """Wait until the current run has ended, and start no other."""
        self._stopping.set()
        self.join()


@worker_init.connect
def start_deliveries(**_: object) -> None:
    """Start the timers of the webhook worker, which uses threads. They need no connection to Valkey."""
    if QUEUE in current_app.amqp.queues.consume_from:
        for shard in range(settings.WEBHOOK_SHARDS):
            _start(f"deliver-{shard}", partial(dispatcher.drain, shard))


@worker_process_init.connect
def start_expiries(**_: object) -> None:
    """Start the timer of the other worker in the first of its processes. Celery replaces that process if it ends."""
    if getattr(current_process(), "index", 0) == 0:
        _start("sweep_expired", sweep_expired)


@worker_shutdown.connect
def stop(**_: object) -> None:
    """Let the timers end after the deliveries in flight."""
    for timer in _timers:
        timer.stop()


def _start(name: str, function: Callable[[], object]) -> None:
    timer = WorkerTimer(name, function)
    _timers.append(timer)
    timer.start()
