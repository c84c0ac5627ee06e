"""Child processes, each in its own session: Ctrl-C does not reach them, and each is stopped with its whole group."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from config.local import child

POLL_SECONDS = 0.05
KILL_SECONDS = 1.0  # for the kernel to remove a killed process group


class LocalError(Exception):
    """The exchange cannot run here; the message is for the user at the terminal."""


def wait_until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    """Poll `condition` until it holds; return False on a timeout."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


@dataclass(frozen=True, slots=True)
class SystemAccount:
    """An unprivileged system account, for programs that refuse to run as root."""

    uid: int
    gid: int


@dataclass(slots=True)
class Child:
    """A program with its own child processes."""

    name: str
    argv: Sequence[str | Path]
    log: Path
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    cwd: Path | None = None
    account: SystemAccount | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 10.0
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program and append its output to `log`."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs
                [*self._launcher(), *map(str, self.argv)],
                cwd=self.cwd,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop the program with its signal, and kill its whole group after `grace_seconds` at the latest."""
        if self._process is None:
            return
        if self.is_running():
            self._process.send_signal(self.stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(self.grace_seconds)
        self.kill()

    def kill(self) -> None:
        """Kill the program and its whole group, and wait until they have ended."""
        if self._process is None:
            return
        group = self._process.pid
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait()
        wait_until(lambda: not _group_exists(group), KILL_SECONDS)
        self._process = None

    def last_log_line(self) -> str:
        """Return the last line of the log, for an error message."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 2_000))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")

    def _launcher(self) -> list[str]:
        account = f"{self.account.uid}:{self.account.gid}" if self.account else ""
        return [sys.executable, "-IS", str(Path(child.__file__)), str(os.getpid()), str(int(self.stop_signal)), account]


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
