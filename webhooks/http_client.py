"""HTTP client of the deliveries: one POST, to an address that is checked on connection.

No receiver can make it take longer than the deadline, or read more than the limit of response bytes.
"""

import asyncio
import re
import select
import socket
import time
from collections.abc import Iterable
from functools import lru_cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
import structlog
from aiohttp.abc import ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from django.conf import settings
from yarl import URL

from webhooks.addresses import AddressProfile, is_blocked
from webhooks.delivery_queue import ClaimedDelivery, DeliveryOutcome
from webhooks.models import DeliveryError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

USER_AGENT = "Bourse"
MAX_ADDRESSES = 10  # tried per host name
MAX_RECEIVED_BYTES = 32 * 1024  # between two writes: enough for any response head, TLS record or handshake

_NO_TIMEOUT = aiohttp.ClientTimeout()
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([2-5]\d\d)")
_TARGETS_CACHED = 1_024

_log = structlog.get_logger(__name__)


class _Protocol(ResponseHandler):
    """Protocol of a connection that keeps the start of the latest response."""

    is_reused = False  # after the first response
    response_start = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket"), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        self.response_start = self.response_start or data
        super().data_received(data)

    def has_ended(self) -> bool:
        """True if the receiver has closed this idle connection, or has sent something without a request."""
        return self.should_close or bool(self._poll.poll(0))  # the event loop may not have read it yet


class _Connector(aiohttp.TCPConnector):
    """Connector that tries at most `MAX_ADDRESSES` addresses of a host name: many would be a flood of connections."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(_Protocol, loop=self._loop)  # type: ignore[assignment]  # `partial` is invariant

    async def _resolve_host(self, *args: Any, **kwargs: Any) -> list[ResolveResult]:
        return (await super()._resolve_host(*args, **kwargs))[:MAX_ADDRESSES]


class BlockedAddress(OSError):
    """A host name resolved to an address that webhooks may not be sent to. The connector tries the next address."""


def create_connector(resolver: aiohttp.abc.AbstractResolver | None = None) -> aiohttp.TCPConnector:
    """Create a dispatcher's connector, which checks addresses and keeps connections alive briefly."""
    return _Connector(
        limit=settings.WEBHOOK_CONCURRENCY,
        keepalive_timeout=settings.WEBHOOK_KEEPALIVE_SECONDS,
        resolver=resolver,
        socket_factory=_create_socket,
    )


