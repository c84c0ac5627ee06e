"""The short way: the usual order and cancel are answered past Django's handler, and nobody can tell by the answer.

Each request goes through the application that the web server runs, and again through one that knows no short way.
Compared are status, headers, every byte of the body and the line in the log, but for what differs from request to
request.
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
from tests.exchange.client import Answer, ApiHandler, Client
from tests.orders.conftest import _check_invariants, alice, bob, operator  # noqa: F401 (fixtures)
from tests.trading import BY

pytestmark = pytest.mark.django_db(transaction=True)

SHORT, LONG = "short", "long"
BURST, TOKEN = 1_000, 10**9
NOBODYS = str(UUID(int=0xABC))
_OF_THE_MOMENT = re.compile(  # ids, times, and what is left of a limit
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
    r"|'milliseconds': [\d.]+|r=\d+;t=\d+|wait \d+ s|'Retry-After', '\d+'"
)


class LongWay(ApiHandler):
    """Knows whether the last request went there."""

    was_taken = False

    def get_response(self, request: Any) -> Any:
        self.was_taken = True
        return super().get_response(request)


LONG_WAY = LongWay()
FRONTS = {
    SHORT: Gateway(LONG_WAY, sequencer.is_full, order_entry.parse_fast_request),
    LONG: Gateway(LONG_WAY, sequencer.is_full, lambda environ: None),
}


class Request:
    """What granian hands to the application, as its scope and as its protocol."""

    http_version, server, client, scheme, query_string = "1.1", "localhost:80", "127.0.0.1:9", "http", ""
    meanwhile: Callable[[], Any] | None = None

    def __init__(self, key: str | None, method: str, path: str, content: bytes, headers: dict[str, str]) -> None:
        self.method = method
        self.path, _, self.query_string = path.partition("?")
        usual = {"host": "localhost", "x-request-id": "mine"}
        if content:
            usual |= {"content-type": "application/json", "content-length": str(len(content))}
        if key is not None:
            usual["authorization"] = f"Bearer {key}"
        self.headers = usual | headers
        self._content = content
        self.said: list[Any] = []

    async def __call__(self) -> bytes:
        if self.meanwhile:
            await run_in_thread(self.meanwhile)
        return self._content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield await self()

    def response_bytes(self, *said: Any) -> None:
        self.said.append(said)


@dataclass(frozen=True, slots=True)
class Told(Answer):
    """An answer, how it came about, and all else that is known of it."""

    way: str
    line: dict[str, Any]
    counted: tuple[int, int]  # requests and cancels taken from the key's limits

    @property
    def lasting(self) -> str:
        """All that another answer to the same request says too."""
        said = f"{self.status} {sorted(self.headers.items())} {self.line} {self.content!r}"
        return _OF_THE_MOMENT.sub("...", said)


class Exchange:
    """What stands before the web server, and looks at everything that a request leaves behind."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def send(
        self,
        front: str,
        key: str | None,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        meanwhile: Callable[[], Any] | None = None,
    ) -> Told:
        content = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        request: Any = Request(key, method, path, content, headers or {})
        request.meanwhile = meanwhile
        before, held = tokens_taken(key), connections_in_use()
        LONG_WAY.was_taken = False
        self._caplog.clear()
        asyncio.run(FRONTS[front].__rsgi__(request, request))
        ((status, said, answered),) = request.said
        assert wait_until(lambda: connections_in_use() <= held, 5), "a connection was kept"
        (record,) = (record for record in self._caplog.records if record.name == "exchange.requests")
        assert len(dict(said)) == len(said)
        assert all(type(text) is str for text in sum(said, ()))
        after, way = tokens_taken(key), LONG if LONG_WAY.was_taken else SHORT
        counted, line = (after[0] - before[0], after[1] - before[1]), json.loads(record.getMessage())
        return Told(int(status), dict(said), answered, way, line, counted)

    def compare(self, ask: Callable[[], tuple[Any, ...]], *, goes: str = SHORT) -> Told:
        """Send what `ask` returns through either handler: the answers are one, and the first goes the way it should."""
        as_it_goes, the_long_way = self.send(SHORT, *ask()), self.send(LONG, *ask())
        assert (as_it_goes.way, the_long_way.way) == (goes, LONG)
        assert as_it_goes.lasting == the_long_way.lasting
        assert as_it_goes.counted == the_long_way.counted
        assert sum(as_it_goes.counted) == int("RateLimit" in as_it_goes.headers and as_it_goes.status != 429)
        assert as_it_goes.line["status"] == as_it_goes.status
        assert as_it_goes.line["request_id"] == as_it_goes.headers["X-Request-Id"] == "mine"
        if as_it_goes.status >= 400:
            api.assert_problem(as_it_goes)
        return as_it_goes


