"""Whether the processes are alive: each kind leaves a mark in Valkey, and `/readyz` tells how old two of them are.

The age is measured by Valkey alone, as the time a key's expiry has run: no two clocks are ever compared.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import redis
from celery import shared_task
from celery.signals import after_task_publish
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

BEAT, WORKER = "bourse:heartbeat:beat", "bourse:heartbeat:worker"
WEB, WEBHOOKS = "bourse:heartbeat:web", "bourse:heartbeat:webhooks"
REMEMBERED_MS = 24 * 60 * 60 * 1000  # an older mark reads as none
TASK = "exchange.heartbeat.record"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What Valkey knows; an age is None when there is no mark, or nobody to ask."""

    valkey: bool
    beat_age_seconds: float | None
    worker_age_seconds: float | None
    web_age_seconds: float | None = None
    webhooks_age_seconds: float | None = None


def read() -> Heartbeat:
    """The marks' ages now, within `VALKEY_TIMEOUT_SECONDS`; never an exception."""
    try:
        with _client().pipeline(transaction=False) as pipeline:
            for key in (BEAT, WORKER, WEB, WEBHOOKS):
                pipeline.pttl(key)
            ages = map(_age, pipeline.execute())
    except redis.RedisError:
        return Heartbeat(valkey=False, beat_age_seconds=None, worker_age_seconds=None)
    return Heartbeat(True, *ages)


@shared_task(name=TASK)
def record() -> None:
    """Sent by beat and run by a worker: that it runs is the message."""
    _mark(WORKER)


def mark(key: str) -> None:
    """Leave a mark from what does not depend on Valkey, and goes on without."""
    with suppress(redis.RedisError):
        _mark(key)


@after_task_publish.connect(sender=TASK)
def _record_beat(**_: Any) -> None:
    _mark(BEAT)


def _mark(key: str) -> None:
    _client().set(key, 1, px=REMEMBERED_MS)


def _age(remaining_ms: int) -> float | None:
    return (REMEMBERED_MS - remaining_ms) / 1000 if remaining_ms >= 0 else None


@cache
def _client() -> redis.Redis:
    """One client per process; its one retry is for a connection that Valkey's restart left behind."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=settings.VALKEY_TIMEOUT_SECONDS,
        socket_connect_timeout=settings.VALKEY_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1),
    )
