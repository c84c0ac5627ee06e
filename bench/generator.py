"""Open-loop load: requests are sent when they are due, regardless of the responses to earlier ones.

`python -m bench.generator '{"mix": "mix", "port": …, "world": "FILE", "rate": …, "seconds": …}'` prints one line of
JSON. The latency of a request counts from the time it was due (Poisson arrivals), not from when a connection was free:
it includes the wait that a slow server causes. It runs in one thread with epoll and without an event loop, which would
need three times the CPU time per request.
"""

import gc
import json
import os
import random
import resource
import select
import socket
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.mix import MIXES

CONNECTIONS = 2_048  # for orders and cancels, more than the venue queues; and as many for reads
WRITES = ("order", "cancel")  # kinds
RESPONSE_TIMEOUT_SECONDS = 10.0  # after the last request was sent
PREPARED_PER_SECOND = 20_000  # requests, on a slow machine
RECEIVE_BYTES = 64 * 1024
CREATED = 201


class Requests(Protocol):
    """A source of requests."""

    def next(self) -> tuple[str, bytes]:
        """Return the kind and the bytes of the next request."""

    def accepted(self, body: bytes) -> None:
        """Take the response to an order."""


@dataclass
class Outcomes:
    """Outcomes of the requests due after the warm-up."""

    latencies: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))  # by kind, status
    late: list[float] = field(default_factory=list)  # delay of the generator: from due to written
    lost: int = 0
    waited: int = 0  # for a connection
    backlog_max: int = 0  # requests due and not answered
    backlog_at_end: int = 0
    drain_seconds: float = 0.0
    cpu_share: float = 0.0  # cores that the generator used

    def of(self, kinds: Iterable[str], statuses: range = range(200, 300)) -> list[float]:
        """Return the latencies of these kinds, in seconds since each request was due."""
        return [
            each
            for (kind, status), every in self.latencies.items()
            if kind in kinds and status in statuses
            for each in every
        ]

    def statuses(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for (_, status), every in self.latencies.items():
            counts[str(status)] += len(every)
        return counts


class Connection:
    """One keep-alive connection, one request at a time."""

    __slots__ = ("due", "end", "kind", "pool", "socket", "unread")

    def __init__(self, port: int, pool: "Pool") -> None:
        self.pool = pool
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.unread, self.end = b"", 0

    def send(self, kind: str, request: bytes, due: float) -> None:
        self.kind, self.due = kind, due
        if self.socket.send(request) != len(request):
            raise OSError("A request does not fit into the buffer of its connection.")

    def receive(self) -> tuple[int, bytes] | None:
        """Return the status and the body of the response once it is complete."""
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError
        self.unread += data
        if not self.end:
            head, found, _ = self.unread.partition(b"\r\n\r\n")
            if not found:
                return None
            _, _, length = head.lower().partition(b"content-length:")
            self.end = len(head) + len(found) + int(length.split(b"\r\n", 1)[0] or 0)
        if len(self.unread) < self.end:
            return None
        response, self.unread, self.end = self.unread, b"", 0
        return int(response[9:12]), response[response.index(b"\r\n\r\n") + 4 :]


class Pool:
    """The free connections for some kinds of requests, or the requests that wait for one."""

    def __init__(self, port: int, connections: int) -> None:
        self.idle = deque(Connection(port, self) for _ in range(connections))
        self.queue: deque[tuple[str, bytes, float]] = deque()


class Generator:
    """Sends due requests over free connections, first come first served.

    Reads have connections of their own, so that slow reads do not delay orders in the generator.
    """

    def __init__(self, requests: Requests, port: int, connections: int, warm_until: float) -> None:
        self.requests, self.warm_until = requests, warm_until
        self.found = Outcomes()
        self.poll = select.epoll()
        self.writes, self.reads = Pool(port, connections), Pool(port, connections)
        self.connections = {each.socket.fileno(): each for each in [*self.writes.idle, *self.reads.idle]}
        self.backlog = 0
        for descriptor in self.connections:
            self.poll.register(descriptor, select.EPOLLIN)

    def close(self) -> None:
        for each in self.connections.values():
            each.socket.close()
        self.poll.close()

    def offer(self, due: float) -> None:
        kind, request = self.requests.next()
        self.backlog += 1
        pool = self.writes if kind in WRITES else self.reads
        if pool.idle:
            pool.idle.popleft().send(kind, request, due)
        else:
            pool.queue.append((kind, request, due))
            self.found.waited += 1
        if due >= self.warm_until:
            self.found.backlog_max = max(self.found.backlog_max, self.backlog)
            self.found.late.append(time.monotonic() - due)

    def receive_until(self, until: float) -> None:
        """Read responses until that time, or return earlier after having read some."""
        # epoll waits for whole milliseconds, select for microseconds; epoll's descriptor is readable if any other is.
        if select.select([self.poll], [], [], max(0.0, until - time.monotonic()))[0]:
            for descriptor, _ in self.poll.poll(0):
                self._receive(self.connections[descriptor])

    def _receive(self, connection: Connection) -> None:
        try:
            response = connection.receive()
        except ConnectionResetError:
            self._lost(connection)
            return
        if response is None:
            return
        status, body = response
        kind, due = connection.kind, connection.due
        self.backlog -= 1
        if due >= self.warm_until:
            self.found.latencies[kind, status].append(time.monotonic() - due)
        if connection.pool.queue:
            connection.send(*connection.pool.queue.popleft())
        else:
            connection.pool.idle.append(connection)
        if status == CREATED:
            self.requests.accepted(body)

    def _lost(self, connection: Connection) -> None:
        """Count the request in flight on a closed connection as lost."""
        if connection in connection.pool.idle:
            connection.pool.idle.remove(connection)
        else:
            self.backlog -= 1
            self.found.lost += 1
        del self.connections[connection.socket.fileno()]
        connection.socket.close()


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Yield Poisson arrivals as seconds from the start."""
    draw = random.Random(seed)  # noqa: S311 - times, no secrets
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)


def generate(
    requests: Requests, dues: Iterable[float], *, port: int, warm_until: float = 0.0, connections: int = CONNECTIONS
) -> Outcomes:
    """Send requests at these times of the monotonic clock, and return the outcomes of those due after the warm-up."""
    generator = Generator(requests, port, connections, warm_until)
    found = generator.found
    started, used = time.monotonic(), time.process_time()
    for due in dues:
        while time.monotonic() < due:
            generator.receive_until(due)
        generator.offer(due)
    found.backlog_at_end, ended = generator.backlog, time.monotonic()
    found.cpu_share = (time.process_time() - used) / (ended - started)
    while generator.backlog and time.monotonic() < ended + RESPONSE_TIMEOUT_SECONDS:
        generator.receive_until(ended + RESPONSE_TIMEOUT_SECONDS)
    found.drain_seconds = time.monotonic() - ended
    found.lost += generator.backlog
    generator.close()
    return found


def percentile(values: list[float], share: float) -> float:
    """Return a percentile in milliseconds."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1_000, 3) if ordered else 0.0


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{name}_ms": percentile(values, share) for name, share in {"50": 0.5, "99": 0.99, "999": 0.999}.items()}


def summary(found: Outcomes, seconds: float) -> dict[str, Any]:
    statuses = found.statuses()
    kinds = sorted({kind for kind, _ in found.latencies})
    by_kind = {kind: found.of([kind]) for kind in kinds}
    by_kind["reads"] = found.of(set(kinds).difference(WRITES))
    by_kind["rejected"] = found.of(kinds, range(503, 504))
    orders = found.of(["order"])
    return {
        "orders_per_second": len(orders) / seconds,
        "requests_per_second": statuses.total() / seconds,
        **percentiles(orders),
        "kinds": {kind: {"count": len(every), **percentiles(every)} for kind, every in by_kind.items()},
        "generator_late_p99_ms": percentile(found.late, 0.99),
        "generator_cores": round(found.cpu_share, 3),
        "waited_for_a_connection": found.waited,
        "backlog_max": found.backlog_max,
        "backlog_at_end": found.backlog_at_end,
        "drain_seconds": round(found.drain_seconds, 3),
        "statuses": dict(statuses),
        "faults": found.lost + sum(number for status, number in statuses.items() if int(status) >= 500),
    }


def main(mix: str, port: int, world: str, rate: float, seconds: float, warm_up: float, seed: int) -> None:
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    offsets = list(arrivals(rate, warm_up + seconds, seed))
    starts = time.monotonic() + 1 + len(offsets) / PREPARED_PER_SECOND
    dues = [starts + offset for offset in offsets]
    requests = MIXES[mix](json.loads(Path(world).read_text(encoding="utf-8")), seed, dues)
    with suppress(PermissionError):
        os.nice(-10)  # it stands for clients on other machines
    gc.freeze()
    gc.disable()  # it would stop the generator
    found = generate(requests, dues, port=port, warm_until=starts + warm_up)
    sys.stdout.write(json.dumps(summary(found, seconds)) + "\n")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
