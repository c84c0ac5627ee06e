"""One attempt at one delivery: a POST to an address that was checked when it was dialled, and what came of it.

Whatever the receiver does, it takes no longer than the deadline and no more of its answer than is kept.
"""

import asyncio
import socket
import time
from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING, Any

import aiohttp
import structlog
from aiohttp.abc import ResolveResult
from django.conf import settings
from yarl import URL

from webhooks.addresses import Profile, is_blocked
from webhooks.claims import Claim, Outcome
from webhooks.models import DeliveryError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

USER_AGENT = "Bourse"
MAX_ADDRESSES = 10  # dialled of one name
MAX_RECEIVED_BYTES = 32 * 1024  # between two things that we send: room for any head, TLS record or handshake

_log = structlog.get_logger(__name__)


class _Connector(aiohttp.TCPConnector):
    """Knows a few of a name's addresses: it tries each, and all that are left after each, so that many are a flood."""

    async def _resolve_host(self, *args: Any, **kwargs: Any) -> list[ResolveResult]:
        return (await super()._resolve_host(*args, **kwargs))[:MAX_ADDRESSES]


class BlockedAddress(OSError):
    """A name led to an address that webhooks may not be sent to; for the client one more address that fails."""


def session(resolver: aiohttp.abc.AbstractResolver | None = None) -> aiohttp.ClientSession:
    """What a dispatcher sends through: connections are kept a moment, cookies and the environment's proxies are not."""
    connector = _Connector(
        limit=settings.WEBHOOK_LANES,
        keepalive_timeout=settings.WEBHOOK_KEEPALIVE_SECONDS,
        resolver=resolver,
        socket_factory=_socket_to_allowed,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=settings.WEBHOOK_DEADLINE_SECONDS, ceil_threshold=inf),  # never rounded up
        headers={"User-Agent": USER_AGENT, "Content-Type": "application/json"},
        skip_auto_headers=["Accept", "Accept-Encoding"],
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
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


async def send(session: aiohttp.ClientSession, claim: Claim) -> Outcome:
    """Send it; never an exception."""
    started, status, error = time.monotonic(), None, None
    try:
        if settings.WEBHOOK_ADDRESSES is Profile.PUBLIC and not claim.url.lower().startswith("https:"):
            raise BlockedAddress("http is blocked")
        async with session.post(
            URL(claim.url, encoded=True), data=claim.body.encode(), headers=_headers(claim), allow_redirects=False
        ) as response:
            status = response.status
            await _take(response.content)
    except Exception as exception:
        error = _error(exception)
    return Outcome(claim.delivery_id, status, error, int((time.monotonic() - started) * 1000))


def _headers(claim: Claim) -> dict[str, str]:
    return {
        "X-Webhook-Id": str(claim.subscription_id),
        "X-Event-Type": claim.event_type,
        "X-Delivery-Id": str(claim.delivery_id),
        "X-Event-Sequence": str(claim.sequence),
    }


async def _take(answer: aiohttp.StreamReader) -> None:
    """Read to the end, so that the connection can be used again; what is longer than we take ends it."""
    left = settings.WEBHOOK_ANSWER_BYTES
    while left > 0 and (chunk := await answer.read(left)):
        left -= len(chunk)


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
    aiohttp.ClientResponseError: DeliveryError.INVALID_ANSWER,
    aiohttp.ClientError: DeliveryError.DISCONNECTED,
    OSError: DeliveryError.DISCONNECTED,
}
