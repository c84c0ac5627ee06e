"""Counts requests without a valid key in place of logging each, once an address has sent several within a second.

A flood costs its sender nothing, and would turn over the log with the evidence in it.
"""

import time
from collections import Counter
from collections.abc import Callable
from threading import Lock

import structlog
from django.conf import settings

OTHERS = "others"  # addresses beyond those that are told apart

_log = structlog.get_logger(__name__)


class Flood:
    """What came in this second, and what has been counted since the last time that was written."""

    def __init__(self) -> None:
        self._second = 0
        self._lines: Counter[str] = Counter()
        self._counted: dict[str, Counter[int]] = {}
        self._lock = Lock()

    def has_its_line(self, address: str, status: int, now: float) -> bool:
        """True if the request is to be logged by itself; otherwise it has been counted."""
        with self._lock:
            if int(now) != self._second:
                self._second, self._lines = int(now), Counter()
            is_told_apart = address in self._lines or len(self._lines) < settings.LOG_UNKNOWN_ADDRESSES
            if is_told_apart:
                self._lines[address] += 1
                if self._lines[address] <= settings.LOG_UNKNOWN_LINES:
                    return True
            name = (
                address if address in self._counted or len(self._counted) < settings.LOG_UNKNOWN_ADDRESSES else OTHERS
            )
            self._counted.setdefault(name, Counter())[status] += 1
            return False

    def taken(self) -> dict[str, Counter[int]]:
        """The counts by address and status, which begin again."""
        with self._lock:
            counted, self._counted = self._counted, {}
        return counted


_flood = Flood()


def has_its_line(address: str, status: int, clock: Callable[[], float] = time.monotonic) -> bool:
    """True if a request without a valid key is to be logged by itself; otherwise it has been counted."""
    return _flood.has_its_line(address, status, clock())


def write() -> None:
    """Log what was counted since the last time: one line for each address."""
    for address, statuses in _flood.taken().items():
        by_status = {str(status): count for status, count in sorted(statuses.items())}
        _log.info("requests_counted", address=address, count=statuses.total(), statuses=by_status)
