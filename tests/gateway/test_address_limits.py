"""Limits of requests without a valid key: by address, before the database lookup, without cost to valid keys."""

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
GATEWAY = Gateway(ApiHandler(), lambda: False, order_entry.parse_fast_request)


@pytest.fixture(autouse=True)
def _few_tokens(settings: Settings) -> None:
    """A burst of three, then one token per second, and an empty key cache."""
    settings.RATE_LIMIT_UNKNOWN_BURST, settings.RATE_LIMIT_UNKNOWN_PER_SECOND = BURST, 1
    settings.RATE_LIMIT_DELAY_SECONDS = 0
    settings.INVALID_KEY_CACHE_SECONDS = PATIENCE_SECONDS
    rate_limits._limit.cache_clear()
    keys._cache = keys._KeyCache()


def scope_of(key: str | None, path: str, address: str, method: str, headers: dict[str, str]) -> Any:
    all_headers = {"host": "localhost"} | ({} if key is None else {"authorization": f"Bearer {key}"}) | headers
    scope: Any = SimpleNamespace(method=method, path=path, query_string="", http_version="1.1", scheme="http")
    scope.server, scope.client, scope.headers = "127.0.0.1:8000", f"{address}:4711", all_headers
    return scope


async def send(
    key: str | None, path: str = "/stocks", address: str = HERE, method: str = "GET", **headers: str
) -> RenderedResponse:
    environ = environ_of(scope_of(key, path, address, method, headers))
    return await GATEWAY.respond(environ | {STARTED_AT: time.perf_counter()})


def status_of(*args: Any, **more: Any) -> int:
    """Send a request through the gateway and return the status."""
    return asyncio.run(send(*args, **more)).status


def unknown_key() -> str:
    return new_key()[0]


def exhaust(address: str = HERE) -> None:
    """Take all tokens of an address, for key lookups and for other requests."""
    while status_of(unknown_key(), address=address) == 401 or status_of(None, address=address) == 401:
        pass


# --- Limited requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad_key", [unknown_key, lambda: None, lambda: "garbage"], ids=["unknown", "none", "garbage"])
def test_invalid_keys_are_rate_limited_before_their_lookup(bad_key: Any) -> None:
    assert [status_of(bad_key()) for _ in range(BURST)] == [401] * BURST
    with without_keys():
        rejected = asyncio.run(send(bad_key()))
    headers, body = dict(rejected.headers), json.loads(rejected.content)
    assert (rejected.status, headers["Retry-After"], headers["Content-Type"]) == (429, "1", "application/problem+json")
    assert (body["code"], body["request_id"]) == ("rate_limited", headers["X-Request-Id"])
    accepted = asyncio.run(send(trading.broker("alice"), address=ELSEWHERE))
    assert headers.keys() - {"Retry-After"} == dict(accepted.headers).keys() - {"RateLimit", "RateLimit-Policy"}


def test_concurrent_requests_share_the_limit() -> None:
    async def flood() -> list[int]:
        return [response.status for response in await asyncio.gather(*(send(unknown_key()) for _ in range(50)))]

    started = time.monotonic()
    statuses = asyncio.run(flood())
    assert BURST <= statuses.count(401) <= BURST + 1 + (time.monotonic() - started)
    assert statuses.count(429) == 50 - statuses.count(401)


def test_the_number_of_delayed_rejections_is_limited(settings: Settings) -> None:
    exhaust()
    settings.RATE_LIMIT_DELAY_SECONDS, settings.RATE_LIMIT_MAX_DELAYED = PATIENCE_SECONDS, 2

    async def flood() -> int:
        tasks = [asyncio.create_task(send(None)) for _ in range(2 * BURST)]
        for count, rejected in enumerate(asyncio.as_completed(tasks), 1):
            await rejected
            if count == len(tasks) - 2:
                return sum(not task.done() for task in tasks)
        return 0

    started = time.monotonic()
    assert asyncio.run(flood()) == 2  # the others are rejected immediately
    assert time.monotonic() - started < PATIENCE_SECONDS


def test_unknown_paths_are_counted() -> None:
    assert [status_of(None, "/nothing") for _ in range(BURST)] == [404] * BURST
    assert [status_of(None, path) for path in ("/nothing", "/openapi.json", "/docs", "/stocks")] == [429] * 4


