"""Celery's real processes against the test database, for tests of what they do and of what happens when one dies.

They are started as `make run` starts them. The messages of one test never reach the next: Valkey is emptied before the
first process starts and after the last has ended, which is before the test's tables are emptied. A process lives no
longer than the thread that started it.
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
    """A worker or beat; `start` returns once it is at work."""

    child: Child
    at_work: bytes  # what its log says then
    _log_read_to: int = 0

    def start(self) -> None:
        start_all(self)

    def launch(self) -> None:
        """Start without waiting."""
        self._log_read_to = len(self.log)
        self.child.start()

    def wait_until_at_work(self) -> None:
        def is_at_work() -> bool:
            return self.at_work in self.log[self._log_read_to :]

        assert wait_until(lambda: is_at_work() or not self.child.is_running(), START_SECONDS), self.last_words()
        assert is_at_work(), self.last_words()

    def stop(self) -> None:
        """Tell it to stop, as an operator does; it must not need to be forced."""
        asked = time.monotonic()
        self.child.stop()
        assert time.monotonic() - asked < self.child.grace_seconds, self.last_words()

    def kill(self) -> None:
        """End it and every process it started, without a warning."""
        self.child.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    @property
    def log(self) -> bytes:
        return self.child.log.read_bytes() if self.child.log.exists() else b""

    def last_words(self) -> str:
        return self.log[-4_000:].decode(errors="replace")


def start_all(*processes: CeleryProcess) -> None:
    """Start them side by side, for each takes seconds, and wait until all are at work."""
    for process in processes:
        process.launch()
    for process in processes:
        process.wait_until_at_work()


def worker(log: Path, *, name: str = "worker", redis_url: str | None = None) -> CeleryProcess:
    """The worker of everything but webhooks, not started yet."""
    return _worker(log, redis_url, ["-Q", "celery", "-n", f"{name}@%h"])


def webhook_worker(log: Path, *, name: str = "webhooks", redis_url: str | None = None) -> CeleryProcess:
    """The worker that sends webhooks, not started yet."""
    return _worker(log, redis_url, ["-Q", "webhooks", "-n", f"{name}@%h", "--pool", "threads"])


def beat(log: Path, *, redis_url: str | None = None) -> CeleryProcess:
    """Beat, not started yet."""
    arguments = ["beat", "--scheduler", "celery.beat.Scheduler", "--pidfile="]
    return _process(log, redis_url, arguments, at_work=b"Sending due task")


def _worker(log: Path, redis_url: str | None, arguments: Sequence[str]) -> CeleryProcess:
    return _process(log, redis_url, ["worker", *arguments, "-c", "2", "--without-mingle"], at_work=b" ready.")


def _process(log: Path, redis_url: str | None, arguments: Sequence[str], at_work: bytes) -> CeleryProcess:
    argv = [sys.executable, "-m", "celery", "-A", "config", *arguments, "-l", "INFO"]
    child = Child(log.stem, argv, log=log, env=environment(redis_url), cwd=ROOT, grace_seconds=GRACE_SECONDS)
    return CeleryProcess(child, at_work)


def environment(redis_url: str | None = None) -> dict[str, str]:
    """What our processes are told: the database of this test session, and its Valkey unless another one is named."""
    base, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    return os.environ | {
        "DATABASE_URL": f"{base}/{connection.settings_dict['NAME']}",
        "REDIS_URL": redis_url or os.environ["REDIS_URL"],
        "WEBHOOK_ADDRESSES": "local",
    }


@dataclass(slots=True)
class Celery:
    """The processes of one test, which end with it."""

    folder: Path
    redis_url: str
    made: list[CeleryProcess] = field(default_factory=list)

    def worker(self, name: str = "worker") -> CeleryProcess:
        return self._make(worker(self._log(name), name=name, redis_url=self.redis_url))

    def webhook_worker(self, name: str = "webhooks") -> CeleryProcess:
        return self._make(webhook_worker(self._log(name), name=name, redis_url=self.redis_url))

    def beat(self, name: str = "beat") -> CeleryProcess:
        return self._make(beat(self._log(name), redis_url=self.redis_url))

    def _make(self, process: CeleryProcess) -> CeleryProcess:
        self.made.append(process)
        return process

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


@contextmanager
def celery(folder: Path, redis_url: str) -> Iterator[Celery]:
    """Processes that find no message of others in their Valkey, and leave none."""
    _empty(redis_url)
    processes = Celery(folder, redis_url)
    try:
        yield processes
    finally:
        for process in processes.made:
            process.kill()
        _empty(redis_url)


def _empty(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
