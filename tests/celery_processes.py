"""Celery's real processes on the test database, for tests of their work and of their failures.

They are started as in `make run`. No message of a test reaches the next one: Valkey is emptied before the first process
starts and after the last has ended, before the test's tables are emptied. A process ends with the thread that started
it.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from django.db import connection

from config.local.processes import Child, wait_until
from tests.live import ROOT

START_SECONDS = 30.0
GRACE_SECONDS = 15.0


@dataclass(slots=True)
class CeleryProcess:
    """A worker or beat; `start` returns when it is ready."""

    child: Child
    ready_text: bytes  # in its log, as soon as it is ready
    _log_read_to: int = 0

    def start(self) -> None:
        start_all(self)

    def launch(self) -> None:
        """Start without waiting."""
        self._log_read_to = len(self.log)
        self.child.start()

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            return self.ready_text in self.log[self._log_read_to :]

        assert wait_until(lambda: is_ready() or not self.child.is_running(), START_SECONDS), self.end_of_log()
        assert is_ready(), self.end_of_log()

    def stop(self) -> None:
        """Stop it with its signal, as an operator does; it must end within its grace period."""
        started = time.monotonic()
        self.child.stop()
        assert time.monotonic() - started < self.child.grace_seconds, self.end_of_log()

    def kill(self) -> None:
        """Kill it with every process it started."""
        self.child.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    @property
    def log(self) -> bytes:
        return self.child.log.read_bytes() if self.child.log.exists() else b""

    def end_of_log(self) -> str:
        return self.log[-4_000:].decode(errors="replace")


def start_all(*processes: CeleryProcess) -> None:
    """Start processes concurrently, because each takes seconds, and wait until all are ready."""
    for process in processes:
        process.launch()
    for process in processes:
        process.wait_until_ready()


def worker(log: Path, *, name: str = "worker", redis_url: str | None = None) -> CeleryProcess:
    """Return the worker of all tasks except webhooks, not started yet."""
    return _worker(log, redis_url, ["-Q", "celery", "-n", f"{name}@%h"])


def webhook_worker(log: Path, *, name: str = "webhooks", redis_url: str | None = None) -> CeleryProcess:
    """Return the worker that sends webhooks, not started yet."""
    return _worker(log, redis_url, ["-Q", "webhooks", "-n", f"{name}@%h", "--pool", "threads"])


def beat(log: Path, *, redis_url: str | None = None) -> CeleryProcess:
    """Return beat, not started yet."""
    arguments = ["beat", "--scheduler", "celery.beat.Scheduler", "--pidfile="]
    return _process(log, redis_url, arguments, ready_text=b"Sending due task")


def _worker(log: Path, redis_url: str | None, arguments: Sequence[str]) -> CeleryProcess:
    return _process(log, redis_url, ["worker", *arguments, "-c", "2", "--without-mingle"], ready_text=b" ready.")


def _process(log: Path, redis_url: str | None, arguments: Sequence[str], ready_text: bytes) -> CeleryProcess:
    argv = [sys.executable, "-m", "celery", "-A", "config", *arguments, "-l", "INFO"]
    child = Child(log.stem, argv, log=log, env=environment(redis_url), cwd=ROOT, grace_seconds=GRACE_SECONDS)
    return CeleryProcess(child, ready_text)


def environment(redis_url: str | None = None) -> dict[str, str]:
    """Return the environment: the database of this test session, and by default its Valkey."""
    base, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    return os.environ | {
        "DATABASE_URL": f"{base}/{connection.settings_dict['NAME']}",
        "REDIS_URL": redis_url or os.environ["REDIS_URL"],
        "WEBHOOK_ADDRESSES": "local",
    }


@dataclass(slots=True)
class Celery:
    """The processes of one test, which are killed at its end."""

    folder: Path
    redis_url: str
    started: list[CeleryProcess] = field(default_factory=list)

    def worker(self, name: str = "worker") -> CeleryProcess:
        return self._make(worker(self._log(name), name=name, redis_url=self.redis_url))

    def webhook_worker(self, name: str = "webhooks") -> CeleryProcess:
        return self._make(webhook_worker(self._log(name), name=name, redis_url=self.redis_url))

    def beat(self, name: str = "beat") -> CeleryProcess:
        return self._make(beat(self._log(name), redis_url=self.redis_url))

    def _make(self, process: CeleryProcess) -> CeleryProcess:
        self.started.append(process)
        return process

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


@contextmanager
def celery(folder: Path, redis_url: str) -> Iterator[Celery]:
    """Provide processes with an empty Valkey, and empty it at the end."""
    _empty(redis_url)
    processes = Celery(folder, redis_url)
    try:
        yield processes
    finally:
        for process in processes.started:
            process.kill()
        _empty(redis_url)


def _empty(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
