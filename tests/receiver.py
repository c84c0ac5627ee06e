"""A webhook receiver on loopback that records requests and behaves on each path as the test requires.

It runs on an event loop in a separate thread. Immediate responses are sent from the protocol, without a task per
request, so that the receiver is faster than the sender.
"""

import asyncio
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Self

from config.local.processes import wait_until

START_SECONDS = STOP_SECONDS = 5.0
BACKLOG = 1024
CHUNK = b"x" * 65_536
BOMB_BYTES = 256 * 1024 * 1024  # compressed, about 256 KB
HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    """A received request."""

    received_at: float  # time.monotonic() at its last byte
    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    connection: int  # number of its connection, counted from 1


class Connection(asyncio.Protocol):
    """A sender's connection, with one request at a time."""

    def __init__(self, receiver: "Receiver") -> None:
        self.receiver = receiver
        self.number = 0
        self.transport: asyncio.Transport
        self.writable = asyncio.Event()
        self._unread = b""
        self._response_task: asyncio.Future[None] | None = None
        self._path_in_progress: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.writable.set()
        self.receiver.connections.add(self)
        self.receiver.connection_count += 1
        self.number = self.receiver.connection_count

    def connection_lost(self, exc: Exception | None) -> None:
        self.receiver.connections.discard(self)
        self.finish_request()
        if self._response_task:
            self._response_task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while self._path_in_progress is None and (request := self._next_request()):
            self._path_in_progress = request.path
            self.receiver.record(request)
            response_task = self.receiver.behaviour(request.path)(self)
            if response_task is not None:
                self._response_task = asyncio.ensure_future(response_task)

    def _next_request(self) -> Request | None:
        """Remove the next complete request from the received bytes and return it."""
        head, found, rest = self._unread.partition(HEAD_END)
        if not found:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return None
        self._unread = rest[length:]
        method, path, _ = first.split(" ")
        return Request(time.monotonic(), method, path, headers, rest[:length], self.number)

    def finish_request(self) -> None:
        """End the request in progress, if any."""
        if self._path_in_progress is not None:
            self.receiver.in_flight[self._path_in_progress] -= 1
            self._path_in_progress = None

    async def send(self, data: bytes) -> None:
        """Send data, and wait until the other side has accepted it."""
        self.transport.write(data)
        await self.writable.wait()


# --- Behaviours -----------------------------------------------------------------------------------------------------

Behaviour = Callable[[Connection], Awaitable[None] | None]  # an immediate response, or a task that sends it


def respond(
    status: int = 200, *, body: bytes = b"", headers: Iterable[str] = (), after_seconds: float = 0
) -> Behaviour:
    """Send a complete response, immediately or later, and keep the connection open."""
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(body)}", *headers]
    data = "\r\n".join(lines).encode() + HEAD_END + body

    def at_once(connection: Connection) -> None:
        connection.finish_request()
        connection.transport.write(data)

    async def later(connection: Connection) -> None:
        await asyncio.sleep(after_seconds)
        at_once(connection)
        connection.data_received(b"")  # requests that were received since

    return later if after_seconds else at_once


def redirect(to: str, status: int = 302) -> Behaviour:
    """Redirect to another URL."""
    return respond(status, headers=[f"Location: {to}"])


def gzip_bomb() -> Behaviour:
    """Send a small response that decompresses to `BOMB_BYTES`."""

    def explode(connection: Connection) -> Awaitable[None] | None:
        return respond(headers=["Content-Encoding: gzip"], body=bomb())(connection)

    return explode


def hang(connection: Connection) -> None:
    """Never respond."""


def close(connection: Connection) -> None:
    """Close the connection normally, without a response."""
    connection.transport.close()


def reset(connection: Connection) -> None:
    """Reset the connection (RST), without a response."""
    raw = connection.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.transport.abort()


async def drip_head(connection: Connection) -> None:
    """Send one byte of a header per second, endlessly."""
    await _stream_endlessly(connection, b"HTTP/1.1 200 OK\r\nX-Drip: ", b"x", pause_seconds=1)


async def drip_body(connection: Connection) -> None:
    """Send a head, then one byte of a body per second, endlessly."""
    await _stream_endlessly(connection, b"HTTP/1.1 200 OK" + HEAD_END, b"x", pause_seconds=1)


async def endless_headers(connection: Connection) -> None:
    """Send headers endlessly."""
    await _stream_endlessly(connection, b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n" * 1_000)


async def endless_body(connection: Connection) -> None:
    """Send a head, then a body as fast as possible, endlessly."""
    await _stream_endlessly(connection, b"HTTP/1.1 200 OK" + HEAD_END, CHUNK)


async def _stream_endlessly(connection: Connection, start: bytes, more: bytes, pause_seconds: float = 0) -> None:
    """Send until the connection is lost, which cancels this task."""
    await connection.send(start)
    while True:
        await connection.send(more)
        connection.receiver.bytes_streamed += len(more)
        await asyncio.sleep(pause_seconds)


@cache
def bomb() -> bytes:
    """Return the compressed body. Call it in advance: compressing takes a second of CPU time."""
    packer = zlib.compressobj(level=9, wbits=31)  # 31: as gzip
    block = bytes(1024 * 1024)
    return b"".join(packer.compress(block) for _ in range(BOMB_BYTES // len(block))) + packer.flush()


# --- The receiver ---------------------------------------------------------------------------------------------------


class Receiver:
    """A receiver that listens within its `with` block. By default, it responds with 200."""

    def __init__(self) -> None:
        self.requests: list[Request] = []  # in the order of arrival
        self.connections: set[Connection] = set()  # open ones
        self.connection_count = 0  # accepted so far
        self.in_flight: Counter[str] = Counter()  # by path: requests without a response
        self.max_in_flight: Counter[str] = Counter()  # by path: the maximum so far
        self.bytes_streamed = 0  # in endless responses
        self.port = 0
        self._behaviours: dict[str, Behaviour] = {}
        self._default = respond()
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS)
        assert not self._thread.is_alive()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def on(self, path: str, behaviour: Behaviour) -> str:
        """Set the behaviour of `path` for its next requests, and return its URL."""
        self._behaviours[path] = behaviour
        return self.url(path)

    def requests_to(self, path: str) -> list[Request]:
        """Return the requests to one path."""
        return [request for request in list(self.requests) if request.path == path]

    def wait_for(self, count: int, timeout_seconds: float, path: str | None = None) -> bool:
        """Wait for at least `count` requests, and return True if they arrived in time."""
        return wait_until(
            lambda: len(self.requests if path is None else self.requests_to(path)) >= count, timeout_seconds
        )

    # --- On the loop ---

    def behaviour(self, path: str) -> Behaviour:
        return self._behaviours.get(path, self._default)

    def record(self, request: Request) -> None:
        path = request.path
        self.requests.append(request)
        self.in_flight[path] += 1
        self.max_in_flight[path] = max(self.max_in_flight[path], self.in_flight[path])

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: Connection(self), "127.0.0.1", 0, backlog=BACKLOG)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # runs `connection_lost`
        self._loop.close()
