"""The fast path: common orders and cancels bypass Django's handler, with identical responses.

Each request is sent through the API's gateway and through one without the fast path. Status, headers, body and log line
must agree, except for values that differ between any two requests.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from django.conf import settings as conf
from django.db import connection
from django.db.models import Model
from django.utils import timezone
from pytest_django import Settings

from config.local.processes import wait_until
from config.local.servers import free_port
from exchange import services
from exchange.http import rate_limits
from exchange.http.threads import run_in_thread
from exchange.keys import authenticate_key
from exchange.models import Instrument
from exchange.rules import InstrumentStatus, Scope
from gateway import order_entry
from gateway.application import Gateway
from orders.enums import Side
from orders.matching import sequencer
from orders.models import Order, Trade
from tests import api, trading
from tests.exchange.client import ApiHandler, ApiResponse, Client
from tests.orders.conftest import _check_invariants, alice, bob, operator  # noqa: F401 (fixtures)
from tests.trading import BY

pytestmark = pytest.mark.django_db(transaction=True)

FAST, FULL = "fast", "full"
BURST, TOKEN = 1_000, 10**9
UNKNOWN_ID = str(UUID(int=0xABC))
_VARIABLE = re.compile(  # ids, times and remaining limits
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
    r"|'milliseconds': [\d.]+|r=\d+;t=\d+|wait \d+ s|'Retry-After', '\d+'"
)


class FullPath(ApiHandler):
    """Django's handler, which records whether it was used."""

    was_used = False

    def get_response(self, request: Any) -> Any:
        self.was_used = True
        return super().get_response(request)


FULL_PATH = FullPath()
GATEWAYS = {
    FAST: Gateway(FULL_PATH, sequencer.is_full, order_entry.parse_fast_request),
    FULL: Gateway(FULL_PATH, sequencer.is_full, lambda environ: None),
}


class Request:
    """Granian's scope and protocol of one request."""

    http_version, server, client, scheme, query_string = "1.1", "localhost:80", "127.0.0.1:9", "http", ""
    during_body: Callable[[], Any] | None = None

    def __init__(self, key: str | None, method: str, path: str, content: bytes, headers: dict[str, str]) -> None:
        self.method = method
        self.path, _, self.query_string = path.partition("?")
        defaults = {"host": "localhost", "x-request-id": "mine"}
        if content:
            defaults |= {"content-type": "application/json", "content-length": str(len(content))}
        if key is not None:
            defaults["authorization"] = f"Bearer {key}"
        self.headers = defaults | headers
        self._content = content
        self.responses: list[Any] = []

    async def __call__(self) -> bytes:
        if self.during_body:
            await run_in_thread(self.during_body)
        return self._content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield await self()

    def response_bytes(self, *response: Any) -> None:
        self.responses.append(response)


@dataclass(frozen=True, slots=True)
class Observation(ApiResponse):
    """A response, and everything else that its request left behind."""

    path: str  # FAST or FULL
    log_line: dict[str, Any]
    tokens: tuple[int, int]  # requests and cancels taken from the key's limits

    @property
    def comparable(self) -> str:
        """The values that do not differ between two equal requests."""
        return _VARIABLE.sub("...", f"{self.status} {sorted(self.headers.items())} {self.log_line} {self.content!r}")


