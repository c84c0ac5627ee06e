"""The gateway: slow, malformed and aborted requests affect no other request.

The tests use real sockets and a live server, or the smallest fake of granian's scope and protocol.
"""

import asyncio
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Lock, get_ident
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
import structlog
from django.conf import settings
from django.contrib.staticfiles import finders
from django.db import connection, transaction

from config.local.processes import wait_until
from exchange.http import log_throttle
from exchange.http.middleware import STARTED_AT, Environ
from exchange.models import AuditEntry, Instrument
from gateway.application import Gateway, environ_of
from gateway.django_handler import ExchangeRequest
from orders.models import Order
from tests import api, live, trading
from tests.exchange.client import ApiHandler

pytestmark = pytest.mark.django_db(transaction=True)

RESPONSE_SECONDS = 10.0
SHORT_SECONDS = 2.0  # less than a body may take
FAST_TYPE = b"Content-Type: application/json"
FULL_TYPE = b"Content-Type: application/json; charset=UTF8"  # equivalent, but takes the full path
CHUNKED = b"Transfer-Encoding: chunked"


# --- Conversion for Django ------------------------------------------------------------------------------------------


def scope_of(path: str, query: str, *headers: tuple[str, str]) -> Any:
    """A request as granian's scope."""
    return SimpleNamespace(
        method="POST",
        path=path,
        query_string=query,
        http_version="1.1",
        server="127.0.0.1:8000",
        client="10.0.0.1:4711",
        scheme="http",
        headers=SimpleNamespace(items=lambda: [("host", "localhost:8000"), *headers]),
    )


@pytest.mark.parametrize(
    ("sent", "read", "expected"),
    [
        (("/stocks/é €", ""), lambda request: request.path, "/stocks/é €"),
        (("/", "x=%C3%A9&x=€&y=é"), lambda request: dict(request.GET.lists()), {"x": ["é", "€"], "y": ["é"]}),
        (("/", "", ("accept", "a"), ("accept", "b")), lambda request: request.headers["Accept"], "a,b"),
        (
            ("/", "", ("cookie", "a=1; b=2"), ("cookie", 'c="3"')),
            lambda request: request.COOKIES,
            {"a": "1", "b": "2", "c": "3"},
        ),
        (("/", "", ("content-type", "a/b"), ("content-type", "c/d")), lambda request: request.content_type, "a/b,c/d"),
        (
            ("/", "", ("content-length", "5"), ("content_length", "9")),
            lambda request: [value for name, value in request.META.items() if "LENGTH" in name],
            ["5"],
        ),
        (("/", "", ("x-a", "1"), ("x_a", "2")), lambda request: request.headers["X-A"], "1"),
        (("/", "", ("x_a", "2"), ("x-a", "1")), lambda request: request.headers["X-A"], "1"),
        (("/", "", ("x_a", "2")), lambda request: "X-A" in request.headers, False),
        (("/", ""), lambda request: (request.get_host(), request.get_port()), ("localhost:8000", "8000")),
        (("/", ""), lambda request: (request.method, request.META["REMOTE_ADDR"]), ("POST", "10.0.0.1")),
    ],
)  # fmt: skip
def test_django_receives_the_request_as_sent(
    sent: tuple[Any, ...], read: Callable[[ExchangeRequest], Any], expected: Any
) -> None:
    assert read(ExchangeRequest(environ_of(scope_of(*sent)))) == expected


# --- Isolation of requests ------------------------------------------------------------------------------------------


def connections_in_use() -> int:
    """Connections of the pool that this process uses."""
    stats = connection.pool.get_stats()  # type: ignore[attr-defined]  # only PostgreSQL's has a pool
    return int(stats["pool_size"] - stats["pool_available"])


def fail(environ: Environ, start_response: Any) -> list[bytes]:
    connection.ensure_connection()
    raise ZeroDivisionError


def test_a_failed_request_returns_its_connection() -> None:
    connection.close()
    connection.ensure_connection()
    gateway, before = Gateway(fail, lambda: False, lambda _: None), connections_in_use()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            asyncio.run(gateway.respond(environ_of(scope_of("/", ""))))
        assert wait_until(lambda: connections_in_use() == before, 5)


