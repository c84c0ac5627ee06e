"""One attempt at one delivery: a POST to an address that was checked when it was dialled, and what came of it.

Whatever the receiver does, it takes no longer than the deadline and no more of its answer than we take.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
import structlog
from aiohttp.abc import ResolveResult
from aiohttp.http_exceptions import HttpProcessingError
from django.conf import settings
from yarl import URL

from webhooks.addresses import Profile, is_blocked
from webhooks.delivery_queue import Claim, Outcome
from webhooks.models import DeliveryError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

USER_AGENT = "Bourse"
MAX_ADDRESSES = 10  # dialled of one name
MAX_RECEIVED_BYTES = 32 * 1024  # between two things that we send: room for any head, TLS record or handshake

_NO_TIMEOUT = aiohttp.ClientTimeout()
_TARGETS_REMEMBERED = 1_024

_log = structlog.get_logger(__name__)


class _Connector(aiohttp.TCPConnector):
    """Knows a few of a name's addresses: it tries each, and all that are left after each, so that many are a flood."""

    async def _resolve_host(self, *args: Any, **kwargs: Any) -> list[ResolveResult]:
        return (await super()._resolve_host(*args, **kwargs))[:MAX_ADDRESSES]


class BlockedAddress(OSError):
    """A name led to an address that webhooks may not be sent to; for the client one more address that fails."""


def connector(resolver: aiohttp.abc.AbstractResolver | None = None) -> aiohttp.TCPConnector:
    """What a dispatcher's connections come from: they are checked, and kept for a moment."""
    return _Connector(
        limit=settings.WEBHOOK_LANES,
        keepalive_timeout=settings.WEBHOOK_KEEPALIVE_SECONDS,
        resolver=resolver,
        socket_factory=_socket_to_allowed,
    )