class Observer:
    """Sends requests through a gateway and records everything that they leave behind."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def send(
        self,
        gateway: str,
        key: str | None,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        during_body: Callable[[], Any] | None = None,
    ) -> Observation:
        content = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        request: Any = Request(key, method, path, content, headers or {})
        request.during_body = during_body
        before, held = tokens_taken(key), connections_in_use()
        FULL_PATH.was_used = False
        self._caplog.clear()
        asyncio.run(GATEWAYS[gateway].__rsgi__(request, request))
        ((status, headers_sent, content_sent),) = request.responses
        assert wait_until(lambda: connections_in_use() <= held, 5), "a connection was kept"
        (record,) = (record for record in self._caplog.records if record.name == "exchange.requests")
        assert len(dict(headers_sent)) == len(headers_sent)
        assert all(type(text) is str for text in sum(headers_sent, ()))
        after, path_taken = tokens_taken(key), FULL if FULL_PATH.was_used else FAST
        tokens, log_line = (after[0] - before[0], after[1] - before[1]), json.loads(record.getMessage())
        return Observation(int(status), dict(headers_sent), content_sent, path_taken, log_line, tokens)

    def compare(self, create: Callable[[], tuple[Any, ...]], *, path: str = FAST) -> Observation:
        """Send a request through each gateway. Check that they respond alike and that the first one takes `path`."""
        first, second = self.send(FAST, *create()), self.send(FULL, *create())
        assert (first.path, second.path) == (path, FULL)
        assert first.comparable == second.comparable
        assert first.tokens == second.tokens
        assert sum(first.tokens) == int("RateLimit" in first.headers and first.status != 429)
        assert first.log_line["status"] == first.status
        assert first.log_line["request_id"] == first.headers["X-Request-Id"] == "mine"
        if first.status >= 400:
            api.assert_problem(first)
        return first


def connections_in_use() -> int:
    """Connections of the pool that this process uses."""
    stats = connection.pool.get_stats()  # type: ignore[attr-defined]  # only PostgreSQL's has a pool
    has_any = stats.get("connections_num", 0) > stats.get("connections_errors", 0)
    return int(stats["pool_size"] - stats["pool_available"]) if has_any else 0


def tokens_taken(key: str | None) -> tuple[int, int]:
    """The requests and cancels of a key that were ever counted."""
    prefix = (key or "").split("_")[-2:][0]
    requests, cancels = (
        limit._full_at.get(prefix, 0) // TOKEN for limit in (rate_limits.requests(), rate_limits.cancels())
    )
    return requests, cancels


def countable(key: str | None) -> str:
    """Make a key's buckets neither full nor empty, so that every token taken can be counted."""
    assert key is not None
    for limit in (rate_limits.requests(), rate_limits.cancels()):
        limit.take(key.split("_")[1], BURST // 10, time.monotonic_ns())
    return key


def cached(key: str | None) -> str:
    """Make a key countable and cached."""
    authenticate_key(countable(key))
    return str(key)


@pytest.fixture(autouse=True)
def _slow_limits(settings: Settings) -> None:
    """One token per second, and a key cache that outlives the test."""
    settings.RATE_LIMIT_PER_SECOND = settings.RATE_LIMIT_CANCELS_PER_SECOND = 1
    settings.RATE_LIMIT_BURST = settings.RATE_LIMIT_CANCELS_BURST = BURST
    settings.KEY_CACHE_SECONDS = 60.0


@pytest.fixture
def observer(caplog: pytest.LogCaptureFixture) -> Iterator[Observer]:
    with caplog.at_level(logging.INFO):
        yield Observer(caplog)


@pytest.fixture
def key(alice: Client, bob: Client) -> str:
    return cached(alice.key)


def post(**more: Any) -> tuple[str, str, Any]:
    return "POST", "/orders", api.LIMIT | more


def delete(order: Order | UUID | str) -> tuple[str, str]:
    return "DELETE", f"/orders/{order.pk if isinstance(order, Order) else order}"


# --- Requests on the fast path --------------------------------------------------------------------------------------


def crossing_order() -> tuple[str, str, Any]:
    trading.place(Side.ASK, 2, "9", by="bob")
    return post(time_in_force="ioc")


def replayed_order() -> tuple[str, str, Any]:
    if not Order.objects.exists():
        trading.place(Side.ASK, 2, "9", by="bob")
        trading.place(Side.BID, 5, "10", client_order_id="a")
    return post(client_order_id="a")


def conflicting_order() -> tuple[str, str, Any]:
    replayed_order()
    return post(client_order_id="a", document_number="1")


def order_in_a_halt() -> tuple[str, str, Any]:
    Instrument.objects.update(status=InstrumentStatus.HALTED)
    return post()


def cancel(by: str = "alice") -> tuple[str, str]:
    return delete(trading.place(Side.BID, 5, "10", by=by))


def cancel_partly_filled() -> tuple[str, str]:
    order = trading.place(Side.BID, 5, "10")
    trading.place(Side.ASK, 2, "9", by="bob")
    return delete(order)


def cancel_closed() -> tuple[str, str]:
    order = Order.objects.first() or trading.place(Side.BID, 5, "10")
    trading.cancel(order)
    return delete(order)


@pytest.mark.parametrize(
    ("create", "status", "fields"),
    [
        (post, 201, {"status": "pending", "client_order_id": None}),
        (lambda: post(expires_at=api.LATER, time_in_force="gtd"), 201, {"time_in_force": "gtd"}),
        (crossing_order, 201, {"status": "cancelled", "cancel_reason": "ioc_remainder", "filled_quantity": 2}),
        (lambda: ("POST", "/orders", api.market("bid", 5)), 201, {"cancel_reason": "no_liquidity"}),
        (replayed_order, 200, {"client_order_id": "a", "filled_quantity": 2}),
        (conflicting_order, 409, {"code": "client_order_id_conflict"}),
        (lambda: post(price="999999"), 409, {"code": "insufficient_balance"}),
        (lambda: post(price="10.001"), 400, {"code": "validation_error"}),
        (lambda: post(symbol="NONE"), 404, {"code": "symbol_not_found"}),
        (order_in_a_halt, 409, {"code": "instrument_halted"}),
        (cancel, 200, {"status": "cancelled", "cancel_reason": "by_broker"}),
        (cancel_partly_filled, 200, {"status": "cancelled", "filled_quantity": 2}),
        (cancel_closed, 409, {"code": "order_not_cancellable"}),
        (lambda: delete(UNKNOWN_ID), 404, {"code": "order_not_found"}),
        (lambda: cancel(by="bob"), 404, {"code": "order_not_found"}),
    ],
)
def test_fast_path_and_full_path_respond_alike(
    observer: Observer, key: str, create: Callable[[], Any], status: int, fields: dict[str, Any]
) -> None:
    response = observer.compare(lambda: (key, *create()))
    assert (response.status, response.body | fields) == (status, response.body)
    assert (response.log_line["key"], response.log_line["broker"]) == (key.split("_")[1], "alice")
    assert response.tokens == ((1, 0) if response.log_line["method"] == "POST" else (0, 1))


def test_a_cancel_by_an_operator_takes_the_fast_path(observer: Observer, key: str, operator: Client) -> None:
    with trading.new_audit_entries() as entries:
        response = observer.compare(lambda: (cached(operator.key), *cancel()))
    assert (response.status, response.body["cancel_reason"], response.log_line["broker"]) == (200, "by_operator", None)
    fast, full = ((each.actor_kind, each.actor, each.address, each.request_id, each.after) for each in entries)
    assert fast == full
    assert fast[:4] == ("key", str(operator.key).split("_")[1], "127.0.0.1", "mine")
    assert {each.subject for each in entries} == {str(pk) for pk in Order.objects.values_list("pk", flat=True)}


@pytest.mark.parametrize("gateway", [FAST, FULL])
def test_an_audit_entry_has_the_request_id_of_the_response(observer: Observer, operator: Client, gateway: str) -> None:
    trading.broker("alice")
    with trading.new_audit_entries() as entries:
        response = observer.send(gateway, cached(operator.key), *cancel(), None, {"x-request-id": "not one"})
    assert (response.status, response.path) == (200, gateway)
    assert [each.request_id for each in entries] == [response.headers["X-Request-Id"]]


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "é"])
@pytest.mark.parametrize("gateway", [FAST, FULL])
def test_a_request_without_a_valid_id_gets_one(observer: Observer, key: str, gateway: str, given: str) -> None:
    response = observer.send(gateway, key, *post(symbol="NONE"), {"x-request-id": given})
    new = response.headers["X-Request-Id"]
    assert (response.path, str(UUID(new))) == (gateway, new)
    assert response.body["request_id"] == response.log_line["request_id"] == new