def connections_in_use() -> int:
    """How many of the pool's connections are somewhere in this process."""
    told = connection.pool.get_stats()  # type: ignore[attr-defined]  # PostgreSQL's has one
    has_any = told.get("connections_num", 0) > told.get("connections_errors", 0)
    return int(told["pool_size"] - told["pool_available"]) if has_any else 0


def tokens_taken(key: str | None) -> tuple[int, int]:
    """How many requests and cancels of a key's were ever counted, however long ago."""
    prefix = (key or "").split("_")[-2:][0]
    requests, cancels = (
        limit._full_at.get(prefix, 0) // TOKEN for limit in (rate_limits.requests(), rate_limits.cancels())
    )
    return requests, cancels


def measured(key: str | None) -> str:
    """A key whose buckets are neither full nor empty, so that what is taken can be counted whenever it is taken."""
    assert key is not None
    for limit in (rate_limits.requests(), rate_limits.cancels()):
        limit.take(key.split("_")[1], BURST // 10, time.monotonic_ns())
    return key


def known(key: str | None) -> str:
    """The same, and it was looked up a moment ago."""
    authenticate_key(measured(key))
    return str(key)


@pytest.fixture(autouse=True)
def _slow(settings: Settings) -> None:
    """One token a second; and a key stays known for as long as a test takes."""
    settings.RATE_LIMIT_PER_SECOND = settings.RATE_LIMIT_CANCELS_PER_SECOND = 1
    settings.RATE_LIMIT_BURST = settings.RATE_LIMIT_CANCELS_BURST = BURST
    settings.KEY_CACHE_SECONDS = 60.0


@pytest.fixture
def exchange(caplog: pytest.LogCaptureFixture) -> Iterator[Exchange]:
    with caplog.at_level(logging.INFO):
        yield Exchange(caplog)


@pytest.fixture
def key(alice: Client, bob: Client) -> str:
    return known(alice.key)


def post(**more: Any) -> tuple[str, str, Any]:
    return "POST", "/orders", api.LIMIT | more


def delete(order: Order | UUID | str) -> tuple[str, str]:
    return "DELETE", f"/orders/{order.pk if isinstance(order, Order) else order}"


# --- What is answered the short way ---------------------------------------------------------------------------------


def trading_one() -> tuple[str, str, Any]:
    trading.place(Side.ASK, 2, "9", by="bob")
    return post(time_in_force="ioc")


def replayed_one() -> tuple[str, str, Any]:
    if not Order.objects.exists():
        trading.place(Side.ASK, 2, "9", by="bob")
        trading.place(Side.BID, 5, "10", client_order_id="a")
    return post(client_order_id="a")


def conflicting_one() -> tuple[str, str, Any]:
    replayed_one()
    return post(client_order_id="a", document_number="1")


def in_a_halt() -> tuple[str, str, Any]:
    Instrument.objects.update(status=InstrumentStatus.HALTED)
    return post()


def resting(by: str = "alice") -> tuple[str, str]:
    return delete(trading.place(Side.BID, 5, "10", by=by))


def partly_filled() -> tuple[str, str]:
    order = trading.place(Side.BID, 5, "10")
    trading.place(Side.ASK, 2, "9", by="bob")
    return delete(order)


def closed() -> tuple[str, str]:
    order = Order.objects.first() or trading.place(Side.BID, 5, "10")
    trading.cancel(order)
    return delete(order)


@pytest.mark.parametrize(
    ("ask", "status", "says"),
    [
        (post, 201, {"status": "pending", "client_order_id": None}),
        (lambda: post(expires_at=api.LATER, time_in_force="gtd"), 201, {"time_in_force": "gtd"}),
        (trading_one, 201, {"status": "cancelled", "cancel_reason": "ioc_remainder", "filled_quantity": 2}),
        (lambda: ("POST", "/orders", api.market("bid", 5)), 201, {"cancel_reason": "no_liquidity"}),
        (replayed_one, 200, {"client_order_id": "a", "filled_quantity": 2}),
        (conflicting_one, 409, {"code": "client_order_id_conflict"}),
        (lambda: post(price="999999"), 409, {"code": "insufficient_balance"}),
        (lambda: post(price="10.001"), 400, {"code": "validation_error"}),
        (lambda: post(symbol="NONE"), 404, {"code": "symbol_not_found"}),
        (in_a_halt, 409, {"code": "instrument_halted"}),
        (resting, 200, {"status": "cancelled", "cancel_reason": "by_broker"}),
        (partly_filled, 200, {"status": "cancelled", "filled_quantity": 2}),
        (closed, 409, {"code": "order_not_cancellable"}),
        (lambda: delete(NOBODYS), 404, {"code": "order_not_found"}),
        (lambda: resting(by="bob"), 404, {"code": "order_not_found"}),
    ],
)
def test_the_answer_is_that_of_the_long_way(
    exchange: Exchange, key: str, ask: Callable[[], Any], status: int, says: dict[str, Any]
) -> None:
    answer = exchange.compare(lambda: (key, *ask()))
    assert (answer.status, answer.body | says) == (status, answer.body)
    assert (answer.line["key"], answer.line["broker"]) == (key.split("_")[1], "alice")
    assert answer.counted == ((1, 0) if answer.line["method"] == "POST" else (0, 1))


def test_an_operator_cancels_the_short_way_too(exchange: Exchange, key: str, operator: Client) -> None:
    with trading.on_record() as entries:
        answer = exchange.compare(lambda: (known(operator.key), *resting()))
    assert (answer.status, answer.body["cancel_reason"], answer.line["broker"]) == (200, "by_operator", None)
    short, long = ((each.actor_kind, each.actor, each.address, each.request_id, each.after) for each in entries)
    assert short == long
    assert short[:4] == ("key", str(operator.key).split("_")[1], "127.0.0.1", "mine")
    assert {each.subject for each in entries} == {str(pk) for pk in Order.objects.values_list("pk", flat=True)}


@pytest.mark.parametrize("front", [SHORT, LONG])
def test_what_goes_on_record_has_the_id_that_the_answer_tells(exchange: Exchange, operator: Client, front: str) -> None:
    trading.broker("alice")
    with trading.on_record() as entries:
        answer = exchange.send(front, known(operator.key), *resting(), None, {"x-request-id": "not one"})
    assert (answer.status, answer.way) == (200, front)
    assert [each.request_id for each in entries] == [answer.headers["X-Request-Id"]]


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "é"])
@pytest.mark.parametrize("front", [SHORT, LONG])
def test_a_request_without_a_good_id_gets_one(exchange: Exchange, key: str, front: str, given: str) -> None:
    answer = exchange.send(front, key, *post(symbol="NONE"), {"x-request-id": given})
    new = answer.headers["X-Request-Id"]
    assert (answer.way, str(UUID(new)), answer.body["request_id"], answer.line["request_id"]) == (front, *[new] * 3)


