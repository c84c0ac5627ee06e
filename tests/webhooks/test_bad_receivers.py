"""Misbehaving receivers: each attempt ends in time, is made once, and does not delay other receivers."""

import json
import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from threading import Thread
from typing import NamedTuple

import aiohttp
import pytest
from pytest_django import Settings

from config.local.processes import wait_until
from config.local.servers import free_port
from orders.enums import Side
from orders.matching.commands import Accepted
from tests import receiver as receiving
from tests import trading
from tests.celery_processes import Celery, CeleryProcess, start_all
from tests.receiver import HEAD_END, Behaviour, Connection, Receiver, Request, hang, redirect, respond
from tests.trading import execute_one, order, place, start_thread
from tests.webhooks.deliveries import Outcome, drain, outcomes, subscribe, trade, wait_until_complete
from webhooks import dispatcher, http_client
from webhooks.models import Delivery, EventType

pytestmark = pytest.mark.django_db(transaction=True)

DEADLINE_SECONDS = 5.0
ALLOWANCE_SECONDS = 4.0  # for a busy machine, but shorter than a second attempt
PATIENCE_SECONDS = trading.TIMEOUT_SECONDS
LANES, LANES_PER_ENDPOINT = 256, 4
ORDERS_EACH = 5
PAUSE_SECONDS = 0.005
SOON_SECONDS = 2.5
MEBIBYTE = 1024 * 1024


@pytest.fixture(autouse=True)
def _maker(transactional_db: None) -> None:
    trading.broker("maker")


# --- Single attempts ------------------------------------------------------------------------------------------------


async def endless_hints(connection: Connection) -> None:
    """Endless interim responses."""
    await receiving._stream_endlessly(connection, b"", (b"HTTP/1.1 103 Early Hints" + HEAD_END) * 1_000)


async def endless_chunk_size(connection: Connection) -> None:
    """A chunk whose size line never ends."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" + HEAD_END
    await receiving._stream_endlessly(connection, head + b"1;", b"x" * 65_536)


def truncated(connection: Connection) -> None:
    """Half a response, and the end of the connection."""
    connection.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100" + HEAD_END + b"half")
    connection.transport.close()


def another_protocol(connection: Connection) -> None:
    connection.transport.write(b"SSH-2.0-OpenSSH_9.2p1\r\n")


BEHAVIOURS: dict[str, tuple[Behaviour, Outcome]] = {
    "hang": (hang, (None, "timeout")),
    "drip_head": (receiving.drip_head, (None, "timeout")),
    "drip_body": (receiving.drip_body, (200, "timeout")),
    "endless_body": (receiving.endless_body, (200, "")),
    "endless_headers": (receiving.endless_headers, (200, "")),
    "endless_hints": (endless_hints, (None, "disconnected")),
    "endless_chunk_size": (endless_chunk_size, (200, "invalid_answer")),
    "long_body": (respond(body=bytes(1_000_000)), (200, "")),
    "gzip_bomb": (receiving.gzip_bomb(), (200, "")),
    "not_gzip": (respond(body=b"as it is", headers=["Content-Encoding: gzip"]), (200, "")),
    "reset": (receiving.reset, (None, "disconnected")),
    "close": (receiving.close, (None, "disconnected")),
    "truncated": (truncated, (200, "invalid_answer")),
    "another_protocol": (another_protocol, (None, "invalid_answer")),
    "upgrade": (respond(101), (101, "")),
    "gone": (respond(410), (410, "")),
    "failure": (respond(503, headers=["Retry-After: 0"]), (503, "")),
    **{f"redirect_{status}": (redirect("/target", status), (status, "")) for status in (301, 302, 303, 307, 308)},
}


@contextmanager
def greeting(greet: Callable[[socket.socket], object]) -> Iterator[int]:
    """A port where each connection is greeted and then closed."""

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    greet(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE_SECONDS)


@contextmanager
def not_accepting() -> Iterator[int]:
    """A port whose full backlog lets connections neither succeed nor fail."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, socket.create_connection(server.getsockname()):
        yield server.getsockname()[1]


