"""Rate limits: a bucket of tokens for each key, and for each address that sends no valid key.

Requests empty it and time fills it again. Each web process decides from its own copy of a bucket, so that a check costs
two microseconds and no round trip. Ten times a second a thread adds what was taken here to the bucket in Valkey, and
corrects the copy by what the other processes took. What several processes grant before they know of each other is
missing from the bucket afterwards, so it is repaid. Without Valkey each process continues with its own copy.
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

_TOKEN = 10**9  # a token comes in a second's nanoseconds, `per_second` times as fast
_BUCKET = "bourse:limit"  # how the name of a bucket in Valkey begins

_BURSTS_LACKING = 8  # at most: when Valkey's clock is set back, keys must not be refused for as long

# Take from each bucket what one process took, in microseconds of its refill; return what it now lacks in all, but no
# more than the last argument. As in a process, the moment is kept at which a bucket is full again, when it expires.
# Only Valkey's clock counts.
_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local missing = {}
for i, bucket in ipairs(KEYS) do
  local lacking = math.max(tonumber(redis.call('GET', bucket) or now) - now, 0) + ARGV[i]
  missing[i] = math.max(math.min(lacking, ARGV[#ARGV]), 0)
  redis.call('SET', bucket, string.format('%.0f', now + missing[i]), 'PX', math.ceil(missing[i] / 1000) + 1)
end
return missing
"""

_log = structlog.get_logger(__name__)


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
        self._unshared: dict[str, int] = {}  # taken from each bucket that was used since the last report
        self._lock = Lock()

    def take(self, key: str, tokens: int, now: int, *, held: int = 0) -> Allowance:
        """Take all of `tokens` or none, at this nanosecond of the monotonic clock.

        `held` were taken for the same request before: they count towards `tokens`, and go back if those are not there.
        What costs more than a bucket holds gets through when the bucket is full.
        """
        now *= self.per_second
        size, wanted = self.burst * _TOKEN, min(tokens, self.burst) * _TOKEN
        with self._lock:
            before = max(self._full_at.pop(key, 0) - now, 0)
            used = max(before - held * _TOKEN, 0)
            missing = used + wanted - size
            if missing <= 0:
                used += wanted
            self._full_at[key] = now + used
            self._unshared[key] = self._unshared.get(key, 0) + used - before
            if len(self._full_at) > self.max_keys:
                oldest = next(iter(self._full_at))  # unused for longest, so most likely full
                del self._full_at[oldest]
                self._unshared.pop(oldest, None)
        seconds = -(-missing // (_TOKEN * self.per_second)) if missing > 0 else 1
        return Allowance(missing <= 0, max(size - used, 0) // _TOKEN, seconds)

    def give_back(self, key: str) -> None:
        """Return one token that was taken."""
        self.take(key, 0, time.monotonic_ns(), held=1)

    def is_used_up(self, key: str, now: int) -> bool:
        """Whether a single token would most likely be refused; `take` decides."""
        return self._full_at.get(key, 0) - now * self.per_second > (self.burst - 1) * _TOKEN

    def report(self) -> dict[str, int]:
        """Return what was taken here from each bucket since the last report, in nanoseconds * `per_second`."""
        with self._lock:
            taken, self._unshared = self._unshared, {}
        return taken

    def correct(self, used: dict[str, int], now: int) -> None:
        """Set what each bucket lacks to what all processes took, and add what was taken here since the report."""
        now *= self.per_second
        with self._lock:
            for key, missing in used.items():
                if key in self._full_at:
                    self._full_at[key] = now + missing + self._unshared.get(key, 0)

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


def share_for_ever() -> None:
    """Keep this process's limits in step with those of the others."""
    is_shared = True
    while True:
        time.sleep(settings.RATE_LIMIT_SHARE_SECONDS)
        try:
            if share([requests(), cancels(), unknown(), look_ups()], _valkey()):
                is_shared = True
        except Exception as error:  # whatever it is: this process continues with its own copy
            if is_shared:  # once per outage
                _log.warning("limits_not_shared", error=str(error))
            is_shared = False


def share(limits: Sequence[Limit], valkey: redis.Redis, clock: Callable[[], int] = time.monotonic_ns) -> bool:
    """Report what was taken here to Valkey, in one round trip, and learn what all processes together have taken.

    Return False if there was nothing to report, so that Valkey was not asked. A report that fails is dropped: sent
    after an outage, it would make a key repay tokens that it took long ago.
    """
    reports = [(limit, taken) for limit in limits if (taken := limit.report())]
    with valkey.pipeline(transaction=False) as pipeline:
        for limit, taken in reports:
            buckets = [f"{_BUCKET}:{limit.name}:{key}" for key in taken]
            microseconds = [each / (1_000 * limit.per_second) for each in taken.values()]
            most = _BURSTS_LACKING * limit.burst * 1_000_000 // limit.per_second
            pipeline.eval(_TAKE, len(buckets), *buckets, *microseconds, most)
        answers = pipeline.execute()
    for (limit, taken), missing in zip(reports, answers, strict=True):
        limit.correct({key: each * 1_000 * limit.per_second for key, each in zip(taken, missing, strict=True)}, clock())
    return bool(reports)


@cache
def _valkey() -> redis.Redis:
    """One client per process; it never tries again, because a report that arrives twice would count twice."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=settings.VALKEY_TIMEOUT_SECONDS,
        socket_connect_timeout=settings.VALKEY_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


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
