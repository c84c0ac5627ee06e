"""How much one key, or one address without one, may ask of this process: a bucket of tokens for each.

Requests empty it and time fills it again.

Kept in memory, so that a check costs two microseconds and no round trip: every web process counts for itself.
"""

import time
from functools import cache
from threading import Lock
from typing import NamedTuple

from django.conf import settings

_TOKEN = 10**9  # a token comes in a second's nanoseconds, `per_second` times as fast


class Allowance(NamedTuple):
    """Whether the tokens asked for were there, how many are left, and in how many whole seconds there is more."""

    is_granted: bool
    remaining: int
    seconds: int


class Limit:
    """So many tokens a second for each key, and a bucket's worth of them at once.

    Of a bucket only the moment is kept at which it is full again; a key that is not remembered has a full one. All
    numbers are whole, so nothing is lost or gained by rounding however long this runs.
    """

    def __init__(self, name: str, *, per_second: int, burst: int, max_keys: int) -> None:
        self.name, self.per_second, self.burst, self.max_keys = name, per_second, burst, max_keys
        self.policy = f'"{name}";q={burst};w={-(-burst // per_second)}'
        self._full_at: dict[str, int] = {}  # the key used last comes last
        self._lock = Lock()

    def take(self, key: str, tokens: int, now: int, *, held: int = 0) -> Allowance:
        """Take all of `tokens` or none, at this nanosecond of the monotonic clock.

        `held` were taken for the same request before: they count towards `tokens`, and go back if those are not there.
        What costs more than a bucket holds gets through when the bucket is full.
        """
        now *= self.per_second
        size, wanted = self.burst * _TOKEN, min(tokens, self.burst) * _TOKEN
        with self._lock:
            used = max(self._full_at.pop(key, 0) - held * _TOKEN - now, 0)
            missing = used + wanted - size
            if missing <= 0:
                used += wanted
            self._full_at[key] = now + used
            if len(self._full_at) > self.max_keys:
                del self._full_at[next(iter(self._full_at))]  # unused for longest, so most likely full
        seconds = -(-missing // (_TOKEN * self.per_second)) if missing > 0 else 1
        return Allowance(missing <= 0, (size - used) // _TOKEN, seconds)

    def give_back(self, key: str) -> None:
        """Return one token that was taken."""
        self.take(key, 0, time.monotonic_ns(), held=1)

    def is_used_up(self, key: str, now: int) -> bool:
        """Whether a single token would most likely be refused; `take` decides."""
        return self._full_at.get(key, 0) - now * self.per_second > (self.burst - 1) * _TOKEN

    def headers(self, allowance: Allowance) -> dict[str, str]:
        """What an answer says of it."""
        return {
            "RateLimit-Policy": self.policy,
            "RateLimit": f'"{self.name}";r={allowance.remaining};t={allowance.seconds}',
        }


def tokens_of(body_bytes: int) -> int:
    """How many requests a body of this length counts as, at least."""
    return max(-(-body_bytes // settings.RATE_LIMIT_BYTES_PER_REQUEST), 1)


def requests() -> Limit:
    """The limit of everything but cancels."""
    return _limit(
        "requests", settings.RATE_LIMIT_PER_SECOND, settings.RATE_LIMIT_BURST, settings.RATE_LIMIT_KEYS_REMEMBERED
    )


def cancels() -> Limit:
    """The limit of cancels: who has used up the other may still get out of the market."""
    return _limit(
        "cancels",
        settings.RATE_LIMIT_CANCELS_PER_SECOND,
        settings.RATE_LIMIT_CANCELS_BURST,
        settings.RATE_LIMIT_KEYS_REMEMBERED,
    )


def unknown() -> Limit:
    """The limit of an address for requests that are known to have no valid key."""
    return _limit_of_addresses("unknown")


def look_ups() -> Limit:
    """The limit of an address for keys that must be looked up: it cannot be used up by requests that have none."""
    return _limit_of_addresses("look_ups")


def _limit_of_addresses(name: str) -> Limit:
    return _limit(
        name,
        settings.RATE_LIMIT_UNKNOWN_PER_SECOND,
        settings.RATE_LIMIT_UNKNOWN_BURST,
        settings.RATE_LIMIT_UNKNOWN_ADDRESSES,
    )


@cache
def _limit(name: str, per_second: int, burst: int, max_keys: int) -> Limit:
    return Limit(name, per_second=per_second, burst=burst, max_keys=max_keys)