def test_a_request_does_not_see_the_context_of_another() -> None:
    structlog.contextvars.clear_contextvars()  # from earlier tests
    found: list[tuple[int, dict[str, Any]]] = []
    handler = ApiHandler()

    def record_context(environ: Environ, start_response: Any) -> Any:
        found.append((get_ident(), structlog.contextvars.get_contextvars()))
        return handler(environ, start_response)

    async def send_requests() -> None:
        gateway = Gateway(record_context, lambda: False, lambda _: None)
        for number in range(10):
            environ = environ_of(scope_of("/healthz", "", ("x-request-id", f"number-{number}")))
            response = await asyncio.create_task(gateway.respond(environ))
            assert dict(response.headers)["X-Request-Id"] == f"number-{number}"

    asyncio.run(send_requests())
    assert len({thread for thread, _ in found}) < len(found) == 10
    assert [context for _, context in found] == [{}] * 10


def test_reads_have_few_threads_and_leave_the_others_to_changes() -> None:
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    lock, is_released = Lock(), Event()

    def block(environ: Environ, start_response: Any) -> Any:
        method = environ["REQUEST_METHOD"]
        with lock:
            running[method] += 1
            most[method] = max(most[method], running[method])
        assert is_released.wait(RESPONSE_SECONDS)
        with lock:
            running[method] -= 1
        start_response("204 No Content", [])
        return []

    async def send_requests() -> None:
        gateway = Gateway(block, lambda: False, lambda _: None)
        methods = ["GET"] * 3 * settings.WEB_READ_THREADS + ["PATCH"] * 2
        environs = [environ_of(scope_of("/orders", "")) | {"REQUEST_METHOD": method} for method in methods]
        responses = [asyncio.create_task(gateway.respond(environ)) for environ in environs]
        while most["PATCH"] < 2 or most["GET"] < settings.WEB_READ_THREADS:
            await asyncio.sleep(0.01)
        is_released.set()
        assert {(await response).status for response in responses} == {204}

    asyncio.run(asyncio.wait_for(send_requests(), RESPONSE_SECONDS))
    assert most["GET"] == settings.WEB_READ_THREADS


def test_requests_rejected_before_their_key_is_checked_are_logged_as_counts(caplog: pytest.LogCaptureFixture) -> None:
    gateway, sent = Gateway(ApiHandler(), lambda: True, lambda _: None), 3 * settings.LOG_UNKNOWN_LINES

    async def reject(path: str, *headers: tuple[str, str]) -> int:
        environ = environ_of(scope_of(path, "", *headers)) | {STARTED_AT: time.perf_counter()}
        response = await gateway.respond(environ)
        assert response.headers["X-Request-Id"] == json.loads(response.content)["request_id"]
        return response.status

    async def reject_all() -> None:
        assert [await reject("/orders") for _ in range(sent)] == [503] * sent
        assert [await reject("/stocks", ("host", "again")) for _ in range(sent)] == [400] * sent

    log_throttle.flush()
    with caplog.at_level("INFO"):
        asyncio.run(reject_all())
        log_throttle.flush()
    lines = [json.loads(each.getMessage())["status"] for each in caplog.records if each.name == "exchange.requests"]
    counted: Any
    (counted,) = (each.msg for each in caplog.records if "requests_counted" in str(each.msg))
    assert settings.LOG_UNKNOWN_LINES <= len(lines) < 2 * sent
    assert counted["address"] == "10.0.0.1"
    assert Counter(map(str, lines)) + Counter(counted["statuses"]) == {"503": sent, "400": sent}


# --- Live server ----------------------------------------------------------------------------------------------------

SMALL_THREADS, SMALL_BODY_SECONDS, SMALL_KEY_SECONDS = 4, 5.0, 1.0
SMALL_LARGE_BODIES = 2
SMALL_SETTINGS = f"""
from config.settings.api import *
WEB_THREADS = {SMALL_THREADS}
WEB_BODY_TIMEOUT_SECONDS = {SMALL_BODY_SECONDS}
KEY_CACHE_SECONDS = {SMALL_KEY_SECONDS}
MAX_LARGE_BODIES = {SMALL_LARGE_BODIES}
TRUSTED_PROXIES = 1
"""


@pytest.fixture(scope="module")
def small_server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    """An API server with few threads and short timeouts, behind a proxy."""
    folder: Path = tmp_path_factory.mktemp("small")
    (folder / "small_gateway_settings.py").write_text(SMALL_SETTINGS)
    running = live.server(folder / "web.log")
    more = {"DJANGO_SETTINGS_MODULE": "small_gateway_settings", "PYTHONPATH": str(folder)}
    running.child.env = {**running.child.env, **more}
    try:
        running.start()
        yield running
    finally:
        running.stop()


