"""The limit of open connections per address, and the timeout of idle ones."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from pytest_django import Settings

from config.local import web
from config.local.processes import wait_until
from gateway import connections
from gateway.connections import Connections
from tests import live

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
WAIT_SECONDS = 30.0
LIMIT = 5


# --- In this process ------------------------------------------------------------------------------------------------


class Listener:
    """A listening port of this process with clients connected to it."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.clients: list[socket.socket] = []
        self.accepted: list[socket.socket] = []

    def connect(self, count: int) -> None:
        for _ in range(count):
            self.clients.append(socket.create_connection(self.socket.getsockname()))
            self.accepted.append(self.socket.accept()[0])

    def client(self, number: int) -> str:
        host, port = self.clients[number].getsockname()
        return f"{host}:{port}"

    def open(self) -> list[int]:
        """Numbers of the clients whose connections are open."""
        return [number for number, client in enumerate(self.clients) if not is_closed(client)]


def is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False


@pytest.fixture
def listener(settings: Settings) -> Iterator[Listener]:
    settings.CONNECTIONS_PER_ADDRESS, settings.UNLIMITED_ADDRESSES = LIMIT, []
    listening = Listener()
    yield listening
    for each in [listening.socket, *listening.clients, *listening.accepted]:
        each.close()


def test_excess_connections_of_an_address_are_closed_longest_idle_first(listener: Listener) -> None:
    guard = Connections()
    listener.connect(LIMIT + 3)
    guard.record_request(listener.address, listener.client(0), 2.0)
    guard.record_request(listener.address, listener.client(1), 1.0)
    guard.close_excess()
    assert len(listener.open()) == LIMIT
    assert {0, 1} <= set(listener.open())

    listener.connect(LIMIT - 1)
    for number in range(LIMIT + 3, 2 * LIMIT + 2):
        guard.record_request(listener.address, listener.client(number), 3.0)
    guard.close_excess()
    assert listener.open() == [0, *range(LIMIT + 3, 2 * LIMIT + 2)]


def test_a_connection_that_the_kernel_lists_twice_counts_once(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    guard = Connections()
    listener.connect(LIMIT)
    guard.record_request(listener.address, listener.client(0), 1.0)
    table = tmp_path / "tcp"
    table.write_text(Path("/proc/net/tcp").read_text() * 2)
    monkeypatch.setattr(connections, "PROC_NET_TABLES", [table])
    guard.close_excess()
    assert len(listener.open()) == LIMIT


def test_an_exempt_address_has_no_connection_limit(listener: Listener, settings: Settings) -> None:
    settings.UNLIMITED_ADDRESSES = [ip_network("::1"), ip_network("127.0.0.0/8")]
    guard = Connections()
    listener.connect(LIMIT + 3)
    guard.record_request(listener.address, listener.client(0), 1.0)
    guard.close_excess()
    assert len(listener.open()) == LIMIT + 3


def test_connections_within_the_limit_or_of_other_ports_stay_open(listener: Listener) -> None:
    guard = Connections()
    listener.connect(LIMIT)
    other = Listener()
    other.connect(LIMIT + 3)
    guard.record_request(listener.address, listener.client(0), 1.0)
    guard.close_excess()
    assert len(listener.open()) == LIMIT
    assert len(other.open()) == LIMIT + 3
    for each in [other.socket, *other.clients, *other.accepted]:
        each.close()


@pytest.mark.parametrize(
    ("written", "address", "network"),
    [
        ("0100007F", "127.0.0.1", "127.0.0.1"),
        ("0000000000000000FFFF00000200000A", "10.0.0.2", "10.0.0.2"),
        ("B80D0120010002000000000001000000", "2001:db8:2:1::1", "2001:db8:2:1::/64"),
    ],
)
def test_addresses_of_the_kernel_are_parsed(written: str, address: str, network: str) -> None:
    assert connections._address(written) == (address, network)


# --- Live server ----------------------------------------------------------------------------------------------------


@pytest.fixture
def web_server(django_db_setup: None, tmp_path: Path) -> Iterator[live.Server]:
    running = live.server(tmp_path / "web.log")
    running.child = replace(running.child, env={**os.environ, **running.child.env, "UNLIMITED_ADDRESSES": "::1"})
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.mark.processes
def test_connections_of_one_address_are_limited_while_requests_are_served(
    web_server: live.Server, settings: Settings
) -> None:
    clients = [socket.create_connection(("127.0.0.1", web_server.port)) for _ in range(1_100)]
    try:
        assert web_server.is_up()
        excess = len(clients) - settings.CONNECTIONS_PER_ADDRESS
        assert wait_until(lambda: sum(map(is_closed, clients)) >= excess, WAIT_SECONDS)
        assert wait_until(lambda: "connections_closed" in web_server.child.log.read_text(), WAIT_SECONDS)
        assert web_server.is_up()
    finally:
        for client in clients:
            client.close()


@pytest.mark.processes
def test_idle_connections_and_unfinished_headers_time_out(server: live.Server) -> None:
    started = time.monotonic()
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    clients[1].sendall(GET)
    assert clients[1].recv(65_536).startswith(b"HTTP/1.1 200")
    clients[2].sendall(GET[:20])
    for client in clients:
        client.settimeout(web.HEADER_TIMEOUT_SECONDS + WAIT_SECONDS)
        while client.recv(65_536):
            pass
        client.close()
    assert time.monotonic() - started >= web.HEADER_TIMEOUT_SECONDS - 1