def reject_in_http(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 400 Bad Request" + HEAD_END)


@contextmanager
def unreachable_urls(receiver: Receiver) -> Iterator[dict[str, tuple[str, Outcome]]]:
    """URLs that fail before a request arrives, each with the expected outcome."""
    only_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # without a certificate
    with ExitStack() as stack:
        tls = stack.enter_context(greeting(partial(only_tls.wrap_socket, server_side=True)))
        http = stack.enter_context(greeting(reject_in_http))
        silent = stack.enter_context(not_accepting())
        yield {
            "not_listening": (f"http://127.0.0.1:{free_port()}/", (None, "not_connected")),
            "not_accepting": (f"http://127.0.0.1:{silent}/", (None, "timeout")),
            "http_to_tls": (f"http://127.0.0.1:{tls}/", (None, "disconnected")),
            "no_certificate": (f"https://127.0.0.1:{tls}/", (None, "tls_failed")),
            "tls_to_http": (f"https://127.0.0.1:{http}/", (None, "tls_failed")),
            "tls_to_silent": (receiver.url("/silent").replace("http:", "https:"), (None, "timeout")),
        }


def test_every_attempt_ends_in_time_and_is_not_repeated(celery: Celery, receiver: Receiver) -> None:
    worker = celery.webhook_worker()
    worker.start()
    with unreachable_urls(receiver) as elsewhere:
        here = {name: (receiver.on(f"/{name}", does), outcome) for name, (does, outcome) in BEHAVIOURS.items()}
        for name, (url, _) in (elsewhere | here).items():
            trading.broker(name)
            subscribe(name, url)
        memory = peak_memory(worker)
        receiving.bomb()
        trade(of=list(elsewhere))
        time.sleep(0.5)  # detects timeouts rounded up to whole seconds
        trade(of=list(here))
        wait_until_complete()

    assert {name: outcomes(name) for name in elsewhere | here} == {
        name: [outcome] for name, (_, outcome) in (elsewhere | here).items()
    }
    assert Counter(request.path for request in receiver.requests) == Counter(f"/{name}" for name in here)
    for each in Delivery.objects.all():
        assert each.claimed_at is not None
        assert each.completed_at is not None
        assert each.duration_ms is not None
        seconds = (each.completed_at - each.claimed_at).total_seconds()
        assert each.duration_ms / 1000 <= seconds < DEADLINE_SECONDS + ALLOWANCE_SECONDS
        assert (each.error == "timeout") == (seconds >= DEADLINE_SECONDS), each.error
    # The endless responses filled no more than the socket buffers.
    assert receiver.bytes_streamed < 64 * MEBIBYTE
    assert peak_memory(worker) - memory < 32 * MEBIBYTE


def peak_memory(process: CeleryProcess) -> int:
    """The peak memory of a process in bytes."""
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.child.pid}/status").read_text())
    return int(kib) * 1024


# --- Concurrency limits ---------------------------------------------------------------------------------------------


def test_an_endpoint_gets_at_most_four_concurrent_deliveries(receiver: Receiver) -> None:
    url = receiver.on("/", respond(after_seconds=0.1))
    for name in ("alice", "bob"):
        trading.broker(name)
        subscribe(name, url, *EventType)
    bids = [place(Side.BID, 1, "9") for _ in range(8)]
    trade(8, of=["alice", "bob"])
    for bid in bids:
        trading.cancel(bid)
    drain()

    by_subscription = Counter(request.headers["x-webhook-id"] for request in receiver.requests)
    assert list(by_subscription.values()) == [8, 8, 8]
    assert receiver.max_in_flight["/"] == LANES_PER_ENDPOINT