class KeepAliveClient:
    """A connection that sends raw bytes and reads one response after another."""

    def __init__(self, server: live.Server, key: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=RESPONSE_SECONDS)
        self._key = key.encode()
        self._read: BinaryIO = self.socket.makefile("rb")

    def head(self, line: bytes, *headers: bytes) -> bytes:
        lines = [line + b" HTTP/1.1", b"Host: localhost", b"Authorization: Bearer " + self._key, *headers]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def post(self, body: dict[str, Any], *headers: bytes, path: bytes = b"/orders") -> bytes:
        content = json.dumps(body).encode()
        return self.head(b"POST " + path, b"Content-Length: %d" % len(content), *headers) + content

    def send(self, *pieces: bytes) -> None:
        self.socket.sendall(b"".join(pieces))

    def read_response(self, *, is_head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Read the next response; that of a HEAD has a length but no body."""
        status = int(self._read.readline().split()[1])
        lines = iter(self._read.readline, b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.decode().partition(":") for line in lines)}
        return status, headers, b"" if is_head else self._read.read(int(headers["content-length"]))

    def read_status_and_code(self) -> tuple[int, str | None]:
        """Read status and code of the next response."""
        status, _, content = self.read_response()
        return status, json.loads(content).get("code")

    def close(self) -> None:
        self._read.close()
        self.socket.close()


@pytest.fixture
def key(db: None) -> str:
    """Alice's key."""
    return trading.broker("alice")


@pytest.fixture
def client(server: live.Server, key: str) -> Iterator[KeepAliveClient]:
    """A connection whose key the server has cached, as the fast path requires."""
    with closing(KeepAliveClient(server, key)) as client:
        client.send(client.head(b"GET /stocks"))
        assert client.read_response()[0] == 200
        yield client


def test_pipelined_requests_are_answered_in_order(client: KeepAliveClient) -> None:
    """The requests take paths of different lengths, and the connection stays open after each."""
    sent = [
        (client.post(api.LIMIT, FAST_TYPE, b"X-Request-Id: 0"), 201),
        (client.head(b"GET /stocks", b"X-Request-Id: 1"), 200),
        (client.post(api.LIMIT, FULL_TYPE, b"X-Request-Id: 2"), 201),
        (client.post({}, FAST_TYPE, b"X-Request-Id: 3"), 400),
        (client.head(b"DELETE /orders/00000000-0000-0000-0000-000000000000", b"X-Request-Id: 4"), 404),
        (client.head(b"GET /docs", b"X-Request-Id: 5"), 200),
        (client.post(api.LIMIT | {"symbol": "NONE"}, FAST_TYPE, b"X-Request-Id: 6"), 404),
    ]
    for _ in range(3):
        client.send(*(request for request, _ in sent))
        responses = [client.read_response() for _ in sent]
        assert [(status, headers["x-request-id"]) for status, headers, _ in responses] == [
            (status, str(number)) for number, (_, status) in enumerate(sent)
        ]
    assert Order.objects.count() == 6


@pytest.mark.parametrize("path", [b"/healthz", b"/stocks/AAPL", b"/nothing", b"/admin/login/", b"/docs"])
def test_head_is_get_without_its_body(client: KeepAliveClient, path: bytes) -> None:
    client.send(client.head(b"HEAD " + path), client.head(b"GET " + path))
    head, (status, headers, content) = client.read_response(is_head=True), client.read_response()
    changes = {"date", "x-request-id", "ratelimit", "set-cookie"}
    assert head[0] == status
    assert head[1].keys() | changes == headers.keys() | changes
    assert head[1]["content-length"] == headers["content-length"] == str(len(content))


def test_a_static_file_is_sent_completely(client: KeepAliveClient) -> None:
    name = "drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"
    client.send(client.head(b"GET /static/" + name.encode()))
    content = Path(str(finders.find(name))).read_bytes()
    assert client.read_response()[::2] == (200, content)
    assert len(content) > 1_000_000


def test_a_cached_static_file_is_not_sent_again(server: live.Server, db: None) -> None:
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=RESPONSE_SECONDS)) as http:
        http.request("GET", "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui.css")
        known = http.getresponse()
        assert known.read()
        statuses = []
        for _ in range(50):
            http.request(
                "GET",
                "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui.css",
                headers={"If-None-Match": known.headers["ETag"]},
            )
            response = http.getresponse()
            statuses.append((response.status, response.read()))
    assert statuses == [(304, b"")] * 50


