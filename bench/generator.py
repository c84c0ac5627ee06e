"""Open-loop load: requests are sent when they are due, regardless of the responses to earlier ones.

`python -m bench.generator '{"port": …, "world": "FILE", "rate": …, "seconds": …}'` prints one line of JSON. The
latency of a request counts from the time it was due (Poisson arrivals), not from when a connection was free: it
includes the wait that a slow server causes.
"""

import asyncio
import json
import random
import selectors
import sys
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.mix import Mix

CONNECTIONS = 256
RESPONSE_TIMEOUT_SECONDS = 10.0  # after the last request was sent
CREATED = 201


class Requests(Protocol):
    """A source of requests."""

    def next(self) -> bytes: ...
    def accepted(self, body: bytes) -> None: ...


@dataclass
class Latencies:
    """Outcomes of the requests, in seconds since each was due."""

    accepted: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)  # delay of the generator: from due to written
    statuses: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    waited: int = 0  # for a connection


class LoadConnection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, generator: "Generator") -> None:
        self.generator = generator
        self.due: float | None = None
        self.unread = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.unread += data
        head, found, body = self.unread.partition(b"\r\n\r\n")
        if not found:
            return
        _, _, length = head.lower().partition(b"content-length:")
        if len(body) >= int(length.split(b"\r\n", 1)[0] or 0):
            self.unread = b""
            self.generator.response_received(self, int(head[9:12]), body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.generator.lost(self)


class Generator:
    """Sends due requests over free connections, first come first served."""

    def __init__(self, requests: Requests, warm_until: float) -> None:
        self.requests, self.warm_until = requests, warm_until
        self.found = Latencies()
        self.idle: list[LoadConnection] = []
        self.queue: deque[tuple[bytes, float]] = deque()
        self.in_flight = 0
        self.loop = asyncio.get_running_loop()

    async def connect(self, port: int, connections: int) -> None:
        for _ in range(connections):
            _, connection = await self.loop.create_connection(lambda: LoadConnection(self), "127.0.0.1", port)
            self.idle.append(connection)

    def offer(self, due: float) -> None:
        request = self.requests.next()
        self.in_flight += 1
        if self.idle:
            self.idle.pop().send(request, due)
            self.found.late.append(self.loop.time() - due)
        else:
            self.queue.append((request, due))
            self.found.waited += 1

    def response_received(self, connection: LoadConnection, status: int, body: bytes) -> None:
        due, now = connection.due, self.loop.time()
        assert due is not None
        self.in_flight -= 1
        if due >= self.warm_until:
            self.found.statuses[str(status)] += 1
            if status == CREATED:
                self.found.accepted.append(now - due)
        connection.due = None
        if self.queue:
            connection.send(*self.queue.popleft())
        else:
            self.idle.append(connection)
        if status == CREATED:
            self.requests.accepted(body)

    def lost(self, connection: LoadConnection) -> None:
        """Count the request in flight on a closed connection as lost."""
        if connection.due is not None:
            self.in_flight -= 1
            self.found.lost += 1
        elif connection in self.idle:
            self.idle.remove(connection)


async def generate(
    requests: Requests,
    *,
    port: int,
    rate: float,
    seconds: float,
    warm_up: float = 0.0,
    connections: int = CONNECTIONS,
    seed: int = 0,
) -> Latencies:
    """Offer `rate` requests per second, and return the latencies of those due after the warm-up."""
    loop = asyncio.get_running_loop()
    generator = Generator(requests, warm_until=0.0)
    await generator.connect(port, connections)
    arrivals = random.Random(seed)  # noqa: S311 - times, no secrets
    due = loop.time()
    generator.warm_until, end = due + warm_up, due + warm_up + seconds
    while due < end:
        await asyncio.sleep(max(0.0, due - loop.time()))
        while due <= min(loop.time(), end):
            generator.offer(due)
            due += arrivals.expovariate(rate)
    while generator.in_flight and loop.time() < end + RESPONSE_TIMEOUT_SECONDS:
        await asyncio.sleep(0.01)
    generator.found.lost += generator.in_flight
    for connection in generator.idle:
        connection.transport.abort()
    return generator.found


def percentile(values: list[float], share: float) -> float:
    """Return a percentile in milliseconds."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1_000, 3) if ordered else 0.0


def summary(found: Latencies, seconds: float) -> dict[str, Any]:
    return {
        "orders_per_second": len(found.accepted) / seconds,
        "requests_per_second": found.statuses.total() / seconds,
        "p50_ms": percentile(found.accepted, 0.5),
        "p99_ms": percentile(found.accepted, 0.99),
        "p999_ms": percentile(found.accepted, 0.999),
        "generator_late_p99_ms": percentile(found.late, 0.99),
        "waited_for_a_connection": found.waited,
        "statuses": dict(found.statuses),
        "faults": found.lost + sum(number for status, number in found.statuses.items() if int(status) >= 500),
    }


def main(arguments: dict[str, Any]) -> None:
    requests = Mix(json.loads(Path(arguments.pop("world")).read_text(encoding="utf-8")), arguments["seed"])
    # select(2) waits for microseconds, epoll only for whole milliseconds, which would delay every request.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        found = runner.run(generate(requests, **arguments))
    sys.stdout.write(json.dumps(summary(found, arguments["seconds"])) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
