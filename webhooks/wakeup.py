"""Wake-up of the dispatcher after a commit: a message to its Celery queue, sent by a background thread.

A request only sets a flag, so it never waits for Valkey. A wake-up may be lost: beat starts the dispatcher every second
anyway.
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
_requested = threading.Event()
_start = threading.Lock()
_thread: threading.Thread | None = None


def request() -> None:
    """Request a wake-up soon. Requests until then share it.

    Never raises an exception, because the caller has already committed.
    """
    global _thread
    _requested.set()
    if _thread is None or not _thread.is_alive():  # the first request in this process
        with _start:
            if _thread is None or not _thread.is_alive():
                _thread = threading.Thread(target=_send_requested, name="wakeup", daemon=True)
                with suppress(RuntimeError):  # no thread could be started: this wake-up is lost
                    _thread.start()


def _send_requested() -> None:
    is_lost = False
    while True:
        try:
            with connection_with_timeouts(settings.REDIS_URL) as connection:
                while _requested.wait():
                    _requested.clear()
                    send(connection)
                    is_lost = False
                    time.sleep(settings.WEBHOOK_WAKE_UP_INTERVAL_SECONDS)
        except Exception as error:  # on any error, this wake-up is lost, and the next one gets a new connection
            if not is_lost:  # once per outage
                _log.warning("wake_up_lost", error=str(error))
            is_lost = True
            time.sleep(settings.WEBHOOK_WAKE_UP_INTERVAL_SECONDS)


def connection_with_timeouts(url: str) -> Connection:
    """Create a connection with short timeouts and without retries; kombu's default would retry for seconds."""
    timeouts = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), settings.WEBHOOK_WAKE_UP_TIMEOUT_SECONDS)
    connection: Connection = current_app.connection_for_write(url, transport_options={**timeouts, "max_retries": 0})
    return connection


def send(connection: Connection) -> None:
    """Send a wake-up for each shard, unless too many are waiting: with no worker, they would fill Valkey in hours."""
    valkey: redis.Redis = connection.default_channel.client  # type: ignore[attr-defined]  # Redis transport
    if valkey.llen(QUEUE) < settings.WEBHOOK_WAKE_UPS_QUEUED:
        for shard in range(settings.WEBHOOK_SHARDS):
            current_app.send_task(
                TASK, (shard,), connection=connection, retry=False, expires=settings.WEBHOOK_MESSAGE_SECONDS
            )
