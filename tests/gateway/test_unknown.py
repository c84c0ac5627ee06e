"""How much may be sent without a valid key: by address, before the database is asked, and at no cost to good keys."""

import asyncio
import json
import time
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_django import Settings

from config.local.processes import wait_until
from exchange import keys, rejection_counts, services
from exchange.http import rate_limits
from exchange.http.middleware import STARTED_AT
from exchange.http.responses import RenderedResponse
from exchange.keys import new_key
from gateway import order_entry
from gateway.application import Gateway, environ_of
from tests import trading
from tests.exchange.client import ApiHandler
from tests.gateway.test_application import without_keys
from tests.trading import BY

pytestmark = pytest.mark.django_db(transaction=True)

BURST = 3
PATIENCE_SECONDS = 30.0
HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"
FRONT = Gateway(ApiHandler(), lambda: False, order_entry.parse_fast_request)


@pytest.fixture(autouse=True)
def _few_tokens(settings: Settings) -> None:
    """Three at once, then one a second; nothing is known yet."""
    settings.RATE_LIMIT_UNKNOWN_BURST, settings.RATE_LIMIT_UNKNOWN_PER_SECOND = BURST, 1
    settings.RATE_LIMIT_PAUSE_SECONDS = 0
    settings.KEY_REFUSAL_SECONDS = PATIENCE_SECONDS
    rate_limits._limit.cache_clear()
    keys._cache = keys._KeyCache()


def scope_of(key: str | None, path: str, address: str, method: str, headers: dict[str, str]) -> Any:
    sent = {"host": "localhost"} | ({} if key is None else {"authorization": f"Bearer {key}"}) | headers
    scope: Any = SimpleNamespace(method=method, path=path, query_string="", http_version="1.1", scheme="http")
    scope.server, scope.client, scope.headers = "127.0.0.1:8000", f"{address}:4711", sent
    return scope


async def answer(
    key: str | None, path: str = "/stocks", address: str = HERE, method: str = "GET", **headers: str
) -> RenderedResponse:
    environ = environ_of(scope_of(key, path, address, method, headers))
    return await FRONT.respond(environ | {STARTED_AT: time.perf_counter()})


def ask(*args: Any, **more: Any) -> int:
    """The status of a request, through the front that the web server calls."""
    return asyncio.run(answer(*args, **more)).status


def unknown_key() -> str:
    return new_key()[0]


def use_up(address: str = HERE) -> None:
    """Leave no token to this address, neither for keys that must be looked up nor for others."""
    while ask(unknown_key(), address=address) == 401 or ask(None, address=address) == 401:
        pass


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad_key", [unknown_key, lambda: None, lambda: "garbage"], ids=["unknown", "none", "garbage"])
def test_bad_keys_get_so_many_answers_and_then_no_look_up(bad_key: Any) -> None:
    assert [ask(bad_key()) for _ in range(BURST)] == [401] * BURST
    with without_keys():
        refused = asyncio.run(answer(bad_key()))
    headers, body = dict(refused.headers), json.loads(refused.content)
    assert (refused.status, headers["Retry-After"], headers["Content-Type"]) == (429, "1", "application/problem+json")
    assert (body["code"], body["request_id"]) == ("rate_limited", headers["X-Request-Id"])
    good = asyncio.run(answer(trading.broker("alice"), address=ELSEWHERE))
    assert headers.keys() - {"Retry-After"} == dict(good.headers).keys() - {"RateLimit", "RateLimit-Policy"}


def test_many_at_once_get_no_more_than_one_after_another() -> None:
    async def flood() -> list[int]:
        return [reply.status for reply in await asyncio.gather(*(answer(unknown_key()) for _ in range(50)))]

    started = time.monotonic()
    statuses = asyncio.run(flood())
    assert BURST <= statuses.count(401) <= BURST + 1 + (time.monotonic() - started)
    assert statuses.count(429) == 50 - statuses.count(401)