# --- What is not ----------------------------------------------------------------------------------------------------


def issued(*scopes: Scope) -> str:
    return known(services.issue_key("alice", scopes=scopes, by=BY)[1])


def revoked() -> str:
    services.revoke_key("alice", (key := issued(Scope.TRADE)).split("_")[1], by=BY)
    return key


def expired() -> str:
    key = known(services.issue_key("alice", expires_at=timezone.now() + timedelta(seconds=0.3), by=BY)[1])
    time.sleep(0.4)
    return key


BODY = msgspec.json.encode(api.LIMIT)
CHUNKED = {"transfer-encoding": "chunked"}


@pytest.mark.parametrize(
    ("status", "code", "ask"),
    [
        (401, "unauthenticated", lambda key: (None, *post())),
        (401, "unauthenticated", lambda key: (None, *delete(NOBODYS))),
        (401, "unauthenticated", lambda key: ("brs_" + "0" * 12 + "_" + "0" * 64, *post())),
        (401, "unauthenticated", lambda key: (key[:-1] + "é", *post())),
        (401, "unauthenticated", lambda key: (revoked(), *post())),
        (401, "unauthenticated", lambda key: (expired(), *delete(NOBODYS))),
        (201, None, lambda key: (key, *post(), {"authorization": f"bearer {key}"})),
        (201, None, lambda key: (key, *post(), {"authorization": f"Bearer  {key} "})),
        (403, "scope_missing", lambda key: (issued(Scope.READ), *post())),
        (403, "scope_missing", lambda key: (issued(Scope.READ), *delete(NOBODYS))),
        (403, "scope_missing", lambda key: (known(api.operator().key), *post())),
        (403, "broker_mismatch", lambda key: (key, *post(broker_id="bob"))),
        (400, "validation_error", lambda key: (key, *post(price="x", quantity=0))),
        (400, "validation_error", lambda key: (key, *post(colour="red"))),
        (400, "validation_error", lambda key: (key, "POST", "/orders?x=1", BODY)),
        (400, "validation_error", lambda key: (key, *delete(NOBODYS + "?x=1"))),
        (400, "malformed_request", lambda key: (key, "POST", "/orders", BODY[:-1])),
        (400, "malformed_request", lambda key: (key, "POST", "/orders", b"[]")),
        (400, "malformed_request", lambda key: (key, "POST", "/orders", b"")),
        (400, "malformed_request", lambda key: (key, "POST", "/orders", BODY, {"content-length": str(len(BODY) + 1)})),
        (400, "malformed_request", lambda key: (key, "POST", "/orders", BODY, {"content-length": "-1"})),
        (413, "too_large", lambda key: (key, "POST", "/orders", BODY.ljust(conf.MAX_BODY_BYTES + 1))),
        (415, "unsupported_media_type", lambda key: (key, *post(), {"content-type": "text/json"})),
        (201, None, lambda key: (key, *post(), {"content-type": "application/json; charset=latin-1"})),
        (201, None, lambda key: (key, *post(), CHUNKED)),
        (201, None, lambda key: (key, *post(), CHUNKED | {"content-length": ""})),
        (404, "order_not_found", lambda key: (key, *delete(NOBODYS.upper()))),
        (404, "not_found", lambda key: (key, *delete(NOBODYS + "\n"))),
        (404, "not_found", lambda key: (key, *delete("junk"))),
        (404, "not_found", lambda key: (key, "POST", "/orders/", BODY)),
        (405, "method_not_allowed", lambda key: (key, "PUT", "/orders", BODY)),
    ],
)
def test_what_is_not_certain_goes_the_long_way(
    exchange: Exchange, key: str, status: int, code: str | None, ask: Callable[[str], tuple[Any, ...]]
) -> None:
    asked, before = ask(key), trading.everything()
    answer = exchange.compare(lambda: asked, goes=LONG)
    assert (answer.status, answer.body.get("code")) == (status, code)
    assert (trading.everything() == before) == (status >= 400)


