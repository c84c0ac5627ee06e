"""Malformed and unusual requests, sent as raw bytes over a socket."""

import gzip
import json
import socket
import time
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from django.conf import settings

from exchange import services
from exchange.models import Instrument
from exchange.rules import Scope
from gateway.request_bodies import MAX_CHUNKS
from tests.live import Server
from tests.trading import BY

pytestmark = pytest.mark.django_db(transaction=True)

STOCK = b'{"symbol": "AAPL"}'


class RawClient:
    """A client of an operator that sends raw bytes, each request on a new connection."""

    def __init__(self, server: Server) -> None:
        self.port = server.port
        self.key = services.issue_key(None, scopes=[Scope.OPERATOR], by=BY)[1]

    def send(self, request_line: bytes, *headers: bytes, body: bytes = b"") -> tuple[int, Any]:
        """Send a request and return its status and JSON."""
        lines = [request_line + b" HTTP/1.1", b"Connection: close", *headers]
        if not any(header.lower().startswith(b"authorization") for header in headers):
            lines.append(b"Authorization: Bearer " + self.key.encode())
        if not any(header.lower().startswith(b"host") for header in headers):
            lines.append(b"Host: localhost")
        return self.send_lines(lines, body)

    def send_lines(self, lines: list[bytes], body: bytes = b"") -> tuple[int, Any]:
        """Send a request of exactly these lines and return its status and JSON."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):  # like HTTP clients: the response may have been sent
                connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            with connection.makefile("rb") as response:
                head, _, content = response.read().partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(content) if content.startswith(b"{") else None

    def post(self, path: bytes, body: bytes, *headers: bytes) -> tuple[int, Any]:
        length = b"Content-Length: %d" % len(body)
        return self.send(b"POST " + path, b"Content-Type: application/json", length, *headers, body=body)


@pytest.fixture
def client(server: Server) -> RawClient:
    return RawClient(server)


def _chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


CHUNKED = (b"Content-Type: application/json", b"Transfer-Encoding: chunked")


def test_a_chunked_body_is_read_completely(client: RawClient) -> None:
    status, body = client.send(b"POST /stocks", *CHUNKED, body=_chunked(STOCK[:5], STOCK[5:]))

    assert (status, body["symbol"]) == (201, "AAPL")


def test_a_chunked_body_has_a_size_limit(client: RawClient) -> None:
    status, body = client.send(b"POST /stocks", *CHUNKED, body=_chunked(*[STOCK.ljust(1024)] * 65))

    assert (status, body["code"]) == (413, "too_large")
    assert not Instrument.objects.exists()


@pytest.mark.parametrize(("pieces", "status"), [(500, 201), (900, 201), (MAX_CHUNKS + 1, 400)])
def test_a_chunked_body_has_a_limit_of_chunks(client: RawClient, pieces: int, status: int) -> None:
    padding = [b" "] * (pieces - 1)
    assert client.send(b"POST /stocks", *CHUNKED, body=_chunked(*padding, STOCK))[0] == status


NO_KEY = b"Authorization: none"


@pytest.mark.parametrize("body", [_chunked(), _chunked(*[b" "] * (MAX_CHUNKS + 1)), _chunked(b"{")])
def test_an_unreadable_body_without_a_key_is_401(client: RawClient, body: bytes) -> None:
    assert client.send(b"POST /stocks", *CHUNKED, NO_KEY, body=body)[1]["code"] == "unauthenticated"
    assert client.send(b"POST /nothing", *CHUNKED, NO_KEY, body=body)[1]["code"] == "not_found"
    assert client.send(b"POST /stocks/AAPL", *CHUNKED, body=body)[1]["code"] == "method_not_allowed"


def test_zero_chunks_are_an_empty_body(client: RawClient) -> None:
    assert client.send(b"POST /stocks", *CHUNKED, body=_chunked())[1]["code"] == "malformed_request"


def test_a_post_without_length_or_chunks_has_an_empty_body(client: RawClient) -> None:
    assert client.send(b"POST /stocks", b"Content-Type: application/json")[1]["code"] == "malformed_request"


@pytest.mark.parametrize("size", [64 * 1024 + 1, 1024 * 1024, 20 * 1024 * 1024])
def test_a_body_of_any_size_over_the_limit_is_413(client: RawClient, size: int) -> None:
    status, body = client.post(b"/stocks", STOCK.ljust(size))

    assert (status, body["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "parameters",
    [
        b"",
        b"; charset=utf-8",
        b"; charset=rot13",
        b"; charset=utf-16",
        b"; charset=idna",
        b"; charset*=utf-8''a%00b",
        b"; charset*=nonsense''a",
        b";;;=",
    ],
)
def test_parameters_of_the_media_type_are_ignored(client: RawClient, parameters: bytes) -> None:
    header = b"Content-Type: Application/JSON" + parameters

    assert client.send(b"POST /stocks", header, b"Content-Length: %d" % len(STOCK), body=STOCK)[0] == 201
    assert client.send(b"GET /stocks?limit=5", header)[0] == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/stocks?limit=\xe2\x82\xac", 400),
        (b"/stocks?\xe2\x82\xac=1", 400),
        (b"/stocks?x=%00%ff", 400),
        (b"/stocks/\xe2\x82\xac", 404),
        (b"/stocks/%00%ff", 404),
        (b"/%2e%2e/%2e%2e/etc/passwd", 404),
        (b"http://elsewhere/stocks/NONE", 404),
        (b"/" + b"x" * 8000, 404),
        (b"/static/nothing", 404),
        (b"/static/%00", 404),
        (b"/static/%ff", 404),
        (b"/static/../manage.py", 404),
    ],
)
def test_a_malformed_target_never_causes_a_5xx(client: RawClient, target: bytes, status: int) -> None:
    found, body = client.send(b"GET " + target)

    assert found == status
    assert body["request_id"]


@pytest.mark.parametrize("value", [b"\xff\xfe", b"Bearer " + b"x" * 20_000, b"Bearer \xc3\xa9", b"Bearer", b""])
def test_a_malformed_authorization_is_401(client: RawClient, value: bytes) -> None:
    assert client.send(b"GET /stocks", b"Authorization: " + value)[0] == 401


def test_a_truncated_body_changes_nothing(client: RawClient) -> None:
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        head = b"POST /stocks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
        connection.sendall(head + b"Authorization: Bearer " + client.key.encode() + b"\r\n\r\n" + STOCK)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
    assert client.send(b"GET /healthz")[0] == 200
    assert not Instrument.objects.exists()


def test_a_content_length_header_with_an_underscore_is_ignored(client: RawClient) -> None:
    client.post(b"/stocks", STOCK)

    status, body = client.send(b"POST /stocks/AAPL/halt", b"Content-Type: application/json", b"Content_Length: 5")
    assert (status, body["status"]) == (200, "halted")


def test_unfinished_bodies_do_not_block_other_requests(client: RawClient) -> None:
    head = b"POST /stocks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 500\r\n"
    head += b"Authorization: Bearer " + client.key.encode() + b"\r\n\r\n{"
    with ExitStack() as idle:
        for _ in range(settings.DATABASE_POOL_SIZE + 5):
            idle.enter_context(socket.create_connection(("127.0.0.1", client.port), timeout=10)).sendall(head)
        time.sleep(0.5)  # until all bodies are being read
        started = time.monotonic()

        assert client.send(b"GET /stocks")[0] == 200
        assert time.monotonic() - started < settings.DATABASE_POOL_TIMEOUT_SECONDS


# --- Rules of HTTP that granian does not check -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [b"Host: a", b"Host: a"],
        [b"Host: a", b"Host: b"],
        [b"Host: a,b"],
        [b"Host: a b"],
        [b"Host: a/b"],
        [b"Host: user@a"],
        [b"Host: a:b"],
        [b"Host: [::1"],
        [b"Host: \xc3\xa9"],
    ],
)
@pytest.mark.parametrize("target", [b"GET /stocks", b"GET /healthz", b"GET http://venue/stocks", b"GET /nothing"])
def test_a_missing_repeated_or_invalid_host_is_400(client: RawClient, target: bytes, hosts: list[bytes]) -> None:
    key = b"Authorization: Bearer " + client.key.encode()
    status, body = client.send_lines([target + b" HTTP/1.1", b"Connection: close", key, *hosts])

    assert (status, body["code"]) == (400, "malformed_request")
    assert "Host" in body["detail"]


@pytest.mark.parametrize("host", [b"", b"venue", b"venue.example.:8000", b"127.0.0.1:", b"[2001:db8::1]:443", b"a_b-c"])
def test_a_valid_host_is_accepted(client: RawClient, host: bytes) -> None:
    assert client.send(b"GET /stocks", b"Host: " + host)[0] == 200


def test_http_1_0_needs_no_host(client: RawClient) -> None:
    assert client.send_lines([b"GET /healthz HTTP/1.0"])[0] == 200


@pytest.mark.parametrize(
    "codings",
    [
        [b"Transfer-Encoding: gzip, chunked"],
        [b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked, chunked"],
        [b"Transfer-Encoding: identity, chunked"],
    ],
)
@pytest.mark.parametrize("path", [b"/stocks", b"/orders", b"/nothing"])
def test_a_transfer_coding_besides_chunked_is_400(client: RawClient, path: bytes, codings: list[bytes]) -> None:
    status, body = client.send(b"POST " + path, CHUNKED[0], *codings, body=_chunked(STOCK))

    assert (status, body["code"]) == (400, "malformed_request")
    assert "Transfer-Encoding" in body["detail"]
    assert not Instrument.objects.exists()


def test_the_chunked_coding_is_case_insensitive_and_may_have_trailers(client: RawClient) -> None:
    trailer = _chunked(STOCK)[:-2] + b"X-Checksum: 1\r\n\r\n"
    assert client.send(b"POST /stocks", CHUNKED[0], b"Transfer-Encoding: Chunked", body=trailer)[0] == 201


@pytest.mark.parametrize("header", [b"TE: gzip, chunked", b"Expect: 200-ok", b"Upgrade: h2c"])
def test_offers_of_the_client_are_ignored(client: RawClient, header: bytes) -> None:
    assert client.send(b"GET /stocks", header)[0] == 200


@pytest.mark.parametrize(
    ("line", "without_key"),
    [
        (b"get /stocks", 401),
        (b"Get /stocks", 401),
        (b"head /stocks", 401),
        (b"post /stocks", 401),
        (b"delete /orders?all=true", 401),
        (b"post /orders", 401),
        (b"BREW /stocks", 401),
        (b"get /healthz", 405),
        (b"get /docs", 405),
        (b"get /openapi.json", 405),
    ],
)
def test_methods_are_case_sensitive(client: RawClient, line: bytes, without_key: int) -> None:
    length = b"Content-Length: %d" % len(STOCK)
    status, body = client.send(line, CHUNKED[0], length, body=STOCK)

    assert (status, body["code"]) == (405, "method_not_allowed")
    assert client.send(line, NO_KEY)[0] == without_key
    assert client.send(line.split()[0] + b" /nothing")[0] == 404
    assert not Instrument.objects.exists()


@pytest.mark.parametrize(
    "types", [[b"application/json", b"text/plain"], [b"text/plain", b"application/json"], [b"application/json"] * 2]
)
def test_a_repeated_content_type_is_415(client: RawClient, types: list[bytes]) -> None:
    headers = [b"Content-Type: " + each for each in types]
    status, body = client.send(b"POST /stocks", *headers, b"Content-Length: %d" % len(STOCK), body=STOCK)

    assert (status, body["code"]) == (415, "unsupported_media_type")


def test_a_compressed_body_is_415(client: RawClient) -> None:
    status, body = client.post(b"/stocks", gzip.compress(STOCK), b"Content-Encoding: gzip")

    assert (status, body["code"]) == (415, "unsupported_media_type")
    assert client.post(b"/stocks", gzip.compress(STOCK), b"Content-Encoding: gzip", NO_KEY)[0] == 401


def test_an_invalid_request_line_or_length_is_400(client: RawClient) -> None:
    for lines in (
        [b"GET /stocks HTTP/1.2"],
        [b"GET /stocks"],
        [b"POST /stocks HTTP/1.1", b"Content-Length: 5, 5"],
        [b"POST /stocks HTTP/1.1", b"Content-Length: 5", b"Content-Length: 6"],
        [b"POST /stocks HTTP/1.1", b"Transfer-Encoding: gzip"],
        [b"GET /stocks HTTP/1.1", b"X : a"],
    ):
        assert client.send_lines([*lines, b"Host: localhost"]) == (400, None)
