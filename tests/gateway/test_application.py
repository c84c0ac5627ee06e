"""What the web server's front promises: whatever comes over the wire, and however slowly, nobody else is harmed.

Real sockets and a real server where it matters; the smallest fake of granian's scope and protocol for the rest.
"""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from threading import get_ident
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
import structlog
from django.conf import settings
from django.contrib.staticfiles import finders
from django.db import connection, transaction

from config.local.processes import wait_until
from exchange.http.middleware import Environ
from exchange.models import AuditEntry, Instrument
from gateway.application import Gateway, environ_of
from gateway.django_handler import ExchangeRequest
from orders.models import Order
from tests import api, live, trading
from tests.exchange.client import ApiHandler

pytestmark = pytest.mark.django_db(transaction=True)

ANSWER_SECONDS = 10.0
AT_ONCE_SECONDS = 2.0  # less than a body may take, on however slow a machine
USUAL = b"Content-Type: application/json"
UNUSUAL = b"Content-Type: application/json; charset=UTF8"  # means the same, and goes the long way
CHUNKED = b"Transfer-Encoding: chunked"


# --- What Django is told --------------------------------------------------------------------------------------------


def scope_of(path: str, query: str, *headers: tuple[str, str]) -> Any:
    """A request as granian tells it."""
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
    ("asked", "what", "is_told"),
    [
        (("/stocks/é €", ""), lambda request: request.path, "/stocks/é €"),
        (("/", "x=%C3%A9&x=€&y=é"), lambda request: dict(request.GET.lists()), {"x": ["é", "€"], "y": ["é"]}),
        (("/", "", ("accept", "a"), ("accept", "b")), lambda request: request.headers["Accept"], "a,b"),
        (
            ("/", "", ("cookie", "a=1; b=2"), ("cookie", 'c="3"')),
            lambda request: request.COOKIES,
            {"a": "1", "b": "2", "c": "3"},
        ),
        (("/", "", ("content-type", "a/b"), ("content-type", "c/d")), lambda request: request.content_type, "a/b"),
        (
            ("/", "", ("content-length", "5"), ("content-length", "7"), ("content_length", "9")),
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
def test_django_is_told_what_came(asked: tuple[Any, ...], what: Callable[[ExchangeRequest], Any], is_told: Any) -> None:
    assert what(ExchangeRequest(environ_of(scope_of(*asked)))) == is_told


# --- What a request leaves behind -----------------------------------------------------------------------------------


def connections_in_use() -> int:
    """How many of the pool's connections are somewhere in this process."""
    told = connection.pool.get_stats()  # type: ignore[attr-defined]  # PostgreSQL's has one
    return int(told["pool_size"] - told["pool_available"])


def fail(environ: Environ, start_response: Any) -> list[bytes]:
    connection.ensure_connection()
    raise ZeroDivisionError


def test_what_fails_gives_its_connection_back() -> None:
    connection.close()
    connection.ensure_connection()
    front, before = Gateway(fail, lambda: False, lambda _: None), connections_in_use()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            asyncio.run(front.respond(environ_of(scope_of("/", ""))))
        assert wait_until(lambda: connections_in_use() == before, 5)


def test_a_request_finds_nothing_of_another_in_its_thread() -> None:
    structlog.contextvars.clear_contextvars()  # of earlier tests
    found: list[tuple[int, dict[str, Any]]] = []
    handler = ApiHandler()

    def look_around(environ: Environ, start_response: Any) -> Any:
        found.append((get_ident(), structlog.contextvars.get_contextvars()))
        return handler(environ, start_response)

    async def one_after_another() -> None:
        front = Gateway(look_around, lambda: False, lambda _: None)
        for number in range(10):
            environ = environ_of(scope_of("/healthz", "", ("x-request-id", f"number-{number}")))
            reply = await asyncio.create_task(front.respond(environ))
            assert dict(reply.headers)["X-Request-Id"] == f"number-{number}"

    asyncio.run(one_after_another())
    assert len({thread for thread, _ in found}) < len(found) == 10
    assert [left for _, left in found] == [{}] * 10


# --- Over the wire --------------------------------------------------------------------------------------------------

SMALL_THREADS, SMALL_BODY_SECONDS, SMALL_KEY_SECONDS = 4, 5.0, 1.0
SMALL_LARGE_BODIES = 2
SMALL = f"""
from config.settings.api import *
WEB_THREADS = {SMALL_THREADS}
WEB_BODY_SECONDS = {SMALL_BODY_SECONDS}
KEY_CACHE_SECONDS = {SMALL_KEY_SECONDS}
MAX_LARGE_BODIES = {SMALL_LARGE_BODIES}
TRUSTED_PROXIES = 1
"""


@pytest.fixture(scope="module")
def small_server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    """A web server with few threads and little time, behind a proxy."""
    folder: Path = tmp_path_factory.mktemp("small")
    (folder / "small_front_settings.py").write_text(SMALL)
    running = live.server(folder / "web.log")
    more = {"DJANGO_SETTINGS_MODULE": "small_front_settings", "PYTHONPATH": str(folder)}
    running.child.env = {**running.child.env, **more}
    try:
        running.start()
        yield running
    finally:
        running.stop()


class Wire:
    """One connection, byte by byte; its answers one after another."""

    def __init__(self, server: live.Server, key: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=ANSWER_SECONDS)
        self._key = key.encode()
        self._read: BinaryIO = self.socket.makefile("rb")

    def head(self, line: bytes, *headers: bytes) -> bytes:
        given = [line + b" HTTP/1.1", b"Host: localhost", b"Authorization: Bearer " + self._key, *headers]
        return b"\r\n".join(given) + b"\r\n\r\n"

    def post(self, body: dict[str, Any], *headers: bytes, path: bytes = b"/orders") -> bytes:
        content = json.dumps(body).encode()
        return self.head(b"POST " + path, b"Content-Length: %d" % len(content), *headers) + content

    def send(self, *pieces: bytes) -> None:
        self.socket.sendall(b"".join(pieces))

    def answer(self, *, is_head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next one; that of a HEAD has the length of a body, and none."""
        status = int(self._read.readline().split()[1])
        lines = iter(self._read.readline, b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.decode().partition(":") for line in lines)}
        return status, headers, b"" if is_head else self._read.read(int(headers["content-length"]))

    def code(self) -> tuple[int, str | None]:
        """Status and code of the next answer."""
        status, _, content = self.answer()
        return status, json.loads(content).get("code")

    def close(self) -> None:
        self._read.close()
        self.socket.close()


@pytest.fixture
def key(db: None) -> str:
    """Alice's."""
    return trading.broker("alice")


@pytest.fixture
def wire(server: live.Server, key: str) -> Iterator[Wire]:
    """A connection whose key the server knows: the usual order goes the short way."""
    with closing(Wire(server, key)) as wire:
        wire.send(wire.head(b"GET /stocks"))
        assert wire.answer()[0] == 200
        yield wire


def test_what_is_sent_without_waiting_is_answered_in_that_order(wire: Wire) -> None:
    """Ways of very different length, one connection; and after each it can be used again."""
    asked = [
        (wire.post(api.LIMIT, USUAL, b"X-Request-Id: 0"), 201),
        (wire.head(b"GET /stocks", b"X-Request-Id: 1"), 200),
        (wire.post(api.LIMIT, UNUSUAL, b"X-Request-Id: 2"), 201),
        (wire.post({}, USUAL, b"X-Request-Id: 3"), 400),
        (wire.head(b"DELETE /orders/00000000-0000-0000-0000-000000000000", b"X-Request-Id: 4"), 404),
        (wire.head(b"GET /docs", b"X-Request-Id: 5"), 200),
        (wire.post(api.LIMIT | {"symbol": "NONE"}, USUAL, b"X-Request-Id: 6"), 404),
    ]
    for _ in range(3):
        wire.send(*(request for request, _ in asked))
        answers = [wire.answer() for _ in asked]
        assert [(status, headers["x-request-id"]) for status, headers, _ in answers] == [
            (status, str(number)) for number, (_, status) in enumerate(asked)
        ]
    assert Order.objects.count() == 6


@pytest.mark.parametrize("path", [b"/healthz", b"/stocks/AAPL", b"/nothing", b"/admin/login/", b"/docs"])
def test_head_is_get_without_its_body(wire: Wire, path: bytes) -> None:
    wire.send(wire.head(b"HEAD " + path), wire.head(b"GET " + path))
    head, (status, headers, content) = wire.answer(is_head=True), wire.answer()
    changes = {"date", "x-request-id", "ratelimit", "set-cookie"}
    assert head[0] == status
    assert head[1].keys() | changes == headers.keys() | changes
    assert head[1]["content-length"] == headers["content-length"] == str(len(content))


def test_a_static_file_is_whole(wire: Wire) -> None:
    name = "drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"
    wire.send(wire.head(b"GET /static/" + name.encode()))
    content = Path(str(finders.find(name))).read_bytes()
    assert wire.answer()[::2] == (200, content)
    assert len(content) > 1_000_000


def test_a_static_file_that_is_known_is_not_sent_again(server: live.Server, db: None) -> None:
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_SECONDS)) as http:
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
            answer = http.getresponse()
            statuses.append((answer.status, answer.read()))
    assert statuses == [(304, b"")] * 50


@pytest.mark.parametrize("forged_first", [True, False])
def test_a_client_cannot_add_to_what_the_proxy_says_of_its_address(
    small_server: live.Server, key: str, forged_first: bool
) -> None:
    headers = [b"X-Forwarded-For: 198.51.100.1", b"X_Forwarded_For: 203.0.113.9", b"X_FORWARDED-FOR: 203.0.113.8"]
    with closing(Wire(small_server, str(api.operator().key))) as wire:
        wire.send(wire.head(b"POST /stocks/AAPL/halt", *(reversed(headers) if forged_first else headers)))
        assert wire.answer()[0] == 200
    assert AuditEntry.objects.get(action="instrument.halt").address == "198.51.100.1"


# --- Bodies ---------------------------------------------------------------------------------------------------------

LONGER = 64 * 1024 * 1024


@pytest.mark.parametrize("path", [b"/orders", b"/orders/batch", b"/stocks"])
def test_a_body_said_to_be_too_long_is_refused_before_it_came(wire: Wire, path: bytes) -> None:
    started = time.monotonic()
    wire.send(wire.head(b"POST " + path, USUAL, b"Content-Length: %d" % LONGER), b"{" * 1024)
    assert wire.code() == (413, "too_large")
    assert time.monotonic() - started < AT_ONCE_SECONDS


@pytest.mark.parametrize("path", [b"/orders", b"/orders/batch", b"/stocks"])
def test_a_body_in_chunks_is_read_no_further_than_it_may_be_long(wire: Wire, path: bytes) -> None:
    wire.send(wire.head(b"POST " + path, USUAL, CHUNKED))
    sent, chunk = 0, b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    wire.socket.settimeout(0.5)  # nobody reads any more: what the system holds for us is full
    with suppress(OSError):
        while sent < LONGER:
            wire.send(chunk)
            sent += len(chunk)
    assert sent < LONGER / 2
    wire.socket.settimeout(ANSWER_SECONDS)
    assert wire.code() == (413, "too_large")


UNFINISHED = 400


def unfinished(wire: Wire, number: int) -> bytes:
    """The beginning of a request whose body goes on, in one of several forms."""
    path, form = [(b"/orders", USUAL), (b"/orders/batch", USUAL), (b"/stocks", UNUSUAL)][number % 3]
    length = CHUNKED if number % 2 else b"Content-Length: 500"
    return wire.head(b"POST " + path, form, length) + (b"5\r\n{   " if number % 2 else b"{")


def test_bodies_that_do_not_come_hold_no_thread_and_end_in_time(small_server: live.Server, key: str) -> None:
    """A hundred for each thread."""
    before = trading.everything()
    with ExitStack() as stack:
        slow = [stack.enter_context(closing(Wire(small_server, key))) for _ in range(UNFINISHED)]
        started = time.monotonic()
        for number, wire in enumerate(slow):
            wire.send(unfinished(wire, number))
        quick = stack.enter_context(closing(Wire(small_server, key)))
        for request, status in [
            (quick.head(b"GET /stocks"), 200),
            (quick.post(api.LIMIT | {"symbol": "NONE"}, USUAL), 404),
            (quick.post(api.LIMIT | {"symbol": "NONE"}, UNUSUAL), 404),
            (quick.post({"orders": [api.LIMIT | {"symbol": "NONE"}]}, USUAL, path=b"/orders/batch"), 200),
        ]:
            asked = time.monotonic()
            quick.send(request)
            assert quick.answer()[0] == status
            assert time.monotonic() - asked < AT_ONCE_SECONDS
        assert time.monotonic() - started < SMALL_BODY_SECONDS, "the bodies' time was over before the end"
        assert {wire.code() for wire in slow} == {(400, "malformed_request")}
        assert SMALL_BODY_SECONDS <= time.monotonic() - started < SMALL_BODY_SECONDS + AT_ONCE_SECONDS
    assert trading.everything() == before


LARGE_BODY = b"{}".ljust(settings.MAX_BODY_BYTES + 1)


def large_body_is_refused(server: live.Server, key: str, *length: bytes, chunks: bool = False) -> bool:
    """Whether a large body is refused because too many are held; else because it is no batch, or of no valid key."""
    with closing(Wire(server, key)) as wire:
        wire.send(wire.head(b"POST /orders/batch", USUAL, *length))
        wire.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(LARGE_BODY), LARGE_BODY) if chunks else LARGE_BODY)
        status, code = wire.code()
    assert (status, code) in [(503, "overloaded"), (400, "validation_error"), (401, "unauthenticated")]
    return status == 503


