"""Allowed URLs and addresses of webhooks: no broker may make the exchange send requests into private networks.

The text of a URL is checked at registration. The resolved address is checked on each connection.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from exchange.rules import ChoicesEnum

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_PORT = 2**16 - 1
MAX_HOST_LENGTH = 253


class AddressProfile(ChoicesEnum):
    """Allowed addresses: `local` allows all but link-local and cloud metadata, `public` only global ones, by https."""

    LOCAL = "local"
    PUBLIC = "public"


# --- URLs -----------------------------------------------------------------------------------------------------------

# RFC 3986 without user info and fragment. Two parsers may interpret other URLs differently.
URL = re.compile(
    r"(?P<scheme>[hH][tT][tT][pP][sS]?)://"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?)"
    r"(:(?P<port>[0-9]{1,5}))?"
    r"([/?]([A-Za-z0-9._~:/?\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)?"
)
# Some parsers read a host that ends in a number as an IPv4 address: as one number, octal, hexadecimal or shortened.
ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0[xX][0-9A-Fa-f]*)\.?")


@dataclass(frozen=True, slots=True)
class InvalidUrl(Exception):
    """The reason why a URL is rejected: a stable code and a sentence."""

    code: str
    detail: str


def check_url(url: str, profile: AddressProfile) -> None:
    """Raise `InvalidUrl` if the URL's text is not allowed. Host names are not resolved."""
    parts = URL.fullmatch(url)
    if parts is None or len(parts["host"]) > MAX_HOST_LENGTH or not 0 < int(parts["port"] or 1) <= MAX_PORT:
        raise InvalidUrl(
            "invalid", "Must be an http or https URL with a host, without user info or fragment, in ASCII."
        )
    if profile is AddressProfile.PUBLIC and parts["scheme"].lower() != "https":
        raise InvalidUrl("https_required", "Must be an https URL.")
    try:
        address = _address(parts["host"])
    except ValueError:
        raise InvalidUrl("invalid", "An IP address must be four decimal numbers, or IPv6 in brackets.") from None
    if address is not None and is_blocked(address, profile):
        raise InvalidUrl("blocked_address", "Webhooks may not be sent to this address.")


def _address(host: str) -> Address | None:
    """Return the address in a URL's host, or None for a host name; `ValueError` if it is ambiguous."""
    if host.startswith("["):
        return IPv6Address(host[1:-1])
    return IPv4Address(host) if ENDS_IN_NUMBER.fullmatch(host) else None


# --- Addresses ------------------------------------------------------------------------------------------------------

_LINK_LOCAL_AND_METADATA: list[Network] = [
    IPv4Network("169.254.0.0/16"),
    IPv4Network("100.100.100.200/32"),  # Alibaba Cloud
    IPv4Network("168.63.129.16/32"),  # Azure
    IPv4Network("192.0.0.192/32"),  # Oracle Cloud
    IPv6Network("fe80::/10"),
    IPv6Network("fd00:ec2::/32"),  # Amazon
    IPv6Network("fd20:ce::/32"),  # Google
    IPv6Network("fd00:c1::a9fe:a9fe/128"),  # Oracle Cloud
    IPv6Network("fd00:100::100:200/128"),  # Alibaba Cloud
    IPv6Network("fd00:42::42/128"),  # Scaleway
    IPv6Network("fd00:a9fe:a9fe::1/128"),  # Akamai
    IPv6Network("64:ff9b:1::/48"),  # local-use NAT64: the position of the IPv4 address is unknown
]

# Ranges that the IANA special-purpose address registries do not list as globally reachable, and multicast. Of IPv6,
# only 2000::/3 is allocated.
_NOT_GLOBAL: list[Network] = [
    *map(
        IPv4Network,
        [
            *["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"],
            *["192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"],
            *["203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"],
        ],
    ),
    *map(IPv6Network, ["::/3", "4000::/2", "8000::/1", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"]),
]

# IPv6 ranges with an embedded IPv4 address, to which a translator would forward the connection.
_NAT64 = IPv6Network("64:ff9b::/96")
_IPV4_AT_THE_END = [_NAT64, *map(IPv6Network, ["::/96", "::ffff:0:0/96", "::ffff:0:0:0/96"])]


def is_blocked(host: str | Address, profile: AddressProfile) -> bool:
    """True if this address, or one embedded in it, is not allowed; `ValueError` if it is not an address."""
    address = ip_address(host)
    if any(_is_in(each, _LINK_LOCAL_AND_METADATA) for each in _with_embedded_addresses(address)):
        return True
    if profile is AddressProfile.LOCAL:
        return False
    if isinstance(address, IPv6Address) and address in _NAT64:
        (_, address) = _with_embedded_addresses(address)
    return _is_in(address, _NOT_GLOBAL)


def _is_in(address: Address, networks: list[Network]) -> bool:
    return any(address in network for network in networks)


def _with_embedded_addresses(address: Address) -> Iterator[Address]:
    """Yield the address and the IPv4 addresses embedded in it."""
    yield address
    if isinstance(address, IPv4Address):
        return
    if any(address in network for network in _IPV4_AT_THE_END):
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