def test_a_client_may_say_that_json_is_utf_8(exchange: Exchange, key: str) -> None:
    utf_8 = {"content-type": "application/json; charset=utf-8"}
    assert exchange.compare(lambda: (key, *post(), utf_8)).status == 201


def test_a_body_goes_the_short_way_as_long_as_it_counts_as_one_request(exchange: Exchange, key: str) -> None:
    longest = conf.RATE_LIMIT_BYTES_PER_REQUEST
    assert exchange.compare(lambda: (key, "POST", "/orders", BODY.ljust(longest))).status == 201
    longer = exchange.send(SHORT, key, "POST", "/orders", BODY.ljust(longest + 1))
    assert (longer.status, longer.way, longer.counted) == (201, LONG, (2, 0))


@pytest.mark.parametrize(("seconds", "then"), [(60.0, SHORT), (0.0, LONG)])
def test_a_key_must_have_been_looked_up_a_moment_ago(
    exchange: Exchange, alice: Client, settings: Settings, seconds: float, then: str
) -> None:
    settings.KEY_CACHE_SECONDS = seconds
    asked = (measured(alice.key), *post())
    told = [exchange.send(SHORT, *asked) for _ in range(3)]
    assert [(each.way, each.status, each.counted) for each in told] == [
        (way, 201, (1, 0)) for way in (LONG, then, then)
    ]