@pytest.mark.parametrize("forged_first", [True, False])
def test_a_client_cannot_forge_its_forwarded_address(small_server: live.Server, key: str, forged_first: bool) -> None:
    headers = [b"X-Forwarded-For: 198.51.100.1", b"X_Forwarded_For: 203.0.113.9", b"X_FORWARDED-FOR: 203.0.113.8"]
    with closing(KeepAliveClient(small_server, str(api.operator().key))) as client:
        client.send(client.head(b"POST /stocks/AAPL/halt", *(reversed(headers) if forged_first else headers)))
        assert client.read_response()[0] == 200
    assert AuditEntry.objects.get(action="instrument.halt").address == "198.51.100.1"


# --- Bodies ---------------------------------------------------------------------------------------------------------

LONG_BODY_BYTES = 64 * 1024 * 1024


@pytest.mark.parametrize("path", [b"/orders", b"/orders/batch", b"/stocks"])
def test_a_too_large_content_length_is_rejected_before_the_body_arrives(client: KeepAliveClient, path: bytes) -> None:
    started = time.monotonic()
    client.send(client.head(b"POST " + path, FAST_TYPE, b"Content-Length: %d" % LONG_BODY_BYTES), b"{" * 1024)
    assert client.read_status_and_code() == (413, "too_large")
    assert time.monotonic() - started < SHORT_SECONDS


@pytest.mark.parametrize("path", [b"/orders", b"/orders/batch", b"/stocks"])
def test_a_chunked_body_is_read_only_up_to_its_limit(client: KeepAliveClient, path: bytes) -> None:
    client.send(client.head(b"POST " + path, FAST_TYPE, CHUNKED))
    sent, chunk = 0, b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    client.socket.settimeout(0.5)  # the server stops reading, so the system's buffers fill up
    with suppress(OSError):
        while sent < LONG_BODY_BYTES:
            client.send(chunk)
            sent += len(chunk)
    assert sent < LONG_BODY_BYTES / 2
    client.socket.settimeout(RESPONSE_SECONDS)
    assert client.read_status_and_code() == (413, "too_large")


UNFINISHED = 400


def unfinished(client: KeepAliveClient, number: int) -> bytes:
    """The beginning of a request with an unfinished body, in one of several forms."""
    path, form = [(b"/orders", FAST_TYPE), (b"/orders/batch", FAST_TYPE), (b"/stocks", FULL_TYPE)][number % 3]
    length = CHUNKED if number % 2 else b"Content-Length: 500"
    return client.head(b"POST " + path, form, length) + (b"5\r\n{   " if number % 2 else b"{")


def test_unfinished_bodies_hold_no_thread_and_time_out(small_server: live.Server, key: str) -> None:
    """The server gets 100 unfinished bodies per thread."""
    before = trading.snapshot()
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(KeepAliveClient(small_server, key))) for _ in range(UNFINISHED)]
        started = time.monotonic()
        for number, client in enumerate(clients):
            client.send(unfinished(client, number))
        quick = stack.enter_context(closing(KeepAliveClient(small_server, key)))
        for request, status in [
            (quick.head(b"GET /stocks"), 200),
            (quick.post(api.LIMIT | {"symbol": "NONE"}, FAST_TYPE), 404),
            (quick.post(api.LIMIT | {"symbol": "NONE"}, FULL_TYPE), 404),
            (quick.post({"orders": [api.LIMIT | {"symbol": "NONE"}]}, FAST_TYPE, path=b"/orders/batch"), 200),
        ]:
            sent_at = time.monotonic()
            quick.send(request)
            assert quick.read_response()[0] == status
            assert time.monotonic() - sent_at < SHORT_SECONDS
        assert time.monotonic() - started < SMALL_BODY_SECONDS, "the bodies timed out too early"
        assert {client.read_status_and_code() for client in clients} == {(400, "malformed_request")}
        assert SMALL_BODY_SECONDS <= time.monotonic() - started < SMALL_BODY_SECONDS + SHORT_SECONDS
    assert trading.snapshot() == before


LARGE_BODY = b"{}".ljust(settings.MAX_BODY_BYTES + 1)


