"""Keeps the processes of the exchange running: starts them in order, starts again what dies, stops all in good order.

It never listens on a port itself, so that killing whatever does is always something it can repair.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType

from config.local.processes import POLL_SECONDS, Child, LocalError

QUICK_DEATH_SECONDS = 1.0  # what lives shorter than this never really started ...
QUICK_DEATH_PAUSE_SECONDS = 2.0  # ... and is not tried again at once
LOG_BYTES_MAX = 50 * 1024 * 1024  # a log that grows past this starts anew
LOG_FILES_KEPT = 10  # of each log, beside it: `web.log.1` is the latest


class Stopped(Exception):
    """Somebody asked us to stop while we were starting."""


class StopSignal:
    """Whether somebody asked us to stop: Ctrl-C, SIGTERM, or the terminal being closed (unless under nohup)."""

    def __init__(self) -> None:
        self.asked = False
        for number in [signal.SIGINT, signal.SIGTERM]:
            signal.signal(number, self._ask)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def check(self) -> None:
        """Leave off starting when we are to stop."""
        if self.asked:
            raise Stopped


def say(text: str) -> None:
    """Tell the person at the terminal, if there is one."""
    if sys.stdout is not None:  # None when it was closed before we started
        with suppress(OSError, ValueError):
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()


def run_step(step: Child, stop: StopSignal, timeout_seconds: float) -> None:
    """Run a program to its end; a sentence when it fails."""
    step.start()
    deadline = time.monotonic() + timeout_seconds
    try:
        while step.is_running() and time.monotonic() < deadline:
            stop.check()
            time.sleep(POLL_SECONDS)
        if step.exit_code != 0:
            raise LocalError(f"`{step.name}` failed: {step.last_words()} (all of it: {step.log})")
    finally:
        step.stop()


@dataclass(slots=True)
class Kept:
    """A child that is started again whenever it ends."""

    child: Child
    _started_at: float = 0.0
    _start_at: float | None = None

    def start(self) -> None:
        self.child.start()
        self._started_at, self._start_at = time.monotonic(), None

    def tend(self) -> None:
        """Look after the child once: notice its end, or start it again when its pause is over."""
        now = time.monotonic()
        if self.child.is_running():
            return
        if self._start_at is None:
            say(f"{self.child.name} ended (code {self.child.exit_code}); starting it again. Its log: {self.child.log}")
            self.child.kill()  # what it left behind may hold its port
            self._start_at = now + (QUICK_DEATH_PAUSE_SECONDS if now - self._started_at < QUICK_DEATH_SECONDS else 0)
        if now >= self._start_at:
            self.start()


@dataclass(slots=True)
class Supervisor:
    """The children, in the order of their start."""

    stop: StopSignal
    kept: list[Kept] = field(default_factory=list)

    def keep(self, child: Child, *, running: bool = False) -> None:
        """Look after this child from now on, and start it unless it runs already."""
        kept = Kept(child)
        self.kept.append(kept)
        if not running:
            kept.start()

    def tend_until(self, condition: Callable[[], bool], timeout_seconds: float | None = None) -> bool:
        """Look after all children until `condition` holds or we are asked to stop; False when the time is over."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not condition():
            if self.stop.asked or (deadline is not None and time.monotonic() > deadline):
                return False
            for kept in self.kept:
                kept.tend()
                _renew(kept.child.log)
            time.sleep(2 * POLL_SECONDS)
        return True

    def stop_all(self) -> None:
        """End the children: what takes orders first, what keeps them last."""
        for kept in reversed(self.kept):
            kept.child.stop()


def _renew(log: Path) -> None:
    """Keep a log from filling the disk; its writer appends, so cutting it short under its hands is safe."""
    with suppress(OSError):
        if log.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(log, room_for_old(log))
            os.truncate(log, 0)


def room_for_old(log: Path) -> Path:
    """The name for what a log holds now; older files get the next number each, and the oldest is dropped."""
    old = [log.with_name(f"{log.name}.{number}") for number in range(1, LOG_FILES_KEPT + 1)]
    for newer, older in reversed(list(pairwise(old))):
        with suppress(FileNotFoundError):
            newer.replace(older)
    return old[0]
