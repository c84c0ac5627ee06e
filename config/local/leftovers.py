"""Processes of an earlier run that was killed before it could stop them: found by a mark in their environment."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from config.local.processes import KILL_SECONDS, wait_until

MARK = "BOURSE_RUN"  # every child's environment names the folder it works for
END_BY_THEMSELVES_SECONDS = 5.0  # Linux told them that their parent died; give them the time to stop in good order


def end(run: Path) -> None:
    """Wait for what an earlier run in this folder left, and kill what does not end by itself."""
    if wait_until(lambda: not marked(run), END_BY_THEMSELVES_SECONDS):
        return
    for pid in marked(run):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not marked(run), KILL_SECONDS)


def marked(run: Path) -> list[int]:
    """The processes that work for this folder."""
    mark = f"{MARK}={run}".encode()
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if mark in _environment(path)]


def _environment(process: Path) -> list[bytes]:
    with suppress(OSError):
        return (process / "environ").read_bytes().split(b"\0")
    return []