def is_large_body_rejected(server: live.Server, key: str, *length: bytes, chunks: bool = False) -> bool:
    """True if a large body is rejected as overloaded, and not for its content or key."""
    with closing(KeepAliveClient(server, key)) as client:
        client.send(client.head(b"POST /orders/batch", FAST_TYPE, *length))
        client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(LARGE_BODY), LARGE_BODY) if chunks else LARGE_BODY)
        status, code = client.read_status_and_code()
    assert (status, code) in [(503, "overloaded"), (400, "validation_error"), (401, "unauthenticated")]
    return status == 503


@pytest.mark.parametrize("is_known", [True, False], ids=["a valid key", "no valid key"])
def test_large_bodies_are_limited_per_key(small_server: live.Server, key: str, *, is_known: bool) -> None:
    other = trading.broker("other")
    for each in (key, other):
        with closing(KeepAliveClient(small_server, each)) as client:
            client.send(client.head(b"GET /stocks"))
            assert client.read_response()[0] == 200
    attacker, victim = (key, other) if is_known else ("no key", key)
    length = b"Content-Length: %d" % len(LARGE_BODY)
    with ExitStack() as stack:
        for _ in range(SMALL_LARGE_BODIES):
            client = stack.enter_context(closing(KeepAliveClient(small_server, attacker)))
            client.send(client.head(b"POST /orders/batch", FAST_TYPE, length), LARGE_BODY[:-1])
        assert wait_until(lambda: is_large_body_rejected(small_server, attacker, length), SMALL_BODY_SECONDS)
        assert is_large_body_rejected(small_server, attacker, CHUNKED, chunks=True)
        assert not is_large_body_rejected(small_server, victim, length)
        with closing(KeepAliveClient(small_server, attacker)) as client:
            client.send(client.post(api.LIMIT | {"symbol": "NONE"}, FAST_TYPE))  # a small body
            assert client.read_response()[0] == (404 if is_known else 401)
    assert wait_until(lambda: not is_large_body_rejected(small_server, attacker, length), SMALL_BODY_SECONDS)


def disconnect(client: KeepAliveClient, *, hard: bool) -> None:
    if hard:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("form", [FAST_TYPE, FULL_TYPE], ids=["fast path", "full path"])
def test_disconnects_affect_no_other_request_and_sent_orders_complete(
    server: live.Server, client: KeepAliveClient, key: str, form: bytes
) -> None:
    """Half of the clients disconnect in the middle of the body, half while their order waits for the book."""
    log_size = server.child.log.stat().st_size
    clients = [KeepAliveClient(server, key) for _ in range(40)]
    with transaction.atomic():
        Instrument.objects.select_for_update(no_key=True).get(pk="AAPL")
        for number, each in enumerate(clients):
            request = each.post(api.LIMIT | {"quantity": 1, "client_order_id": str(number)}, form)
            each.send(request if number % 2 else request[:-1])
        time.sleep(0.5)  # until all bodies are being read or their orders wait
        for number, each in enumerate(clients):
            disconnect(each, hard=number % 4 > 1)
        client.send(client.post(api.LIMIT | {"client_order_id": "last"}, form))
        time.sleep(0.2)
    assert client.read_response()[0] == 201
    placed = set(Order.objects.values_list("client_order_id", flat=True))
    assert placed == {"last", *(str(number) for number in range(1, 40, 2))}
    with server.child.log.open("rb") as log:
        log.seek(log_size)
        assert b"Traceback" not in log.read()


# --- Keys -----------------------------------------------------------------------------------------------------------


@contextmanager
def without_keys() -> Iterator[None]:
    """Let every lookup of keys in the database fail."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE exchange_apikey RENAME TO elsewhere")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO exchange_apikey")


def test_a_key_in_use_is_refreshed_before_its_cache_entry_expires(small_server: live.Server, key: str) -> None:
    with closing(KeepAliveClient(small_server, key)) as client:
        client.send(client.head(b"GET /stocks"))
        assert client.read_response()[0] == 200
        time.sleep(2.2 * SMALL_KEY_SECONDS)
        with without_keys():
            client.send(client.head(b"GET /stocks"))
            assert client.read_response()[0] == 200
            time.sleep(1.2 * SMALL_KEY_SECONDS)  # no refresh was possible
            client.send(client.head(b"GET /stocks"))
            assert client.read_status_and_code() == (500, "internal_error")
        client.send(client.head(b"GET /stocks"))
        assert client.read_response()[0] == 200
