"""Heartbeats: each kind of process sets a key in Valkey, and `/readyz` reports the age of two of them.

The age is the elapsed part of the key's expiry, so that only Valkey's clock is used.
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
EXPIRY_MS = 24 * 60 * 60 * 1000  # an older heartbeat counts as none
TASK = "exchange.heartbeat.record"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Ages of the heartbeats. An age is None without a heartbeat, or if Valkey is unreachable."""

    valkey: bool
    beat_age_seconds: float | None
    worker_age_seconds: float | None
    web_age_seconds: float | None = None
    webhooks_age_seconds: float | None = None


def read() -> Heartbeat:
    """Read the current ages, limited by `VALKEY_TIMEOUT_SECONDS`. Never raises an exception."""
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
    """Record a worker's heartbeat. Beat sends this task."""
    _mark(WORKER)


def mark(key: str) -> None:
    """Record a heartbeat, ignoring errors: the process works without Valkey."""
    with suppress(redis.RedisError):
        _mark(key)


@after_task_publish.connect(sender=TASK)
def _record_beat(**_: Any) -> None:
    _mark(BEAT)


def _mark(key: str) -> None:
    _client().set(key, 1, px=EXPIRY_MS)


def _age(remaining_ms: int) -> float | None:
    return (EXPIRY_MS - remaining_ms) / 1000 if remaining_ms >= 0 else None


@cache
def _client() -> redis.Redis:
    """Return this process's client. It retries once, in case Valkey was restarted since the last use."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=settings.VALKEY_TIMEOUT_SECONDS,
        socket_connect_timeout=settings.VALKEY_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1),
    )