# --- Requests on the full path --------------------------------------------------------------------------------------


def new_key(*scopes: Scope) -> str:
    return cached(services.issue_key("alice", scopes=scopes, by=BY)[1])


def revoked_key() -> str:
    services.revoke_key("alice", (key := new_key(Scope.TRADE)).split("_")[1], by=BY)
    return key


def expired_key() -> str:
    key = cached(services.issue_key("alice", expires_at=timezone.now() + timedelta(seconds=0.3), by=BY)[1])
    time.sleep(0.4)
    return key


BODY = msgspec.json.encode(api.LIMIT)
CHUNKED = {"transfer-encoding": "chunked"}


@pytest.mark.parametrize(
    ("status", "code", "create"),
    [
        (401, "unauthenticated", lambda key: (None, *post())),
        (401, "unauthenticated", lambda key: (None, *delete(UNKNOWN_ID))),
        (401, "unauthenticated", lambda key: ("brs_" + "0" * 12 + "_" + "0" * 64, *post())),
        (401, "unauthenticated", lambda key: (key[:-1] + "é", *post())),
        (401, "unauthenticated", lambda key: (revoked_key(), *post())),
        (401, "unauthenticated", lambda key: (expired_key(), *delete(UNKNOWN_ID))),
        (201, None, lambda key: (key, *post(), {"authorization": f"bearer {key}"})),
        (201, None, lambda key: (key, *post(), {"authorization": f"Bearer  {key} "})),
        (403, "scope_missing", lambda key: (new_key(Scope.READ), *post())),
        (403, "scope_missing", lambda key: (new_key(Scope.READ), *delete(UNKNOWN_ID))),
        (403, "scope_missing", lambda key: (cached(api.operator().key), *post())),
        (403, "broker_mismatch", lambda key: (key, *post(broker_id="bob"))),
        (400, "validation_error", lambda key: (key, *post(price="x", quantity=0))),
        (400, "validation_error", lambda key: (key, *post(colour="red"))),
        (400, "validation_error", lambda key: (key, "POST", "/orders?x=1", BODY)),
        (400, "validation_error", lambda key: (key, *delete(UNKNOWN_ID + "?x=1"))),
        (400, "validation_error", lambda key: (key, *delete(UNKNOWN_ID + "?broker_id=alice&broker_id=alice"))),
        (400, "malformed_request", lambda key: (key, "POST", "/orders", BODY[:-1])),
        (400, "malformed_request", lambda key: (key, "POST", "/orders", b"[]")),
        (400, "malformed_request", lambda key: (key, "POST", "/orders", BODY[:-1] + b', "price": 1}')),
        (400, "malformed_request", lambda key: (key, "POST", "/orders", b"")),
        (400, "malformed_request", lambda key: (key, "POST", "/orders", BODY, {"content-length": str(len(BODY) + 1)})),
        (400, "malformed_request", lambda key: (key, "POST", "/orders", BODY, {"content-length": "-1"})),
        (413, "too_large", lambda key: (key, "POST", "/orders", BODY.ljust(conf.MAX_BODY_BYTES + 1))),
        (415, "unsupported_media_type", lambda key: (key, *post(), {"content-type": "text/json"})),
        (415, "unsupported_media_type", lambda key: (key, *post(), {"content-encoding": "gzip"})),
        (415, "unsupported_media_type", lambda key: (key, *post(), {"content-encoding": "identity, br"})),
        (201, None, lambda key: (key, *post(), {"content-encoding": "Identity"})),
        (201, None, lambda key: (key, *post(), {"content-type": "application/json; charset=latin-1"})),
        (201, None, lambda key: (key, *post(), CHUNKED)),
        (201, None, lambda key: (key, *post(), CHUNKED | {"content-length": ""})),
        (404, "order_not_found", lambda key: (key, *delete(UNKNOWN_ID.upper()))),
        (404, "not_found", lambda key: (key, *delete(UNKNOWN_ID + "\n"))),
        (404, "not_found", lambda key: (key, *delete("junk"))),
        (404, "not_found", lambda key: (key, "POST", "/orders/", BODY)),
        (405, "method_not_allowed", lambda key: (key, "PUT", "/orders", BODY)),
        (405, "method_not_allowed", lambda key: (key, "post", "/orders", BODY)),
        (405, "method_not_allowed", lambda key: (key, "delete", f"/orders/{UNKNOWN_ID}")),
    ],
)
def test_uncommon_requests_take_the_full_path(
    observer: Observer, key: str, status: int, code: str | None, create: Callable[[str], tuple[Any, ...]]
) -> None:
    request, before = create(key), trading.snapshot()
    response = observer.compare(lambda: request, path=FULL)
    assert (response.status, response.body.get("code")) == (status, code)
    assert (trading.snapshot() == before) == (status >= 400)