@pytest.mark.parametrize("is_known", [True, False], ids=["a valid key", "no valid key"])
def test_only_so_many_large_bodies_are_held_for_a_key(small_server: live.Server, key: str, *, is_known: bool) -> None:
    other = trading.broker("other")
    for each in (key, other):
        with closing(Wire(small_server, each)) as wire:
            wire.send(wire.head(b"GET /stocks"))
            assert wire.answer()[0] == 200
    attacker, victim = (key, other) if is_known else ("no key", key)
    length = b"Content-Length: %d" % len(LARGE_BODY)
    with ExitStack() as stack:
        for _ in range(SMALL_LARGE_BODIES):
            wire = stack.enter_context(closing(Wire(small_server, attacker)))
            wire.send(wire.head(b"POST /orders/batch", USUAL, length), LARGE_BODY[:-1])
        assert wait_until(lambda: large_body_is_refused(small_server, attacker, length), SMALL_BODY_SECONDS)
        assert large_body_is_refused(small_server, attacker, CHUNKED, chunks=True)
        assert not large_body_is_refused(small_server, victim, length)
        with closing(Wire(small_server, attacker)) as wire:
            wire.send(wire.post(api.LIMIT | {"symbol": "NONE"}, USUAL))  # a small one
            assert wire.answer()[0] == (404 if is_known else 401)
    assert wait_until(lambda: not large_body_is_refused(small_server, attacker, length), SMALL_BODY_SECONDS)


