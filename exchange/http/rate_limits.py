"""Rate limits: a token bucket per key, and per address for requests without a valid key.

Requests take tokens, and time refills the bucket. Each web process decides from its own copy of a bucket, so a check
costs two microseconds and no round trip. Ten times a second, a thread adds the tokens taken here to the bucket in
Valkey, and corrects the copy by those that other processes took. In between, several processes may grant the same
tokens. The bucket then has a deficit, which must refill before it grants more. Without Valkey, each process continues
with its own copy.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache
from threading import Lock
from typing import NamedTuple

import redis
import structlog
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from exchange.errors import RateLimited

_TOKEN = 10**9  # one token in the unit of amounts, nanoseconds * `per_second`
_KEY_PREFIX = "bourse:limit"  # prefix of the buckets in Valkey

_MAX_DEFICIT_BURSTS = 8  # bounds how long keys are rejected after Valkey's clock was set back

# Take from each bucket the amount that one process took, in microseconds of refill time. Return the buckets' deficits,
# each at most the last argument. As in a process, the stored value is the time at which the bucket is full again, which
# is also when the Valkey key expires. Only Valkey's clock is used.
_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local deficits = {}
for i, bucket in ipairs(KEYS) do
  local deficit = math.max(tonumber(redis.call('GET', bucket) or now) - now, 0) + ARGV[i]
  deficits[i] = math.max(math.min(deficit, ARGV[#ARGV]), 0)
  redis.call('SET', bucket, string.format('%.0f', now + deficits[i]), 'PX', math.ceil(deficits[i] / 1000) + 1)
end
return deficits
"""

_log = structlog.get_logger(__name__)


class Allowance(NamedTuple):
    """Result of taking tokens: granted or not, tokens left, and whole seconds until there are more."""

    is_granted: bool
    remaining: int
    seconds: int