def test_refusals_are_held_back_for_so_many_at_a_time(settings: Settings) -> None:
    use_up()
    settings.RATE_LIMIT_PAUSE_SECONDS, settings.RATE_LIMIT_PAUSES = PATIENCE_SECONDS, 2

    async def flood() -> int:
        asked = [asyncio.create_task(answer(None)) for _ in range(2 * BURST)]
        for count, refused in enumerate(asyncio.as_completed(asked), 1):
            await refused
            if count == len(asked) - 2:
                return sum(not each.done() for each in asked)
        return 0

    started = time.monotonic()
    assert asyncio.run(flood()) == 2  # the rest was told at once
    assert time.monotonic() - started < PATIENCE_SECONDS


def test_paths_that_do_not_exist_count_too() -> None:
    assert [ask(None, "/nothing") for _ in range(BURST)] == [404] * BURST
    assert [ask(None, path) for path in ("/nothing", "/openapi.json", "/docs", "/stocks")] == [429] * 4


@pytest.mark.parametrize(
    ("address", "same", "other"),
    [(HERE, HERE, ELSEWHERE), ("[2001:db8:1:2::1]", "[2001:db8:1:2:ffff::1]", "[2001:db8:1:3::1]")],
)
def test_addresses_do_not_share_and_one_of_ipv6_is_its_network(address: str, same: str, other: str) -> None:
    use_up(address)
    assert ask(unknown_key(), address=same) == 429
    assert ask(unknown_key(), address=other) == 401


def test_behind_a_proxy_of_ours_the_address_is_the_clients(settings: Settings) -> None:
    settings.TRUSTED_PROXIES = 1
    statuses = [ask(None, **{"x-forwarded-for": HERE}) for _ in range(BURST + 1)]
    assert statuses == [401] * BURST + [429]
    assert ask(None, **{"x-forwarded-for": ELSEWHERE}) == 401


def test_orders_that_are_refused_here_are_nobodys() -> None:
    use_up()
    told: list[int] = []
    protocol: Any = SimpleNamespace(response_bytes=lambda status, *_: told.append(status))
    before = sum(rejection_counts._counts.values())
    asyncio.run(FRONT.__rsgi__(scope_of(None, "/orders", HERE, "POST", {}), protocol))
    assert told == [429]
    assert sum(rejection_counts._counts.values()) == before


# --- What is not ----------------------------------------------------------------------------------------------------


def test_a_known_key_works_on_whatever_others_do_at_its_address(settings: Settings) -> None:
    key = trading.broker("alice")
    assert ask(key) == 200
    use_up()
    assert [ask(key) for _ in range(5 * BURST)] == [200] * 5 * BURST
    settings.KEY_CACHE_SECONDS = 0
    keys._cache.extend([keys._hash(key)], {key.split("_")[1]}, until=0)  # it was known long ago
    assert [ask(key) for _ in range(5 * BURST)] == [200] * 5 * BURST


def test_a_key_that_was_valid_is_looked_up_once_more_and_then_as_any_other() -> None:
    key = trading.broker("alice")
    assert ask(key) == 200
    use_up()
    services.revoke_key("alice", key.split("_")[1], by=BY)
    assert ask(key) == 429


def test_a_valid_key_gets_in_although_others_use_up_what_comes() -> None:
    key = trading.broker("alice")
    use_up()
    others_first = cycle([True, False])

    def gets_in() -> bool:
        if next(others_first):
            ask(unknown_key())
        return ask(key) == 200

    assert wait_until(gets_in, PATIENCE_SECONDS)
    use_up()
    assert ask(key) == 200


def test_requests_without_a_key_take_nothing_from_keys_that_must_be_looked_up() -> None:
    wrong, key = unknown_key(), trading.broker("alice")
    assert ask(wrong) == 401
    while ask(None) == 401 or ask(wrong) == 401:
        pass
    assert ask(key) == 200


def test_a_valid_key_takes_no_token() -> None:
    trading.broker("alice")
    many = [services.issue_key("alice", by=BY)[1] for _ in range(5 * BURST)]
    assert {ask(key) for key in many} == {200}


def test_health_is_told_to_all() -> None:
    use_up()
    for path in ("/healthz", "/readyz"):
        assert {ask(None, path) for _ in range(2 * BURST)} == {200}, path
    assert ask(None, "/healthz", method="POST") == 429
