"""Child processes, each in its own session: Ctrl-C does not reach them, and each is stopped with its whole group."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

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


def print_line(text: str) -> None:
    """Print to the terminal, if there is one."""
    if sys.stdout is not None:  # None if it was closed before the start
        with suppress(OSError, ValueError):
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()


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
    current_log: Path = field(init=False)  # `log`, or another file if that cannot be opened
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.current_log = self.log

    def start(self) -> None:
        """Start the program and append its output to `log`, or to another file if that cannot be opened."""
        with self._open_log() as log:
            self.current_log = Path(log.name)
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
        with self.current_log.open("rb") as log:
            log.seek(max(0, self.current_log.stat().st_size - 2_000))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")

    def _open_log(self) -> IO[bytes]:
        """Open the log. If that fails, for example in a read-only folder, print a warning and open a temporary file."""
        try:
            return self.log.open("ab")
        except OSError as error:
            log = _open_fallback(self.name)
            print_line(f"{error.strerror}: {self.log}. Until its next start, `{self.name}` logs to {log.name}.")
            return log

    def _launcher(self) -> list[str]:
        account = f"{self.account.uid}:{self.account.gid}" if self.account else ""
        return [sys.executable, "-IS", str(Path(child.__file__)), str(os.getpid()), str(int(self.stop_signal)), account]


def _open_fallback(name: str) -> IO[bytes]:
    with suppress(OSError):
        descriptor, path = tempfile.mkstemp(prefix=f"bourse-{name}-", suffix=".log")
        os.close(descriptor)
        return Path(path).open("ab")
    return Path(os.devnull).open("ab")


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