def test_a_charset_of_utf_8_takes_the_fast_path(observer: Observer, key: str) -> None:
    utf_8 = {"content-type": "application/json; charset=utf-8"}
    assert observer.compare(lambda: (key, *post(), utf_8)).status == 201


def test_a_body_that_counts_as_one_request_takes_the_fast_path(observer: Observer, key: str) -> None:
    longest = conf.RATE_LIMIT_BYTES_PER_REQUEST
    assert observer.compare(lambda: (key, "POST", "/orders", BODY.ljust(longest))).status == 201
    longer = observer.send(FAST, key, "POST", "/orders", BODY.ljust(longest + 1))
    assert (longer.status, longer.path, longer.tokens) == (201, FULL, (2, 0))


@pytest.mark.parametrize(("seconds", "then"), [(60.0, FAST), (0.0, FULL)])
def test_the_fast_path_requires_a_cached_key(
    observer: Observer, alice: Client, settings: Settings, seconds: float, then: str
) -> None:
    settings.KEY_CACHE_SECONDS = seconds
    request = (countable(alice.key), *post())
    sent = [observer.send(FAST, *request) for _ in range(3)]
    assert [(each.path, each.status, each.tokens) for each in sent] == [
        (path, 201, (1, 0)) for path in (FULL, then, then)
    ]