def test_a_dispatcher_sends_at_most_its_limit_concurrently(receiver: Receiver, settings: Settings) -> None:
    settings.WEBHOOK_TIMEOUT_SECONDS = 2.0
    brokers = [f"broker-{number}" for number in range(LANES // LANES_PER_ENDPOINT + 1)]
    for name in brokers:
        trading.broker(name)
        subscribe(name, receiver.on(f"/{name}", hang))
    trade(LANES_PER_ENDPOINT, of=brokers)
    draining = start_thread(partial(dispatcher.drain, 0))

    assert receiver.wait_for(LANES, PATIENCE_SECONDS)
    time.sleep(0.5)
    assert len(receiver.requests) == Delivery.objects.exclude(claimed_at=None).count() == LANES
    draining.result(PATIENCE_SECONDS)
    assert len(receiver.requests) == LANES + LANES_PER_ENDPOINT


# --- Isolation of receivers -----------------------------------------------------------------------------------------


class Delays(NamedTuple):
    """Delays in one round of orders, in seconds."""

    placement: float  # median
    delivery: float  # from the commit to the arrival, 99th percentile of the good receivers


@pytest.mark.parametrize("behaviour", [hang, endless_hints])
def test_a_bad_receiver_delays_neither_orders_nor_other_receivers(
    celery: Celery, receiver: Receiver, behaviour: Behaviour
) -> None:
    """It gets one of twenty events."""
    bad, *others = brokers = [f"broker-{number}" for number in range(20)]
    for name in brokers:
        trading.broker(name)
        subscribe(name, receiver.url(f"/{name}"))
    place(Side.ASK, 10_000, "10", by="maker")
    start_all(celery.webhook_worker(), celery.beat())
    receiver.on(f"/{bad}", behaviour)
    delays = measure(receiver, brokers, others)
    print(f"beside a bad receiver: {delays}")  # noqa: T201 - pytest -s shows it

    assert receiver.max_in_flight[f"/{bad}"] <= LANES_PER_ENDPOINT
    # A wait for the bad receiver would take as long as its timeout.
    assert delays.delivery < DEADLINE_SECONDS / 2
    assert delays.placement < DEADLINE_SECONDS / 10


def measure(receiver: Receiver, takers: list[str], good: list[str]) -> Delays:
    """Let takers trade in turn, and wait until all events of the `good` ones have arrived."""
    placement, committed = [], {}
    for by in takers * ORDERS_EACH:
        started = time.monotonic()
        outcome = execute_one(order(Side.BID, 1, "10", by=by))
        now = time.monotonic()
        assert isinstance(outcome, Accepted)
        committed[str(outcome.trades[0].id)] = now
        placement.append(now - started)
        time.sleep(PAUSE_SECONDS)

    def arrived() -> dict[str, float]:
        new = ((trade_id(request), request) for request in receiver.requests)
        return {id_: request.received_at for id_, request in new if request.path[1:] in good and id_ in committed}

    assert wait_until(lambda: len(arrived()) == ORDERS_EACH * len(good), PATIENCE_SECONDS)
    seconds = [received_at - committed[id_] for id_, received_at in arrived().items()]
    return Delays(median(placement), quantiles(seconds, n=100)[-1])


def trade_id(request: Request) -> str:
    return str(json.loads(request.body)["data"]["trade_id"])


# --- Name resolution ------------------------------------------------------------------------------------------------

KNOWN, DENIED = "known.test", "denied.test"
original_connector = http_client.create_connector


class NameServer:
    """A local name server that resolves one name, denies another, and ignores queries for others."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        Thread(target=self._serve, daemon=True).start()

    @asynccontextmanager
    async def connector(self) -> AsyncIterator[aiohttp.BaseConnector]:
        """A dispatcher's connector that uses this server."""
        port = self._socket.getsockname()[1]
        resolver = aiohttp.AsyncResolver(nameservers=["127.0.0.1"], udp_port=port, tcp_port=port)
        async with original_connector(resolver) as connector:
            yield connector
        await resolver.close()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(512)
            name, _, rest = query[12:].partition(b"\0")
            question = name + b"\0" + rest[:4]
            if name == _encoded(DENIED):
                self._socket.sendto(query[:2] + b"\x81\x83\0\1\0\0\0\0\0\0" + question, sender)
            elif name == _encoded(KNOWN) and rest[:2] == b"\0\1":  # A record
                respond = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton("127.0.0.1")
                self._socket.sendto(query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question + respond, sender)
            elif name == _encoded(KNOWN):  # no other record
                self._socket.sendto(query[:2] + b"\x81\x80\0\1\0\0\0\0\0\0" + question, sender)


def _encoded(name: str) -> bytes:
    """A name in DNS wire format: each label preceded by its length."""
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))


def test_names_that_never_resolve_do_not_delay_others(
    receiver: Receiver, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise lookups would share a few threads, which slow ones would block.
    assert aiohttp.DefaultResolver is aiohttp.AsyncResolver
    settings.WEBHOOK_TIMEOUT_SECONDS = 3.0
    monkeypatch.setattr(http_client, "create_connector", NameServer().connector)
    slow = [f"slow-{number}" for number in range(40)]
    hosts = {name: f"{name}.test" for name in slow} | {"denied": DENIED, "known": KNOWN}
    for name, host in (hosts | {"address": "127.0.0.1"}).items():
        trading.broker(name)
        subscribe(name, f"http://{host}:{receiver.port}/{name}")
    trade(LANES_PER_ENDPOINT, of=[*slow, "denied", "known", "address"])
    started = time.monotonic()
    drain()

    assert outcomes("known") == outcomes("address") == [(200, "")] * LANES_PER_ENDPOINT
    assert len(receiver.requests) == 2 * LANES_PER_ENDPOINT
    assert max(request.received_at for request in receiver.requests) - started < SOON_SECONDS
    assert outcomes("denied") == [(None, "name_not_resolved")] * LANES_PER_ENDPOINT
    for name in slow:
        assert {*outcomes(name)} <= {(None, "timeout"), (None, "name_not_resolved")}
    assert time.monotonic() - started < 2 * settings.WEBHOOK_TIMEOUT_SECONDS
