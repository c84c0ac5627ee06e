"""A key's limit holds for all web processes together (contract: "Rate limits"), and for each without Valkey."""

import http.client
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.local.processes import wait_until
from config.local.servers import Valkey
from exchange.http.rate_limits import RateLimit, share
from tests import api, live, trading

SECOND = 1_000_000_000
START = 123_456_789_012_345  # an arbitrary time of a monotonic clock
BURST = 100
NO_RETRY = Retry(NoBackoff(), 0)
TIMEOUT_SECONDS = 10.0


@pytest.fixture
def key() -> str:
    """A new key, whose buckets are full."""
    return str(uuid4())


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        yield client


def process(name: str = "requests", per_second: int = 1, burst: int = BURST, max_keys: int = 100) -> RateLimit:
    """Return the limit of one web process, by default one token per second: Valkey's clock is not stopped."""
    return RateLimit(name, per_second=per_second, burst=burst, max_keys=max_keys)


def at(nanoseconds: int) -> Callable[[], int]:
    """Return a stopped clock."""
    return lambda: nanoseconds


def at_start_after(step: Callable[[], object]) -> Callable[[], int]:
    """Return a clock that calls `step` first: after the response of Valkey, before its use."""

    def clock() -> int:
        step()
        return START

    return clock


def granted(of: RateLimit, key: str, times: int, now: int = START) -> int:
    return sum(of.take(key, 1, now).is_granted for _ in range(times))


def about(tokens: int) -> range:
    """Return a range of tokens that includes the refill of some seconds."""
    return range(tokens, tokens + 5)


# --- Two processes and their Valkey ---------------------------------------------------------------------------------


def test_a_process_receives_the_grants_of_the_others(client: redis.Redis, key: str) -> None:
    first, second, third = process(), process(), process()
    assert granted(first, key, 40) == 40
    assert share([first], client, at(START))
    assert granted(second, key, 20) == 20
    share([second], client, at(START))
    assert granted(third, key, 1) == 1
    share([third], client, at(START))

    assert granted(third, key, 2 * BURST) in about(39)
    share([third], client, at(START))
    assert granted(first, key, 1) == 1  # it has received no report since
    share([first], client, at(START))
    assert granted(first, key, 1) == 0


def test_tokens_granted_by_two_processes_at_once_are_deducted_later(client: redis.Redis, key: str) -> None:
    first, second = process(), process()
    assert granted(first, key, 2 * BURST) == granted(second, key, 2 * BURST) == BURST
    share([first], client, at(START))
    share([second], client, at(START))

    rejected = second.take(key, 1, START)
    assert (rejected.is_granted, rejected.remaining) == (False, 0)
    assert rejected.seconds in range(BURST - 5, BURST + 2)
    assert not second.take(key, 1, START + (rejected.seconds - 1) * SECOND).is_granted
    assert second.take(key, 1, START + rejected.seconds * SECOND).is_granted


def test_a_clock_that_was_set_back_does_not_block_a_key(client: redis.Redis, key: str) -> None:
    in_a_day = int((time.time() + 86_400) * 1_000_000)
    client.set(f"bourse:limit:requests:{key}", in_a_day, ex=60)
    first = process()
    assert granted(first, key, 1) == 1
    share([first], client, at(START))

    rejected = first.take(key, 1, START)
    assert not rejected.is_granted
    assert rejected.seconds <= 8 * BURST


def test_two_processes_together_grant_the_burst_and_the_rate(client: redis.Redis, key: str) -> None:
    processes = [process(per_second=2_000, burst=500) for _ in range(2)]
    passed, started, seconds = 0, time.monotonic(), 0.0
    while seconds < 1.5:
        for each in processes:
            passed += sum(each.take(key, 1, time.monotonic_ns()).is_granted for _ in range(200))
            share([each], client)
        seconds = time.monotonic() - started
        time.sleep(0.01)

    assert passed == pytest.approx(500 + 2_000 * seconds, rel=0.1)


def test_each_limit_and_each_key_has_its_own_bucket(client: redis.Redis, key: str) -> None:
    first = [process("requests"), process("cancels", per_second=2)]
    second = [process("requests"), process("cancels", per_second=2)]
    assert [granted(limit, key, taken) for limit, taken in zip(first, (30, 50), strict=True)] == [30, 50]
    share(first, client, at(START))
    for limit in second:
        granted(limit, key, 1)
        granted(limit, f"{key}-of-another", 1)
    share(second, client, at(START))

    assert granted(second[0], key, BURST) in about(69)
    assert granted(second[1], key, BURST) in range(49, 60)
    assert granted(second[0], f"{key}-of-another", BURST) == 99


def test_returned_tokens_are_shared(client: redis.Redis, key: str) -> None:
    first, second = process(), process()
    first.take(key, 50, START)
    share([first], client, at(START))
    first.take(key, 0, START, already_taken=40)
    share([first], client, at(START))
    second.take(key, 1, START)
    share([second], client, at(START))

    assert granted(second, key, BURST) in about(89)


