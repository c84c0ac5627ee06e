"""Orphaned processes of an earlier run that was killed, found by a variable in their environment."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from config.local.processes import KILL_SECONDS, wait_until

RUN_VARIABLE = "BOURSE_RUN"  # the folder of the run, in the environment of every child
EXIT_GRACE_SECONDS = 5.0  # Linux signals them when their parent dies; some are still stopping


def stop(run: Path) -> None:
    """Wait until the processes of an earlier run in this folder have ended, and kill the remaining ones."""
    if wait_until(lambda: not find(run), EXIT_GRACE_SECONDS):
        return
    for pid in find(run):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not find(run), KILL_SECONDS)


def find(run: Path) -> list[int]:
    """Return the ids of the processes of this folder."""
    variable = f"{RUN_VARIABLE}={run}".encode()
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if variable in _environment(path)]


def _environment(process: Path) -> list[bytes]:
    with suppress(OSError):
        return (process / "environ").read_bytes().split(b"\0")
    return []