def test_a_key_that_is_revoked_while_the_body_comes_places_nothing(exchange: Exchange, key: str) -> None:
    def ask() -> tuple[Any, ...]:
        doomed = issued(Scope.TRADE)
        return doomed, "POST", "/orders", BODY, None, lambda: services.revoke_key("alice", doomed.split("_")[1], by=BY)

    assert exchange.compare(ask, goes=LONG).status == 401
    assert not Order.objects.exists()


@pytest.mark.parametrize(("body", "goes"), [(BODY, SHORT), (BODY[:-1], LONG)])
def test_the_time_that_a_body_takes_is_told(exchange: Exchange, key: str, body: bytes, goes: str) -> None:
    told = exchange.send(SHORT, key, "POST", "/orders", body, None, lambda: time.sleep(0.2))
    assert (told.way, told.line["milliseconds"] >= 200) == (goes, True)


# --- Limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used_up", ["requests", "cancels"])
def test_a_key_that_used_up_one_limit_is_refused_the_long_way(exchange: Exchange, key: str, used_up: str) -> None:
    limit, other = (rate_limits.requests(), resting) if used_up == "requests" else (rate_limits.cancels(), post)
    limit._full_at[key.split("_")[1]] = time.monotonic_ns() + 2 * BURST * TOKEN
    answer = exchange.compare(lambda: (key, *(post() if used_up == "requests" else delete(NOBODYS))), goes=LONG)
    assert (answer.status, answer.code, answer.counted) == (429, "rate_limited", (0, 0))
    assert exchange.compare(lambda: (key, *other())).status in (200, 201)


# --- What nobody foresaw --------------------------------------------------------------------------------------------


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
    """Nobody listens where this process looks for PostgreSQL."""
    there = dict(connection.settings_dict)
    options = there["OPTIONS"] | {"pool": {"min_size": 0, "max_size": 1, "timeout": 0.2}}
    _reconnect({"PORT": free_port(), "OPTIONS": options})
    try:
        yield
    finally:
        _reconnect(there)


def _reconnect(changes: dict[str, Any]) -> None:
    """From now on with other settings, which all threads share."""
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]  # PostgreSQL's has one
    connection.settings_dict.update(changes)


@pytest.mark.parametrize(
    ("ask", "table"), [(post, Order), (resting, Order), (replayed_one, Trade)], ids=["place", "cancel", "replay"]
)
def test_an_unexpected_error_is_the_same_problem(
    exchange: Exchange, key: str, ask: Callable[[], Any], table: type[Model]
) -> None:
    asked = ask()
    with without_table(table._meta.db_table):
        answer = exchange.compare(lambda: (key, *asked))
    assert (answer.status, answer.code, sum(answer.counted)) == (500, "internal_error", 1)


@pytest.mark.parametrize("ask", [post, resting], ids=["place", "cancel"])
def test_without_a_database_nothing_is_done(exchange: Exchange, key: str, ask: Callable[[], Any]) -> None:
    asked, before = ask(), trading.everything()
    with without_database():
        answer = exchange.compare(lambda: (key, *asked))
    assert (answer.status, answer.code, sum(answer.counted)) == (503, "overloaded", 1)
    assert trading.everything() == before
