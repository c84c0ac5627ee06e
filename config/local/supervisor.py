"""Supervision of the exchange's processes: starts them in order, restarts those that end, and stops them in order.

The supervisor never listens on a port itself, so it survives when the process that listens on a port is killed.
"""

import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType

from config.local.processes import POLL_SECONDS, Child, LocalError, print_line

MIN_UPTIME_SECONDS = 1.0
CRASH_RESTART_DELAY_SECONDS = 2.0  # for a child that ended within MIN_UPTIME_SECONDS
LOG_BYTES_MAX = 50 * 1024 * 1024  # a larger log is rotated
LOG_FILES_KEPT = 10  # per log; `web.log.1` is the latest


class StopRequested(Exception):
    """A stop was requested during the start."""


class StopSignal:
    """Records a requested stop: Ctrl-C, SIGTERM, or a closed terminal (unless under nohup)."""

    def __init__(self) -> None:
        self.is_requested = False
        for number in [signal.SIGINT, signal.SIGTERM]:
            signal.signal(number, self._request)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.is_requested = True

    def raise_if_requested(self) -> None:
        """Raise `StopRequested` if a stop was requested."""
        if self.is_requested:
            raise StopRequested


def run_step(step: Child, stop: StopSignal, timeout_seconds: float | None) -> None:
    """Run a program to its end; raise `LocalError` if it fails."""
    step.start()
    deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
    try:
        while step.is_running() and time.monotonic() < deadline:
            stop.raise_if_requested()
            time.sleep(POLL_SECONDS)
        if step.exit_code != 0:
            raise LocalError(f"`{step.name}` failed: {step.last_log_line()} (log: {step.current_log})")
    finally:
        step.stop()


@dataclass(slots=True)
class SupervisedChild:
    """A child that is restarted when it ends."""

    child: Child
    _started_at: float = 0.0
    _start_at: float | None = None

    def start(self) -> None:
        self.child.start()
        self._started_at, self._start_at = time.monotonic(), None

    def restart_if_ended(self) -> None:
        """Check the child once: detect its end, or restart it after its delay."""
        now = time.monotonic()
        if self.child.is_running():
            return
        if self._start_at is None:
            log = self.child.current_log
            print_line(f"{self.child.name} ended (code {self.child.exit_code}); restarting it. Log: {log}")
            self.child.kill()  # the rest of its group may hold its port
            self._start_at = now + (CRASH_RESTART_DELAY_SECONDS if now - self._started_at < MIN_UPTIME_SECONDS else 0)
        if now >= self._start_at:
            self.start()


@dataclass(slots=True)
class Supervisor:
    """The supervised children, in the order of their start."""

    stop: StopSignal
    children: list[SupervisedChild] = field(default_factory=list)

    def supervise(self, child: Child, *, running: bool = False) -> None:
        """Restart this child when it ends, and start it unless it is `running`."""
        supervised = SupervisedChild(child)
        self.children.append(supervised)
        if not running:
            supervised.start()

    def run_until(self, condition: Callable[[], bool], timeout_seconds: float | None = None) -> bool:
        """Supervise until `condition` holds; return False on a requested stop or a timeout."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not condition():
            if self.stop.is_requested or (deadline is not None and time.monotonic() > deadline):
                return False
            for supervised in self.children:
                supervised.restart_if_ended()
                _rotate(supervised.child.current_log)
            time.sleep(2 * POLL_SECONDS)
        return True

    def stop_all(self) -> None:
        """Stop the children in reverse order: the servers first, the databases last."""
        for supervised in reversed(self.children):
            supervised.child.stop()


def _rotate(log: Path) -> None:
    """Rotate a log that is too large, if there is space for the copy. Its writer appends, so truncating it is safe."""
    with suppress(OSError):
        if (size := log.stat().st_size) > LOG_BYTES_MAX and shutil.disk_usage(log.parent).free > size:
            shutil.copyfile(log, shift_rotated_logs(log))
            os.truncate(log, 0)


def shift_rotated_logs(log: Path) -> Path:
    """Renumber the rotated files of a log, delete the oldest, and return the path of the next one."""
    old = [log.with_name(f"{log.name}.{number}") for number in range(1, LOG_FILES_KEPT + 1)]
    for newer, older in reversed(list(pairwise(old))):
        with suppress(FileNotFoundError):
            newer.replace(older)
    return old[0]
