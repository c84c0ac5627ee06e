"""Tells the dispatcher that something is due: a hint, left to a thread of its own after the commit, that may be lost.

Whoever asks only sets a flag, so nothing waits for Valkey. Beat starts the dispatcher every second in any case.
"""

import threading
import time

import structlog
from celery import current_app
from django.conf import settings
from kombu import Connection

TASK = "webhooks.tasks.deliver"

_log = structlog.get_logger(__name__)
_asked = threading.Event()
_start = threading.Lock()
_thread: threading.Thread | None = None


def ask() -> None:
    """Have the dispatcher woken soon; however often this is asked meanwhile, it is done once."""
    global _thread
    _asked.set()
    if _thread is None or not _thread.is_alive():  # the first time in this process, which may be a fork
        with _start:
            if _thread is None or not _thread.is_alive():
                _thread = threading.Thread(target=_ring_when_asked, name="wakeup", daemon=True)
                _thread.start()


def _ring_when_asked() -> None:
    patience = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), settings.WEBHOOK_WAKE_UP_TIMEOUT_SECONDS)
    while True:
        try:
            with current_app.connection_for_write(transport_options=patience) as connection:
                while _asked.wait():
                    _asked.clear()
                    _ring(connection)
                    time.sleep(settings.WEBHOOK_WAKE_UP_PAUSE_SECONDS)
        except Exception as error:  # whatever it is: this hint is lost, the next one gets a new connection
            _log.warning("wake_up_lost", error=str(error))
            time.sleep(settings.WEBHOOK_WAKE_UP_PAUSE_SECONDS)


def _ring(connection: Connection) -> None:
    for shard in range(settings.WEBHOOK_SHARDS):
        current_app.send_task(
            TASK, (shard,), connection=connection, retry=False, expires=settings.WEBHOOK_MESSAGE_SECONDS
        )
