"""Log throttle: counts requests without a valid key once an address has sent several within a second.

Sending such requests is free, and logging each of them would rotate older entries out of the log.
"""

import time
from collections import Counter
from collections.abc import Callable
from threading import Lock

import structlog
from django.conf import settings

OTHERS = "others"  # all addresses beyond LOG_UNKNOWN_ADDRESSES

_log = structlog.get_logger(__name__)


class LogThrottle:
    """Log lines of the current second by address, and the requests counted since the last flush."""

    def __init__(self) -> None:
        self._second = 0
        self._lines: Counter[str] = Counter()
        self._counts: dict[str, Counter[int]] = {}
        self._lock = Lock()

    def should_log(self, address: str, status: int, now: float) -> bool:
        """True if the request should be logged individually; otherwise count it."""
        with self._lock:
            if int(now) != self._second:
                self._second, self._lines = int(now), Counter()
            if address in self._lines or len(self._lines) < settings.LOG_UNKNOWN_ADDRESSES:
                self._lines[address] += 1
                if self._lines[address] <= settings.LOG_UNKNOWN_LINES:
                    return True
            has_own_count = address in self._counts or len(self._counts) < settings.LOG_UNKNOWN_ADDRESSES
            self._counts.setdefault(address if has_own_count else OTHERS, Counter())[status] += 1
            return False

    def take_counts(self) -> dict[str, Counter[int]]:
        """Return the counts by address and status, and reset them."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return counts


_throttle = LogThrottle()


def should_log(address: str, status: int, clock: Callable[[], float] = time.monotonic) -> bool:
    """True if a request without a valid key should be logged individually; otherwise count it."""
    return _throttle.should_log(address, status, clock())


def flush() -> None:
    """Log the counts since the last flush, one line per address."""
    for address, statuses in _throttle.take_counts().items():
        by_status = {str(status): count for status, count in sorted(statuses.items())}
        _log.info("requests_counted", address=address, count=statuses.total(), statuses=by_status)
