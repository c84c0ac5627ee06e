"""A receiver of webhooks on loopback: it records what it gets, and answers each path as well or as badly as it is told.

It runs on an event loop in a thread of its own. What is answered at once is answered from within the protocol, without
a task per request, so that it keeps up with whoever sends.
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
BOMB_BYTES = 256 * 1024 * 1024  # as much as a receiver's answer of some 256 KB unpacks to
HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came in."""

    received_at: float  # time.monotonic() when the last byte of it was here
    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    connection: int  # which one it came over, counted from 1


class Connection(asyncio.Protocol):
    """One sender's connection, requests one after the other."""

    def __init__(self, receiver: "Receiver") -> None:
        self.receiver = receiver
        self.number = 0
        self.transport: asyncio.Transport
        self.writable = asyncio.Event()
        self._unread = b""
        self._answering: asyncio.Future[None] | None = None
        self._asked: str | None = None  # the path of the request that waits for its answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.writable.set()
        self.receiver.connections.add(self)
        self.receiver.connection_count += 1
        self.number = self.receiver.connection_count

    def connection_lost(self, exc: Exception | None) -> None:
        self.receiver.connections.discard(self)
        self.answered()
        if self._answering:
            self._answering.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while self._asked is None and (request := self._next_request()):
            self._asked = request.path
            self.receiver.record(request)
            answering = self.receiver.behaviour(request.path)(self)
            if answering is not None:
                self._answering = asyncio.ensure_future(answering)

    def _next_request(self) -> Request | None:
        """The next whole request, taken off what was received."""
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

    def answered(self) -> None:
        """The request in hand is done with."""
        if self._asked is not None:
            self.receiver.in_flight[self._asked] -= 1
            self._asked = None

    async def send(self, data: bytes) -> None:
        """Send as fast as the other side takes it."""
        self.transport.write(data)
        await self.writable.wait()


# --- How a path may behave ------------------------------------------------------------------------------------------

Behaviour = Callable[[Connection], Awaitable[None] | None]  # done when it returns, or a task for as long as it takes


def answer(status: int = 200, *, body: bytes = b"", headers: Iterable[str] = (), after_seconds: float = 0) -> Behaviour:
    """A whole answer, at once or later; the connection stays open."""
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(body)}", *headers]
    data = "\r\n".join(lines).encode() + HEAD_END + body

    def at_once(connection: Connection) -> None:
        connection.answered()
        connection.transport.write(data)

    async def later(connection: Connection) -> None:
        await asyncio.sleep(after_seconds)
        at_once(connection)
        connection.data_received(b"")  # what came meanwhile

    return later if after_seconds else at_once


def redirect(to: str, status: int = 302) -> Behaviour:
    """An answer that names another place."""
    return answer(status, headers=[f"Location: {to}"])


def gzip_bomb() -> Behaviour:
    """A small answer that unpacks to `BOMB_BYTES`."""

    def explode(connection: Connection) -> Awaitable[None] | None:
        return answer(headers=["Content-Encoding: gzip"], body=bomb())(connection)

    return explode


def hang(connection: Connection) -> None:
    """Never an answer."""


def close(connection: Connection) -> None:
    """The end of the connection, in good order, instead of an answer."""
    connection.transport.close()


def reset(connection: Connection) -> None:
    """The end of the connection by force (RST) instead of an answer."""
    raw = connection.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.transport.abort()


async def drip_head(connection: Connection) -> None:
    """One byte of a head a second, for ever."""
    await _for_ever(connection, b"HTTP/1.1 200 OK\r\nX-Drip: ", b"x", pause_seconds=1)


async def drip_body(connection: Connection) -> None:
    """A head, and then one byte of a body a second, for ever."""
    await _for_ever(connection, b"HTTP/1.1 200 OK" + HEAD_END, b"x", pause_seconds=1)


async def endless_headers(connection: Connection) -> None:
    """Header after header."""
    await _for_ever(connection, b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n" * 1_000)


async def endless_body(connection: Connection) -> None:
    """A head, and then a body as fast as it is taken, for ever."""
    await _for_ever(connection, b"HTTP/1.1 200 OK" + HEAD_END, CHUNK)


async def _for_ever(connection: Connection, start: bytes, more: bytes, pause_seconds: float = 0) -> None:
    """Until the connection is lost, which cancels us."""
    await connection.send(start)
    while True:
        await connection.send(more)
        connection.receiver.bytes_poured += len(more)
        await asyncio.sleep(pause_seconds)


@cache
def bomb() -> bytes:
    """Its body; to pack it takes a second of CPU time, so call this before anybody waits for the answer."""
    packer = zlib.compressobj(level=9, wbits=31)  # 31: as gzip
    block = bytes(1024 * 1024)
    return b"".join(packer.compress(block) for _ in range(BOMB_BYTES // len(block))) + packer.flush()


# --- The receiver ---------------------------------------------------------------------------------------------------


class Receiver:
    """Listens on a port of its own while in its `with`; a path that was told nothing answers 200."""

    def __init__(self) -> None:
        self.requests: list[Request] = []  # in the order they came
        self.connections: set[Connection] = set()  # those open now
        self.connection_count = 0  # ever accepted
        self.in_flight: Counter[str] = Counter()  # by path: requests that have no answer yet
        self.max_in_flight: Counter[str] = Counter()  # by path: the most there were at one time
        self.bytes_poured = 0  # into drips and endless answers
        self.port = 0
        self._behaviours: dict[str, Behaviour] = {}
        self._otherwise = answer()
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
        """Have `path` behave like this from its next request on; its URL."""
        self._behaviours[path] = behaviour
        return self.url(path)

    def to(self, path: str) -> list[Request]:
        """What came for one path."""
        return [request for request in list(self.requests) if request.path == path]

    def wait_for(self, count: int, timeout_seconds: float, path: str | None = None) -> bool:
        """Whether so many requests, or more, are here in time."""
        return wait_until(lambda: len(self.requests if path is None else self.to(path)) >= count, timeout_seconds)

    # --- On the loop ---

    def behaviour(self, path: str) -> Behaviour:
        return self._behaviours.get(path, self._otherwise)

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
        self._loop.run_until_complete(asyncio.sleep(0))  # the connections hear of their end
        self._loop.close()