class RateLimit:
    """Token buckets that refill at `per_second` tokens and hold `burst`.

    A bucket is stored as the time at which it is full again; a key without an entry has a full bucket. Times and
    amounts are integers, in nanoseconds * `per_second`, so rounding errors cannot accumulate.
    """

    def __init__(self, name: str, *, per_second: int, burst: int, max_keys: int) -> None:
        self.name, self.per_second, self.burst, self.max_keys = name, per_second, burst, max_keys
        self.policy = f'"{name}";q={burst};w={-(-burst // per_second)}'
        self._full_at: dict[str, int] = {}  # ordered by use, latest last
        self._unshared: dict[str, int] = {}  # by bucket: the amount taken since the last report
        self._lock = Lock()

    def take(self, key: str, tokens: int, now: int, *, already_taken: int = 0) -> Allowance:
        """Take all of `tokens` or none, at this nanosecond of the monotonic clock.

        `already_taken` tokens, taken earlier for the same request, count towards `tokens` and are returned if there are
        too few. A request that costs more than a bucket holds is granted when the bucket is full.
        """
        now *= self.per_second
        size, wanted = self.burst * _TOKEN, min(tokens, self.burst) * _TOKEN
        with self._lock:
            before = max(self._full_at.pop(key, 0) - now, 0)
            used = max(before - already_taken * _TOKEN, 0)
            missing = used + wanted - size
            if missing <= 0:
                used += wanted
            self._full_at[key] = now + used
            self._unshared[key] = self._unshared.get(key, 0) + used - before
            if len(self._full_at) > self.max_keys:
                oldest = next(iter(self._full_at))  # the least recently used bucket, most likely full
                del self._full_at[oldest]
                self._unshared.pop(oldest, None)
        seconds = -(-missing // (_TOKEN * self.per_second)) if missing > 0 else 1
        return Allowance(missing <= 0, max(size - used, 0) // _TOKEN, seconds)

    def return_token(self, key: str) -> None:
        """Return one token."""
        self.take(key, 0, time.monotonic_ns(), already_taken=1)

    def is_exhausted(self, key: str, now: int) -> bool:
        """True if taking a single token would most likely fail; `take` decides."""
        return self._full_at.get(key, 0) - now * self.per_second > (self.burst - 1) * _TOKEN

    def report(self) -> dict[str, int]:
        """Return the amount taken from each bucket since the last report."""
        with self._lock:
            taken, self._unshared = self._unshared, {}
        return taken

    def correct(self, used: dict[str, int], now: int) -> None:
        """Set each bucket to the amount used by all processes plus the amount taken here since the report."""
        now *= self.per_second
        with self._lock:
            for key, amount in used.items():
                if key in self._full_at:
                    self._full_at[key] = now + amount + self._unshared.get(key, 0)

    def rejection(self, allowance: Allowance) -> RateLimited:
        """Return the error of a key whose request was not granted."""
        detail = f"This key may send {self.per_second} {self.name} a second, and {self.burst} at once"
        return RateLimited(f"{detail}; wait {allowance.seconds} s.", retry_after_seconds=allowance.seconds)

    def headers(self, allowance: Allowance) -> dict[str, str]:
        """Return the `RateLimit` headers of a response."""
        return {
            "RateLimit-Policy": self.policy,
            "RateLimit": f'"{self.name}";r={allowance.remaining};t={allowance.seconds}',
        }


def tokens_for_body(body_bytes: int) -> int:
    """Minimum cost of a request with a body of this length, in tokens."""
    return max(-(-body_bytes // settings.RATE_LIMIT_BYTES_PER_REQUEST), 1)


def requests() -> RateLimit:
    """Limit of all requests of a key except cancels."""
    return _limit("requests", settings.RATE_LIMIT_PER_SECOND, settings.RATE_LIMIT_BURST, settings.RATE_LIMIT_KEYS)


def cancels() -> RateLimit:
    """Limit of cancels, separate so that a broker that has exhausted its other limit can still leave the market."""
    return _limit(
        "cancels",
        settings.RATE_LIMIT_CANCELS_PER_SECOND,
        settings.RATE_LIMIT_CANCELS_BURST,
        settings.RATE_LIMIT_KEYS,
    )


def unknown() -> RateLimit:
    """Limit of an address for requests that are known to have no valid key."""
    return _address_limit("unknown")


def lookups() -> RateLimit:
    """Limit of an address for keys that must be looked up. Requests without a key cannot exhaust it."""
    return _address_limit("lookups")


def share_forever() -> None:
    """Share this process's rate limits with the other processes."""
    is_shared = True
    while True:
        time.sleep(settings.RATE_LIMIT_SYNC_SECONDS)
        try:
            if share([requests(), cancels(), unknown(), lookups()], _valkey()):
                is_shared = True
        except Exception as error:  # on any error, this process continues with its own copy
            if is_shared:  # once per outage
                _log.warning("limits_not_shared", error=str(error))
            is_shared = False


def share(limits: Sequence[RateLimit], valkey: redis.Redis, clock: Callable[[], int] = time.monotonic_ns) -> bool:
    """Report the tokens taken here to Valkey, and read the totals of all processes, in one round trip.

    Return False if there was nothing to report, and thus no round trip. A failed report is dropped: sent after an
    outage, it would make a key repay tokens that it took long ago.
    """
    reports = [(limit, taken) for limit in limits if (taken := limit.report())]
    with valkey.pipeline(transaction=False) as pipeline:
        for limit, taken in reports:
            buckets = [f"{_KEY_PREFIX}:{limit.name}:{key}" for key in taken]
            microseconds = [each / (1_000 * limit.per_second) for each in taken.values()]
            max_deficit = _MAX_DEFICIT_BURSTS * limit.burst * 1_000_000 // limit.per_second
            pipeline.eval(_TAKE, len(buckets), *buckets, *microseconds, max_deficit)
        replies = pipeline.execute()
    for (limit, taken), deficits in zip(reports, replies, strict=True):
        used = {key: each * 1_000 * limit.per_second for key, each in zip(taken, deficits, strict=True)}
        limit.correct(used, clock())
    return bool(reports)


@cache
def _valkey() -> redis.Redis:
    """Return this process's client. It never retries, because a report that arrives twice would count twice."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=settings.VALKEY_TIMEOUT_SECONDS,
        socket_connect_timeout=settings.VALKEY_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def _address_limit(name: str) -> RateLimit:
    return _limit(
        name,
        settings.RATE_LIMIT_UNKNOWN_PER_SECOND,
        settings.RATE_LIMIT_UNKNOWN_BURST,
        settings.RATE_LIMIT_UNKNOWN_ADDRESSES,
    )


@cache
def _limit(name: str, per_second: int, burst: int, max_keys: int) -> RateLimit:
    return RateLimit(name, per_second=per_second, burst=burst, max_keys=max_keys)
