"""CPU seconds and memory of processes with their children, from /proc."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
TICKS = os.sysconf("SC_CLK_TCK")
PPID, UTIME, CSTIME, RSS = 1, 11, 14, 21  # indexes of the fields of /proc/PID/stat after the program's name


def cpu_seconds(pids: Mapping[str, int], work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """Return the result of `work`, and the CPU seconds that each process used during it, with its descendants."""
    before, ours = _all(pids), os.times()
    result = work()
    after, then = _all(pids), os.times()
    used = {name: round(after[name] - before[name], 2) for name in pids}
    client = then.children_user + then.children_system - ours.children_user - ours.children_system
    return result, used | {"client": round(client, 2)}  # the load generator, a child that has ended


def resident_mb(pid: int) -> int:
    """Return the memory of a process with its descendants; shared memory counts for each of them."""
    stats = _stats()
    return round(_resident_pages(pid, stats) * os.sysconf("SC_PAGE_SIZE") / 2**20)


def _resident_pages(pid: int, stats: Mapping[int, list[str]]) -> int:
    own = int(stats[pid][RSS]) if pid in stats else 0
    return own + sum(_resident_pages(each, stats) for each in stats if int(stats[each][PPID]) == pid)


def _all(pids: Mapping[str, int]) -> dict[str, float]:
    stats = _stats()
    return {name: _with_descendants(pid, stats) for name, pid in pids.items()}


def _with_descendants(pid: int, stats: Mapping[int, list[str]]) -> float:
    """Return the CPU seconds of a process, its descendants and its ended children, which Linux adds to the parent."""
    own = sum(map(int, stats[pid][UTIME : CSTIME + 1])) / TICKS if pid in stats else 0.0
    return own + sum(_with_descendants(each, stats) for each in stats if int(stats[each][PPID]) == pid)


def _stats() -> dict[int, list[str]]:
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found[int(process.name)] = (process / "stat").read_text().rpartition(")")[2].split()
    return found
