"""How many connections one address may hold open in this process: those above the limit are closed now and then.

The web server takes every connection that comes, and closes what is silent after a while. Here an address is kept from
holding too many meanwhile: of these the ones go that have been silent for longest.
"""

import os
import socket
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

import structlog
from django.conf import settings

from exchange.audit import IPV6_PREFIX

FD_FOLDER = Path("/dev/fd")  # of this process
PROC_NET_TABLES = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]  # the kernel's, of all processes
STATE_ESTABLISHED = "01"  # there

_log = structlog.get_logger(__name__)


class Connection(NamedTuple):
    """The other end's "address:port", the network that counts as one address with it, and the kernel's number of it."""

    client: str
    network: str
    inode: int


class Connections:
    """The clients' connections of this process, and when each of them asked for something last."""

    def __init__(self) -> None:
        self._port: int | None = None  # of the web server; unknown before its first request
        self._last_request_at: dict[str, float] = {}  # by client

    def record_request(self, server: str, client: str, now: float) -> None:
        """A request came to this "address:port" from that one."""
        self._last_request_at[client] = now
        if self._port is None:
            self._port = int(server.rpartition(":")[2])

    def close_excess(self) -> None:
        """Close what an address has open above `CONNECTIONS_PER_ADDRESS`, but for `UNLIMITED_ADDRESSES`."""
        if self._port is None:
            return
        connections = list(_connections(self._port))
        for client in self._last_request_at.keys() - {each.client for each in connections}:
            self._last_request_at.pop(client, None)
        if not _over_limit(connections):  # of any process: to know our own takes longer
            return
        descriptors = dict(_sockets())
        for network, own in _over_limit([each for each in connections if each.inode in descriptors]).items():
            own.sort(key=lambda each: self._last_request_at.get(each.client, 0.0))
            excess = own[: len(own) - settings.CONNECTIONS_PER_ADDRESS]
            for each in excess:
                _close(descriptors[each.inode], each.inode)
            _log.warning("connections_closed", address=network, connections=len(excess))


def _over_limit(connections: Collection[Connection]) -> dict[str, list[Connection]]:
    """The connections of each network that has too many, if it is limited."""
    by_network: dict[str, list[Connection]] = defaultdict(list)
    for each in connections:
        by_network[each.network].append(each)
    return {
        network: found
        for network, found in by_network.items()
        if len(found) > settings.CONNECTIONS_PER_ADDRESS and not _is_unlimited(found[0].client)
    }


def _is_unlimited(client: str) -> bool:
    address = ip_address(client.rpartition(":")[0])
    return any(address in network for network in settings.UNLIMITED_ADDRESSES if network.version == address.version)


def _connections(port: int) -> Iterator[Connection]:
    """Those that are open to this port, of whichever process."""
    local_suffix = f":{port:04X}"
    for table in PROC_NET_TABLES:
        with suppress(FileNotFoundError), table.open() as lines:  # there is no IPv6 everywhere
            for line in lines:
                _, local, remote, state, _, _, _, _, _, inode, *_ = line.split()
                if state == STATE_ESTABLISHED and local.endswith(local_suffix):
                    host, _, peer_port = remote.partition(":")
                    address, network = _address(host)
                    yield Connection(f"{address}:{int(peer_port, 16)}", network, int(inode))


@lru_cache(maxsize=65_536)
def _address(hex_address: str) -> tuple[str, str]:
    """An address as the kernel writes it, in words as they are in memory; and what counts as one address with it."""
    words = [bytes.fromhex(hex_address[at : at + 8]) for at in range(0, len(hex_address), 8)]
    address = ip_address(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words))
    if address.version == 4:
        return str(address), str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped), str(address.ipv4_mapped)
    return str(address), str(ip_network((address, IPV6_PREFIX), strict=False))


def _sockets() -> Iterator[tuple[int, int]]:
    """The kernel's number and the descriptor of each socket of this process."""
    for name in os.listdir(FD_FOLDER):
        with suppress(OSError):  # it was closed meanwhile
            kind, _, number = os.readlink(FD_FOLDER / name).partition(":")
            if kind == "socket":
                yield int(number.strip("[]")), int(name)


def _close(descriptor: int, inode: int) -> None:
    """End the connection: the web server then closes it. The descriptor may be another's by now."""
    with suppress(OSError):
        copy = os.dup(descriptor)
        if os.fstat(copy).st_ino == inode:
            with socket.socket(fileno=copy) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)
        else:
            os.close(copy)
