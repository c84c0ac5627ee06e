"""Tells the dispatcher that something is due: a hint, left to a thread of its own after the commit, that may be lost.

Whoever asks only sets a flag, so nothing waits for Valkey. Beat starts the dispatcher every second in any case.
"""

import threading
import time
from contextlib import suppress

import redis
import structlog
from celery import current_app
from django.conf import settings
from kombu import Connection

TASK, QUEUE = "webhooks.tasks.deliver", "webhooks"

_log = structlog.get_logger(__name__)
_asked = threading.Event()
_start = threading.Lock()
_thread: threading.Thread | None = None


def ask() -> None:
    """Have the dispatcher woken soon; however often this is asked meanwhile, it is done once.

    It never fails: who asks has committed.
    """
    global _thread
    _asked.set()
    if _thread is None or not _thread.is_alive():  # the first time in this process
        with _start:
            if _thread is None or not _thread.is_alive():
                _thread = threading.Thread(target=_ring_when_asked, name="wakeup", daemon=True)
                with suppress(RuntimeError):  # no more threads: this hint is lost
                    _thread.start()


def _ring_when_asked() -> None:
    is_lost = False
    while True:
        try:
            with impatient_connection(settings.REDIS_URL) as connection:
                while _asked.wait():
                    _asked.clear()
                    ring(connection)
                    is_lost = False
                    time.sleep(settings.WEBHOOK_WAKE_UP_PAUSE_SECONDS)
        except Exception as error:  # whatever it is: this hint is lost, the next one gets a new connection
            if not is_lost:  # once per outage
                _log.warning("wake_up_lost", error=str(error))
            is_lost = True
            time.sleep(settings.WEBHOOK_WAKE_UP_PAUSE_SECONDS)


def impatient_connection(url: str) -> Connection:
    """One that gives up at the first failure, or when nothing comes for a moment; kombu would try for seconds."""
    patience = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), settings.WEBHOOK_WAKE_UP_TIMEOUT_SECONDS)
    connection: Connection = current_app.connection_for_write(url, transport_options={**patience, "max_retries": 0})
    return connection


def ring(connection: Connection) -> None:
    """Send a hint, unless so many lie there that nobody can be taking them: they would fill Valkey in hours."""
    valkey: redis.Redis = connection.default_channel.client  # type: ignore[attr-defined]  # of this transport it has one
    if valkey.llen(QUEUE) < settings.WEBHOOK_HINTS_WAITING:
        for shard in range(settings.WEBHOOK_SHARDS):
            current_app.send_task(
                TASK, (shard,), connection=connection, retry=False, expires=settings.WEBHOOK_MESSAGE_SECONDS
            )