def _create_socket(info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, address = info
    try:
        blocked = is_blocked(str(address[0]), settings.WEBHOOK_ADDRESSES)
    except ValueError:  # the resolver's result is not an IP address
        blocked = True
    if blocked:
        raise BlockedAddress("this address is blocked")
    return _BoundedSocket(family, kind, protocol)


class _BoundedSocket(socket.socket):
    """Socket that reports the end of the stream after `MAX_RECEIVED_BYTES`, so that no response head is endless."""

    _left = MAX_RECEIVED_BYTES

    def send(self, data: "ReadableBuffer", flags: int = 0, /) -> int:
        self._left = MAX_RECEIVED_BYTES
        return super().send(data, flags)

    def sendmsg(self, buffers: "Iterable[ReadableBuffer]", *more: Any) -> int:  # used by the event loop since 3.12
        self._left = MAX_RECEIVED_BYTES
        return super().sendmsg(buffers, *more)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data = super().recv(min(size, self._left), flags)  # a size of 0 yields the end of the stream
        self._left -= len(data)
        return data

    def recv_into(self, buffer: "WriteableBuffer", size: int = 0, flags: int = 0) -> int:  # under TLS
        received = super().recv_into(memoryview(buffer)[: self._left], size, flags)
        self._left -= received
        return received


async def send(connector: aiohttp.BaseConnector, delivery: ClaimedDelivery) -> DeliveryOutcome:
    """Send a delivery and return its outcome. Never raises an exception."""
    started, status, error, body_start = time.monotonic(), None, None, bytearray()
    try:
        if settings.WEBHOOK_ADDRESSES is AddressProfile.PUBLIC and not delivery.url.lower().startswith("https:"):
            raise BlockedAddress("http is blocked")
        async with asyncio.timeout(settings.WEBHOOK_TIMEOUT_SECONDS):
            connection, status, response = await _post(connector, delivery)
            try:
                await _read_body(response, body_start)
            finally:
                connection.release()  # closes it if the body was not read to the end
    except Exception as exception:
        error = _classify_error(exception)
    milliseconds = int((time.monotonic() - started) * 1000)
    return DeliveryOutcome(delivery.delivery_id, status, error, milliseconds, _to_text(body_start))


async def _post(
    connector: aiohttp.BaseConnector, delivery: ClaimedDelivery
) -> tuple[aiohttp.connector.Connection, int, aiohttp.StreamReader]:
    """Send a delivery, and return its connection, the status of the response and a stream of the body.

    Many receivers close an idle connection without announcing it. A request that meets the close is sent once more,
    over a new connection.
    """
    is_repeated = False
    while True:
        connection = await connector.connect(_target(delivery.url), traces=[], timeout=_NO_TIMEOUT)
        protocol = connection.protocol
        assert isinstance(protocol, _Protocol)
        if protocol.is_reused and (is_repeated or protocol.has_ended()):
            connection.close()
            continue
        try:
            return connection, *await _exchange(protocol, _request(delivery))
        except BaseException as error:
            connection.close()
            is_unanswered = isinstance(error, aiohttp.ClientConnectionError) and not protocol.response_start
            if not (protocol.is_reused and is_unanswered):
                raise
            is_repeated = True


async def _exchange(protocol: _Protocol, request: bytes) -> tuple[int, aiohttp.StreamReader]:
    """Send a request, and return the status of its response and a stream of the body.

    aiohttp's own client takes three times the CPU, for redirects, cookies and proxies, which webhooks do not use.
    """
    protocol.response_start = b""
    if protocol.transport is None:  # already disconnected
        raise aiohttp.ServerDisconnectedError
    protocol.set_response_params(read_until_eof=True, auto_decompress=False)
    protocol.transport.write(request)
    try:
        while True:
            head, response = await protocol.read()
            if head.code >= HTTPStatus.OK or head.code == HTTPStatus.SWITCHING_PROTOCOLS:
                protocol.is_reused = True
                return head.code, response
    except HttpProcessingError:  # a header is too long or invalid, and the status still shows that the event arrived
        if status_line := _STATUS_LINE.match(protocol.response_start):
            return int(status_line[1]), EMPTY_PAYLOAD
        raise


@lru_cache(maxsize=_TARGETS_CACHED)
def _target(url: str) -> aiohttp.ClientRequest:
    """Return a URL in the form that connectors require."""
    return aiohttp.ClientRequest("POST", URL(url, encoded=True))


def _request(delivery: ClaimedDelivery) -> bytes:
    """Return the bytes of the request. No value can contain a line break: `webhooks.addresses` checks the URL."""
    url, body = _target(delivery.url).url, delivery.body.encode()
    head = (
        f"POST {url.raw_path_qs} HTTP/1.1\r\n"
        f"Host: {url.host_port_subcomponent}\r\n"
        f"User-Agent: {USER_AGENT}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"X-Webhook-Id: {delivery.subscription_id}\r\n"
        f"X-Event-Type: {delivery.event_type}\r\n"
        f"X-Delivery-Id: {delivery.delivery_id}\r\n"
        f"X-Event-Sequence: {delivery.sequence}\r\n"
        "\r\n"
    )
    return head.encode() + body


async def _read_body(response: aiohttp.StreamReader, body_start: bytearray) -> None:
    """Read the body to the end, so that the connection can be reused; a body over the limit ends the connection.

    `body_start` is filled while reading, because a response may be incomplete.
    """
    left = settings.WEBHOOK_RESPONSE_BYTES_READ
    while left > 0 and (chunk := await response.read(left)):
        body_start += chunk[: settings.WEBHOOK_RESPONSE_BYTES_STORED - len(body_start)]
        left -= len(chunk)


def _to_text(body_start: bytearray) -> str:
    """Decode to text that PostgreSQL can store: invalid bytes are replaced, NULs removed."""
    return body_start.decode(errors="replace").replace("\0", "") if body_start else ""


def _classify_error(exception: Exception) -> DeliveryError:
    """Return the stored error code of an exception."""
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