def hang_up(wire: Wire, *, hard: bool) -> None:
    if hard:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


@pytest.mark.parametrize("form", [USUAL, UNUSUAL], ids=["the short way", "the long way"])
def test_who_hangs_up_harms_nobody_and_what_was_begun_is_done(
    server: live.Server, wire: Wire, key: str, form: bytes
) -> None:
    """Every other one in the middle of the body, the others while their order waits for the book."""
    said = server.child.log.stat().st_size
    impatient = [Wire(server, key) for _ in range(40)]
    with transaction.atomic():
        Instrument.objects.select_for_update(no_key=True).get(pk="AAPL")
        for number, short in enumerate(impatient):
            request = short.post(api.LIMIT | {"quantity": 1, "client_order_id": str(number)}, form)
            short.send(request if number % 2 else request[:-1])
        time.sleep(0.5)  # until each is being read, or waits
        for number, short in enumerate(impatient):
            hang_up(short, hard=number % 4 > 1)
        wire.send(wire.post(api.LIMIT | {"client_order_id": "last"}, form))
        time.sleep(0.2)
    assert wire.answer()[0] == 201
    placed = set(Order.objects.values_list("client_order_id", flat=True))
    assert placed == {"last", *(str(number) for number in range(1, 40, 2))}
    with server.child.log.open("rb") as log:
        log.seek(said)
        assert b"Traceback" not in log.read()


# --- Keys -----------------------------------------------------------------------------------------------------------


@contextmanager
def without_keys() -> Iterator[None]:
    """Whoever looks for keys in the database fails."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE exchange_apikey RENAME TO elsewhere")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO exchange_apikey")


def test_a_key_in_use_is_asked_about_before_it_is_needed(small_server: live.Server, key: str) -> None:
    with closing(Wire(small_server, key)) as wire:
        wire.send(wire.head(b"GET /stocks"))
        assert wire.answer()[0] == 200
        time.sleep(2.2 * SMALL_KEY_SECONDS)
        with without_keys():
            wire.send(wire.head(b"GET /stocks"))
            assert wire.answer()[0] == 200
            time.sleep(1.2 * SMALL_KEY_SECONDS)  # nobody could ask again
            wire.send(wire.head(b"GET /stocks"))
            assert wire.code() == (500, "internal_error")
        wire.send(wire.head(b"GET /stocks"))
        assert wire.answer()[0] == 200