def test_tokens_taken_during_a_report_count(client: redis.Redis, key: str) -> None:
    first = process()
    first.take(key, 10, START)
    share([first], client, at_start_after(lambda: first.take(key, 30, START)))

    assert granted(first, key, BURST) in about(60)
    share([first], client, at(START))
    assert granted(first, key, BURST) in range(5)


def test_no_report_is_sent_without_new_grants(key: str) -> None:
    unreachable, limit = redis.Redis(port=1, retry=NO_RETRY), process()
    assert not share([limit], unreachable)
    limit.take(key, 1, START)
    with pytest.raises(redis.ConnectionError):
        share([limit], unreachable)


def test_full_buckets_expire_in_valkey(client: redis.Redis, key: str) -> None:
    limit = process(per_second=10)
    limit.take(key, 20, START)
    share([limit], client, at(START))
    name = f"bourse:limit:requests:{key}"

    assert 0 < client.pttl(name) <= 2_002
    assert wait_until(lambda: not client.exists(name), TIMEOUT_SECONDS)


def test_evicted_keys_stay_evicted(client: redis.Redis) -> None:
    limit = process(max_keys=3)
    names = [str(uuid4()) for _ in range(5)]
    for name in names:
        limit.take(name, 1, START)
    assert list(limit._unshared) == names[2:]

    share([limit], client, at_start_after(lambda: limit.take(str(uuid4()), 1, START)))
    assert list(limit._full_at)[:2] == names[3:]
    assert len(limit._full_at) == 3


# --- Without Valkey -------------------------------------------------------------------------------------------------


def test_processes_limit_separately_without_valkey_and_together_afterwards(valkey: Valkey, key: str) -> None:
    first, second = process(), process()
    with redis.Redis.from_url(valkey.url, retry=NO_RETRY) as client:
        valkey.child.kill()
        for limit in (first, second):
            assert granted(limit, key, 2 * BURST) == BURST
            with pytest.raises(redis.RedisError):
                share([limit], client, at(START))
            assert granted(limit, key, 1) == 0
        assert valkey.restart()
        later = START + BURST * SECOND

        assert granted(first, key, 30, later) == 30
        share([first], client, at(later))
        assert granted(second, key, 1, later) == 1
        share([second], client, at(later))
        assert granted(second, key, BURST, later) in about(69)


# --- Two web processes ----------------------------------------------------------------------------------------------

PER_SECOND = 50
SETTINGS = f"""
from config.settings.api import *

RATE_LIMIT_PER_SECOND, RATE_LIMIT_BURST = {PER_SECOND}, {BURST}
RATE_LIMIT_DELAY_SECONDS = 0  # rejected clients retry immediately
"""
HAMMER_SECONDS = 5.0


@pytest.fixture
def servers(transactional_db: None, tmp_path: Path, valkey: Valkey) -> Iterator[list[live.Server]]:
    """Two web servers of one process each, so that a test can choose the process."""
    (tmp_path / "slow_settings.py").write_text(SETTINGS)
    with ExitStack() as stack:
        both = [live.server(tmp_path / f"web{number}.log") for number in range(2)]
        for each in both:
            each.child.env = {
                **each.child.env,
                "DJANGO_SETTINGS_MODULE": "slow_settings",
                "PYTHONPATH": str(tmp_path),
                "REDIS_URL": valkey.url,
            }
            stack.callback(each.stop)
            each.start()
        yield both


def hammer(server: live.Server, key: str, until: float) -> Counter[int]:
    """Send requests over one connection as fast as possible, and count the statuses."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_SECONDS)
    statuses: Counter[int] = Counter()
    while time.monotonic() < until:
        connection.request("GET", "/stocks", headers={"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        response.read()
        statuses[response.status] += 1
    connection.close()
    return statuses


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_a_keys_limit_holds_for_all_processes_together(servers: list[live.Server]) -> None:
    key = api.broker("alice").key
    assert key is not None
    started = time.monotonic()
    until = started + HAMMER_SECONDS
    counts = trading.run_concurrently([partial(hammer, server, key, until) for server in servers * 2])
    seconds = time.monotonic() - started

    assert {status for each in counts for status in each} == {200, 429}
    assert all(each[200] for each in counts)
    assert sum(each[200] for each in counts) == pytest.approx(BURST + PER_SECOND * seconds, rel=0.1)


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_requests_and_their_limits_continue_when_valkey_stops(servers: list[live.Server], valkey: Valkey) -> None:
    key = api.broker("alice").key
    assert key is not None
    for each in servers:
        hammer(each, key, time.monotonic() + 0.3)
    valkey.child.kill()
    log = servers[0].child.log
    started = time.monotonic()
    until = started + 3
    counts = trading.run_concurrently([partial(hammer, server, key, until) for server in servers])
    seconds = time.monotonic() - started

    for statuses in counts:
        assert statuses.keys() <= {200, 429}
        assert PER_SECOND * (seconds - 2) <= statuses[200] <= BURST + PER_SECOND * seconds
    assert log.read_text().count("limits_not_shared") == 1