def test_a_key_revoked_while_the_body_arrives_places_no_order(observer: Observer, key: str) -> None:
    def create() -> tuple[Any, ...]:
        key = new_key(Scope.TRADE)
        return key, "POST", "/orders", BODY, None, lambda: services.revoke_key("alice", key.split("_")[1], by=BY)

    assert observer.compare(create, path=FULL).status == 401
    assert not Order.objects.exists()


@pytest.mark.parametrize(("body", "path"), [(BODY, FAST), (BODY[:-1], FULL)])
def test_the_logged_duration_includes_the_body(observer: Observer, key: str, body: bytes, path: str) -> None:
    sent = observer.send(FAST, key, "POST", "/orders", body, None, lambda: time.sleep(0.2))
    assert (sent.path, sent.log_line["milliseconds"] >= 200) == (path, True)


# --- Limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exhausted", ["requests", "cancels"])
def test_a_key_over_one_rate_limit_is_rejected_on_the_full_path(observer: Observer, key: str, exhausted: str) -> None:
    limit, other = (rate_limits.requests(), cancel) if exhausted == "requests" else (rate_limits.cancels(), post)
    limit._full_at[key.split("_")[1]] = time.monotonic_ns() + 2 * BURST * TOKEN
    response = observer.compare(lambda: (key, *(post() if exhausted == "requests" else delete(UNKNOWN_ID))), path=FULL)
    assert (response.status, response.code, response.tokens) == (429, "rate_limited", (0, 0))
    assert observer.compare(lambda: (key, *other())).status in (200, 201)


# --- Unexpected errors ----------------------------------------------------------------------------------------------


@contextmanager
def without_table(table: str) -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO elsewhere")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE elsewhere RENAME TO {table}")


@contextmanager
def without_database() -> Iterator[None]:
    """Point this process at a port without PostgreSQL."""
    original = dict(connection.settings_dict)
    options = original["OPTIONS"] | {"pool": {"min_size": 0, "max_size": 1, "timeout": 0.2}}
    _reconnect({"PORT": free_port(), "OPTIONS": options})
    try:
        yield
    finally:
        _reconnect(original)


def _reconnect(changes: dict[str, Any]) -> None:
    """Change the connection settings, which all threads share."""
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]  # only PostgreSQL's has a pool
    connection.settings_dict.update(changes)


@pytest.mark.parametrize(
    ("create", "table"), [(post, Order), (cancel, Order), (replayed_order, Trade)], ids=["place", "cancel", "replay"]
)
def test_an_unexpected_error_is_a_500_problem_on_both_paths(
    observer: Observer, key: str, create: Callable[[], Any], table: type[Model]
) -> None:
    request = create()
    with without_table(table._meta.db_table):
        response = observer.compare(lambda: (key, *request))
    assert (response.status, response.code, sum(response.tokens)) == (500, "internal_error", 1)


@pytest.mark.parametrize("create", [post, cancel], ids=["place", "cancel"])
def test_without_a_database_requests_are_overloaded(observer: Observer, key: str, create: Callable[[], Any]) -> None:
    request, before = create(), trading.snapshot()
    with without_database():
        response = observer.compare(lambda: (key, *request))
    assert (response.status, response.code, sum(response.tokens)) == (503, "overloaded", 1)
    assert trading.snapshot() == before