def _socket_to_allowed(info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, address = info
    try:
        blocked = is_blocked(str(address[0]), settings.WEBHOOK_ADDRESSES)
    except ValueError:  # the resolver's answer is no address
        blocked = True
    if blocked:
        raise BlockedAddress("this address is blocked")
    return _Socket(family, kind, protocol)


class _Socket(socket.socket):
    """Ends when it has received more than any answer is long: heads without end would keep us from all others."""

    _left = MAX_RECEIVED_BYTES

    def send(self, data: "ReadableBuffer", flags: int = 0, /) -> int:
        self._left = MAX_RECEIVED_BYTES
        return super().send(data, flags)

    def sendmsg(self, buffers: "Iterable[ReadableBuffer]", *more: Any) -> int:  # what newer Pythons' loops send by
        self._left = MAX_RECEIVED_BYTES
        return super().sendmsg(buffers, *more)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data = super().recv(min(size, self._left), flags)  # of size 0 it is the end
        self._left -= len(data)
        return data

    def recv_into(self, buffer: "WriteableBuffer", size: int = 0, flags: int = 0) -> int:  # under TLS
        received = super().recv_into(memoryview(buffer)[: self._left], size, flags)
        self._left -= received
        return received


async def send(connector: aiohttp.BaseConnector, claim: Claim) -> Outcome:
    """Send it; never an exception."""
    started, status, error, kept = time.monotonic(), None, None, bytearray()
    try:
        if settings.WEBHOOK_ADDRESSES is Profile.PUBLIC and not claim.url.lower().startswith("https:"):
            raise BlockedAddress("http is blocked")
        async with asyncio.timeout(settings.WEBHOOK_DEADLINE_SECONDS), _connection(connector, claim.url) as connection:
            status, answer = await _ask(connection, _request(claim))
            await _take(answer, kept)
    except Exception as exception:
        error = _error(exception)
    return Outcome(claim.delivery_id, status, error, int((time.monotonic() - started) * 1000), _text(kept))


@asynccontextmanager
async def _connection(connector: aiohttp.BaseConnector, url: str) -> AsyncIterator[aiohttp.connector.Connection]:
    """A connection that was kept, or a new one. It is kept again if its answer has come to an end."""
    connection = await connector.connect(_target(url), traces=[], timeout=_NO_TIMEOUT)  # there is one around all of it
    try:
        yield connection
    except BaseException:
        connection.close()
        raise
    connection.release()


async def _ask(connection: aiohttp.connector.Connection, request: bytes) -> tuple[int, aiohttp.StreamReader]:
    """Send a request; the status of its answer, and what is to be read of it.

    aiohttp's client does the same with three times the CPU: it has redirects, cookies and proxies, and we have not.
    """
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None:  # it was lost as soon as it was there
        raise aiohttp.ServerDisconnectedError
    protocol.set_response_params(read_until_eof=True, auto_decompress=False)
    transport.write(request)
    while True:
        head, answer = await protocol.read()
        if head.code >= HTTPStatus.OK or head.code == HTTPStatus.SWITCHING_PROTOCOLS:
            return head.code, answer


@lru_cache(maxsize=_TARGETS_REMEMBERED)
def _target(url: str) -> aiohttp.ClientRequest:
    """A URL as connectors want to be told it."""
    return aiohttp.ClientRequest("POST", URL(url, encoded=True))


def _request(claim: Claim) -> bytes:
    """The very bytes that a receiver gets. Nothing in a head can end its line: see `webhooks.addresses`."""
    url, body = _target(claim.url).url, claim.body.encode()
    head = (
        f"POST {url.raw_path_qs} HTTP/1.1\r\n"
        f"Host: {url.host_port_subcomponent}\r\n"
        f"User-Agent: {USER_AGENT}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"X-Webhook-Id: {claim.subscription_id}\r\n"
        f"X-Event-Type: {claim.event_type}\r\n"
        f"X-Delivery-Id: {claim.delivery_id}\r\n"
        f"X-Event-Sequence: {claim.sequence}\r\n"
        "\r\n"
    )
    return head.encode() + body


async def _take(answer: aiohttp.StreamReader, kept: bytearray) -> None:
    """Read to the end, so that the connection can be used again; what is longer than we take ends it.

    The beginning is kept as it comes, for an answer may break off.
    """
    left = settings.WEBHOOK_ANSWER_BYTES
    while left > 0 and (chunk := await answer.read(left)):
        kept += chunk[: settings.WEBHOOK_ANSWER_KEPT_BYTES - len(kept)]
        left -= len(chunk)


def _text(kept: bytearray) -> str:
    """What was kept as PostgreSQL can store it: whatever it is, it is text without NULs."""
    return kept.decode(errors="replace").replace("\0", "") if kept else ""


def _error(exception: Exception) -> DeliveryError:
    """What an operator is told about a failed attempt."""
    if isinstance(exception, aiohttp.ClientConnectorError) and isinstance(exception.os_error, BlockedAddress):
        return DeliveryError.BLOCKED_ADDRESS
    for kind, error in _ERRORS.items():
        if isinstance(exception, kind):
            return error
    _log.error("delivery_failed_unexpectedly", exc_info=exception)
    return DeliveryError.FAILED


_ERRORS: dict[type[Exception], DeliveryError] = {
    BlockedAddress: DeliveryError.BLOCKED_ADDRESS,
    asyncio.TimeoutError: DeliveryError.TIMEOUT,
    aiohttp.ClientConnectorDNSError: DeliveryError.NAME_NOT_RESOLVED,
    aiohttp.ClientSSLError: DeliveryError.TLS_FAILED,
    aiohttp.ClientConnectorError: DeliveryError.NOT_CONNECTED,
    aiohttp.ClientPayloadError: DeliveryError.INVALID_ANSWER,
    HttpProcessingError: DeliveryError.INVALID_ANSWER,
    aiohttp.ClientError: DeliveryError.DISCONNECTED,
    OSError: DeliveryError.DISCONNECTED,
}