@pytest.mark.parametrize(
    ("address", "equivalent", "other"),
    [(HERE, HERE, ELSEWHERE), ("[2001:db8:1:2::1]", "[2001:db8:1:2:ffff::1]", "[2001:db8:1:3::1]")],
)
def test_limits_are_per_ipv4_address_or_ipv6_network(address: str, equivalent: str, other: str) -> None:
    exhaust(address)
    assert status_of(unknown_key(), address=equivalent) == 429
    assert status_of(unknown_key(), address=other) == 401


def test_the_address_behind_a_trusted_proxy_is_the_clients(settings: Settings) -> None:
    settings.TRUSTED_PROXIES = 1
    statuses = [status_of(None, **{"x-forwarded-for": HERE}) for _ in range(BURST + 1)]
    assert statuses == [401] * BURST + [429]
    assert status_of(None, **{"x-forwarded-for": ELSEWHERE}) == 401


def test_rate_limited_orders_without_a_key_are_not_counted_as_rejections() -> None:
    exhaust()
    statuses: list[int] = []
    protocol: Any = SimpleNamespace(response_bytes=lambda status, *_: statuses.append(status))
    before = sum(rejection_counts._counts.values())
    asyncio.run(GATEWAY.__rsgi__(scope_of(None, "/orders", HERE, "POST", {}), protocol))
    assert statuses == [429]
    assert sum(rejection_counts._counts.values()) == before


def test_every_request_with_a_cached_key_counts_towards_its_limit(settings: Settings) -> None:
    settings.RATE_LIMIT_BURST, settings.RATE_LIMIT_PER_SECOND = 2 * BURST, 1
    key = trading.broker("alice")
    assert status_of(key) == 200
    expected = {"/nothing": 404, "/openapi.json": 200, "/docs": 200, "/admin/login/": 404, "/healthz": 405}
    for path, status in expected.items():
        response = asyncio.run(send(key, path, method="GET" if status != 405 else "POST"))
        assert (response.status, response.headers["RateLimit-Policy"]) == (status, '"requests";q=6;w=6')

    exhausted = [asyncio.run(send(key, path, method="POST")) for path in (*expected, "/stocks", "/orders")]
    assert [each.status for each in exhausted] == [429] * 7
    assert {json.loads(each.content)["detail"].partition(";")[0] for each in exhausted} == {
        "This key may send 1 requests a second, and 6 at once"
    }
    assert {status_of(key, path) for path in ("/healthz", "/readyz")} == {200}
    assert status_of(None, "/nothing") == 404  # counts by address


# --- Valid keys and health checks -----------------------------------------------------------------------------------


def test_a_cached_key_works_at_an_exhausted_address(settings: Settings) -> None:
    key = trading.broker("alice")
    assert status_of(key) == 200
    exhaust()
    assert [status_of(key) for _ in range(5 * BURST)] == [200] * 5 * BURST
    settings.KEY_CACHE_SECONDS = 0
    keys._cache.extend([keys._hash(key)], {key.split("_")[1]}, until=0)  # cached long ago
    assert [status_of(key) for _ in range(5 * BURST)] == [200] * 5 * BURST


def test_a_revoked_key_is_limited_like_any_other() -> None:
    key = trading.broker("alice")
    assert status_of(key) == 200
    exhaust()
    services.revoke_key("alice", key.split("_")[1], by=BY)
    assert status_of(key) == 429


def test_a_valid_key_succeeds_while_others_take_the_new_tokens() -> None:
    key = trading.broker("alice")
    exhaust()
    is_others_turn = cycle([True, False])

    def succeeds() -> bool:
        if next(is_others_turn):
            status_of(unknown_key())
        return status_of(key) == 200

    assert wait_until(succeeds, PATIENCE_SECONDS)
    exhaust()
    assert status_of(key) == 200


def test_requests_without_a_key_take_no_tokens_from_key_lookups() -> None:
    wrong, key = unknown_key(), trading.broker("alice")
    assert status_of(wrong) == 401
    while status_of(None) == 401 or status_of(wrong) == 401:
        pass
    assert status_of(key) == 200


def test_a_valid_key_takes_no_token() -> None:
    trading.broker("alice")
    many = [services.issue_key("alice", by=BY)[1] for _ in range(5 * BURST)]
    assert {status_of(key) for key in many} == {200}


def test_health_checks_are_not_limited() -> None:
    exhaust()
    for path in ("/healthz", "/readyz"):
        assert {status_of(None, path, method=method) for _ in range(BURST) for method in ("GET", "HEAD")} == {200}, path
    assert status_of(None, "/healthz", method="POST") == 429
