"""Limits the open connections of each client address by closing those above the limit from time to time.

The web server accepts every connection and closes idle ones after a timeout. Of an address with too many connections,
those that have been idle for longest are closed here.
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

FD_FOLDER = Path("/dev/fd")  # open files of this process
PROC_NET_TABLES = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]  # connections of all processes
STATE_ESTABLISHED = "01"  # in these tables

_log = structlog.get_logger(__name__)


class ClientConnection(NamedTuple):
    """A client's "address:port", the network that counts as its address, and the inode of the socket."""

    client: str
    network: str
    inode: int


class Connections:
    """The client connections of this process, and the time of the last request of each."""

    def __init__(self) -> None:
        self._port: int | None = None  # the web server's, known from its first request
        self._last_request_at: dict[str, float] = {}  # by client

    def record_request(self, server: str, client: str, now: float) -> None:
        """Record a request from `client` to `server`, each an "address:port"."""
        self._last_request_at[client] = now
        if self._port is None:
            self._port = int(server.rpartition(":")[2])

    def close_excess(self) -> None:
        """Close connections above `CONNECTIONS_PER_ADDRESS` of each address, except for `UNLIMITED_ADDRESSES`."""
        if self._port is None:
            return
        connections = list(dict.fromkeys(_connections(self._port)))  # the kernel may list one twice as others change
        for client in self._last_request_at.keys() - {each.client for each in connections}:
            self._last_request_at.pop(client, None)
        if not _over_limit(connections):  # counts all processes, because finding the connections of one takes longer
            return
        descriptors = dict(_sockets())
        for network, own in _over_limit([each for each in connections if each.inode in descriptors]).items():
            own.sort(key=lambda each: self._last_request_at.get(each.client, 0.0))
            excess = own[: len(own) - settings.CONNECTIONS_PER_ADDRESS]
            for each in excess:
                _close(descriptors[each.inode], each.inode)
            _log.warning("connections_closed", address=network, connections=len(excess))


def _over_limit(connections: Collection[ClientConnection]) -> dict[str, list[ClientConnection]]:
    """The connections of each limited network that has too many."""
    by_network: dict[str, list[ClientConnection]] = defaultdict(list)
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


def _connections(port: int) -> Iterator[ClientConnection]:
    """The open connections to this port, of any process."""
    local_suffix = f":{port:04X}"
    for table in PROC_NET_TABLES:
        with suppress(FileNotFoundError), table.open() as lines:  # a system may lack IPv6
            for line in lines:
                _, local, remote, state, _, _, _, _, _, inode, *_ = line.split()
                if state == STATE_ESTABLISHED and local.endswith(local_suffix):
                    host, _, peer_port = remote.partition(":")
                    address, network = _address(host)
                    yield ClientConnection(f"{address}:{int(peer_port, 16)}", network, int(inode))


@lru_cache(maxsize=65_536)
def _address(hex_address: str) -> tuple[str, str]:
    """Parse the kernel's hexadecimal address, 32-bit words in host byte order; return it and its network."""
    words = [bytes.fromhex(hex_address[at : at + 8]) for at in range(0, len(hex_address), 8)]
    address = ip_address(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words))
    if address.version == 4:
        return str(address), str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped), str(address.ipv4_mapped)
    return str(address), str(ip_network((address, IPV6_PREFIX), strict=False))


def _sockets() -> Iterator[tuple[int, int]]:
    """The inode and the descriptor of each socket of this process."""
    for name in os.listdir(FD_FOLDER):
        with suppress(OSError):  # closed since it was listed
            kind, _, number = os.readlink(FD_FOLDER / name).partition(":")
            if kind == "socket":
                yield int(number.strip("[]")), int(name)


def _close(descriptor: int, inode: int) -> None:
    """Shut the connection down, so that the web server closes it. Its descriptor may have been reused by now."""
    with suppress(OSError):
        copy = os.dup(descriptor)
        if os.fstat(copy).st_ino == inode:
            with socket.socket(fileno=copy) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)
        else:
            os.close(copy)
