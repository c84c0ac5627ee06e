"""Allowed webhook targets: checks of a URL's text and of every dialled address (contract: "Webhooks").

An event loop records every dialled address and connects only to this machine.
"""

import asyncio
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Literal
from uuid import uuid4

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from tests.receiver import Receiver, redirect, respond
from webhooks import http_client
from webhooks.addresses import ENDS_IN_NUMBER, Address, AddressProfile, InvalidUrl, check_url, is_blocked
from webhooks.delivery_queue import ClaimedDelivery, DeliveryOutcome
from webhooks.models import DeliveryError

LOCAL, PUBLIC = AddressProfile.LOCAL, AddressProfile.PUBLIC
BLOCKED = DeliveryError.BLOCKED_ADDRESS
METADATA = "169.254.169.254"
CLOSED = ["Connection: close"]


class RecordingLoop(asyncio.SelectorEventLoop):
    """Records every dialled address, and refuses all but this machine's."""

    def __init__(self) -> None:
        super().__init__()
        self.dialled: list[str] = []

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        self.dialled.append(address[0])
        if address[0] != "127.0.0.1":
            raise ConnectionRefusedError("not in a test")
        await super().sock_connect(sock, address)


class FakeResolver(AbstractResolver):
    """Resolves names to the addresses that a test sets."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host not in self.addresses:
            raise OSError(None, "unknown name")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self.addresses[host]
        ]

    async def close(self) -> None:
        pass


class Dispatch:
    """A dispatcher's connector with a fake resolver."""

    def __init__(self, runner: asyncio.Runner) -> None:
        loop = runner.get_loop()
        assert isinstance(loop, RecordingLoop)
        self._runner, self._resolver, self.dialled = runner, FakeResolver(), loop.dialled
        self._connector = runner.run(self._begin())

    async def _begin(self) -> aiohttp.TCPConnector:
        return http_client.create_connector(self._resolver)

    def resolve(self, name: str, *addresses: str) -> None:
        """Let `name` resolve to these addresses."""
        self._resolver.addresses[name] = list(addresses)
        self._connector.clear_dns_cache()

    def send(self, url: str) -> DeliveryOutcome:
        claim = ClaimedDelivery(uuid4(), uuid4(), url, [], "trade.executed", 1, "{}")
        return self._runner.run(http_client.send(self._connector, claim))

    def error(self, url: str) -> DeliveryError | None:
        return self.send(url).error

    def close(self) -> None:
        self._runner.run(self._close())

    async def _close(self) -> None:
        await self._connector.close()


@pytest.fixture
def dispatch() -> Iterator[Dispatch]:
    with asyncio.Runner(loop_factory=RecordingLoop) as runner:
        dispatch = Dispatch(runner)
        yield dispatch
        dispatch.close()


def rejection(url: str, profile: AddressProfile) -> str | None:
    """The error code of a URL's registration, or None if it is allowed."""
    try:
        check_url(url, profile)
    except InvalidUrl as error:
        return error.code
    return None


def host(address: object) -> str:
    """An address as the host of a URL."""
    return f"[{address}]" if ":" in str(address) else str(address)


# --- Notations and embeddings ---------------------------------------------------------------------------------------


def notations(address: IPv4Address) -> list[str]:
    """Notations of an IPv4 address for `inet_aton`: numbers in base 10, 8 or 16, the last ones combined."""
    number, (a, b, c, d) = int(address), address.packed
    whole = [f"{number}", f"0{number:o}", f"{number:#x}", f"{number:#X}", f"0x{number:08x}", f"00{number:o}"]
    parts = [
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"0X{a:02X}.0X{b:02X}.0X{c:02X}.0X{d:02X}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"0000{a:o}.{b}.{c}.{d}",
        f"{a}.{b:#x}.0{c:o}.{d}",
        f"{a}.{b}.{c}.{d:#x}",
        f"{a:#x}.{number & 0xFFFFFF}",
        f"0{a:o}.{b:#x}.{number & 0xFFFF}",
    ]
    return [*whole, *parts, f"{address}.", f"{number}.", f"{number:#x}."]


def embeddings(address: IPv4Address) -> list[str]:
    """IPv6 addresses that lead to an IPv4 address by translation or tunnelling."""
    number = int(address)
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"
    flipped = number ^ 0xFFFFFFFF
    a, b, c, d = address.packed
    return [
        f"::ffff:{address}",
        f"::ffff:{high}:{low}",
        f"::FFFF:{high.upper()}:{low.upper()}",
        f"0:0:0:0:0:ffff:{high}:{low}",
        f"0000:0000:0000:0000:0000:ffff:{address}",
        f"::{address}",
        f"::{high}:{low}",
        f"::ffff:0:{address}",
        f"::ffff:0:{high}:{low}",
        f"64:ff9b::{address}",
        f"64:ff9b::{high}:{low}",
        f"0064:FF9B:0:0:0:0:{high}:{low}",
        f"64:ff9b:1::{address}",  # a /96
        f"64:ff9b:1:{high}:{c:x}:{d:02x}00::",  # a /48
        f"64:ff9b:1:ff{a:02x}:{b:x}:{c:02x}{d:02x}::",  # a /56
        f"64:ff9b:1:ffff:{a:x}:{b:02x}{c:02x}:{d:02x}00:0",  # a /64
        f"2002:{high}:{low}::",
        f"2002:{high}:{low}:1::{address}",
        f"2001:0:{high}:{low}::",  # Teredo server
        f"2001:0:808:808:0:ffff:{flipped >> 16:x}:{flipped & 0xFFFF:x}",  # Teredo client
    ]


# Addresses that every profile blocks, and adjacent ones that `local` allows.
ALWAYS: list[tuple[str, list[str], list[str]]] = [
    (
        "link-local IPv4 (Amazon, Azure, Google, Oracle, IBM, DigitalOcean, Scaleway, Tencent, ...)",
        ["169.254.0.0", METADATA, "169.254.170.2", "169.254.42.42", "169.254.0.23", "169.254.255.255"],
        ["169.253.255.255", "169.255.0.0"],
    ),
    ("Alibaba Cloud", ["100.100.100.200"], ["100.100.100.199", "100.100.100.201"]),
    ("Azure", ["168.63.129.16"], ["168.63.129.15", "168.63.129.17"]),
    ("Oracle Cloud", ["192.0.0.192"], ["192.0.0.191", "192.0.0.193"]),
    (
        "link-local IPv6 (OpenStack)",
        ["fe80::", "fe80::a9fe:a9fe", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
        ["fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fec0::"],
    ),
    ("Amazon", ["fd00:ec2::254", "fd00:ec2::23", "FD00:0EC2:0:0:0:0:0:254"], ["fd00:ec1::254", "fd00:ec3::254"]),
    ("Google, IPv6", ["fd20:ce::254"], ["fd20:cd::254", "fd20:cf::254"]),
    ("Oracle Cloud, IPv6", ["fd00:c1::a9fe:a9fe"], ["fd00:c1::a9fe:a9fd", "fd00:c1::a9fe:a9ff"]),
    ("Alibaba Cloud, IPv6", ["fd00:100::100:200"], ["fd00:100::100:1ff", "fd00:100::100:201"]),
    ("Scaleway, IPv6", ["fd00:42::42"], ["fd00:42::41", "fd00:42::43"]),
    ("Akamai, IPv6", ["fd00:a9fe:a9fe::1"], ["fd00:a9fe:a9fe::", "fd00:a9fe:a9fe::2"]),
]


@pytest.mark.parametrize(("case", "blocked", "beside"), ALWAYS, ids=[case for case, *_ in ALWAYS])
def test_link_local_and_metadata_addresses_are_blocked_in_every_profile(
    dispatch: Dispatch, settings: Settings, case: str, blocked: list[str], beside: list[str]
) -> None:
    for profile in AddressProfile:
        settings.WEBHOOK_ADDRESSES = profile
        for address in blocked:
            url = f"https://{host(address)}/hook"
            assert rejection(url, profile) == "blocked_address", address
            assert dispatch.error(url) == BLOCKED, address
    assert dispatch.dialled == []

    settings.WEBHOOK_ADDRESSES = LOCAL
    for address in beside:
        url = f"http://{host(address)}/hook"
        assert rejection(url, LOCAL) is None, address
        assert dispatch.error(url) == DeliveryError.NOT_CONNECTED, address
    assert dispatch.dialled == beside


@pytest.mark.parametrize("profile", AddressProfile)
@pytest.mark.parametrize("address", [METADATA, "169.254.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192"])
def test_no_notation_or_embedding_evades_the_block(
    dispatch: Dispatch, settings: Settings, address: str, profile: AddressProfile
) -> None:
    settings.WEBHOOK_ADDRESSES = profile
    for notation in notations(IPv4Address(address)):
        assert socket.inet_aton(notation.removesuffix(".")) == IPv4Address(address).packed, notation
        url = f"https://{notation}/hook"
        dispatch.resolve(notation, address)
        assert rejection(url, profile) == "invalid", notation
        assert dispatch.error(url) is not None, notation
    for embedding in embeddings(IPv4Address(address)):
        url = f"https://[{embedding}]/hook"
        assert rejection(url, profile) == "blocked_address", embedding
        assert dispatch.error(url) == BLOCKED, embedding
        dispatch.resolve("embedded.test", embedding)
        assert dispatch.error("https://embedded.test/hook") == BLOCKED, embedding
    assert dispatch.dialled == []


def test_the_notations_include_common_attacks() -> None:
    tried = notations(IPv4Address(METADATA))

    assert {"2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "0xa9.0xfe.0xa9.0xfe"} <= {*tried}
    assert {"0XA9FEA9FE", "169.16689662", "169.254.169.254.", "169.0xfe.0251.254"} <= {*tried}


@pytest.mark.parametrize(
    "name",
    [
        *["0", "0x", "0x7f", "127.1", "010.0.0.1", "08.8.8.8", "8.8.8.8.", "8.8.8", "1.2.3.4.5", "256.256.256.256"],
        *["4294967296", "7147006462", "example.0", "example.com.1", "a.0x1f", "a.0x.", "1.2.3.0x4"],
    ],
)
def test_a_host_that_ends_in_a_number_must_be_a_dotted_decimal_address(name: str) -> None:
    assert rejection(f"https://{name}/", LOCAL) == "invalid"


@pytest.mark.parametrize(
    "name", ["0.a", "1e100.net", "1.example.com", "0x1.example", "0xg", "4chan.org", "a1", "a.0xg"]
)
def test_a_host_name_may_contain_numbers(name: str) -> None:
    assert rejection(f"https://{name}/", PUBLIC) is None


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "0", "8", "2852039166", METADATA, ":", ":::", "1::2::3", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9"]
)
def test_brackets_require_an_ipv6_address(text: str) -> None:
    assert rejection(f"https://[{text}]/", LOCAL) == "invalid"


@pytest.mark.parametrize(
    "text", ["::12345", "::1%25eth0", "fe80::1%eth0", "::1.2.3", "::ffff:0169.254.169.254", "v1.a"]
)
def test_malformed_and_zoned_ipv6_addresses_are_invalid(text: str) -> None:
    assert rejection(f"https://[{text}]/", LOCAL) == "invalid"


# --- The public profile ---------------------------------------------------------------------------------------------

# Networks that the IANA special-purpose registries do not call globally reachable, multicast and unassigned networks,
# with the addresses just before and after if these are global.
NOT_GLOBAL: list[tuple[str, str | None, str | None]] = [
    ("0.0.0.0/8", None, "1.0.0.0"),
    ("10.0.0.0/8", "9.255.255.255", "11.0.0.0"),
    ("100.64.0.0/10", "100.63.255.255", "100.128.0.0"),
    ("127.0.0.0/8", "126.255.255.255", "128.0.0.0"),
    ("169.254.0.0/16", "169.253.255.255", "169.255.0.0"),
    ("172.16.0.0/12", "172.15.255.255", "172.32.0.0"),
    ("192.0.0.0/24", "191.255.255.255", "192.0.1.0"),
    ("192.0.0.0/29", "191.255.255.255", None),
    ("192.0.0.8/32", None, None),
    ("192.0.0.170/31", None, None),
    ("192.0.2.0/24", "192.0.1.255", "192.0.3.0"),
    ("192.88.99.0/24", "192.88.98.255", "192.88.100.0"),
    ("192.168.0.0/16", "192.167.255.255", "192.169.0.0"),
    ("198.18.0.0/15", "198.17.255.255", "198.20.0.0"),
    ("198.51.100.0/24", "198.51.99.255", "198.51.101.0"),
    ("203.0.113.0/24", "203.0.112.255", "203.0.114.0"),
    ("224.0.0.0/4", "223.255.255.255", None),
    ("240.0.0.0/4", None, None),
    ("255.255.255.255/32", None, None),
    ("::/128", None, None),
    ("::1/128", None, None),
    ("::ffff:0:0/96", None, None),
    ("64:ff9b:1::/48", None, None),
    ("100::/64", None, None),
    ("100:0:0:1::/64", None, None),
    ("200::/7", None, None),
    ("1000::/4", None, "2000::"),
    ("2001::/23", "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"),
    ("2001::/32", "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None),
    ("2001:2::/48", None, None),
    ("2001:10::/28", None, None),
    ("2001:db8::/32", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"),
    ("2002::/16", "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"),
    ("3fff::/20", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"),
    ("4000::/3", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None),
    ("5f00::/16", None, None),
    ("6000::/3", None, None),
    ("8000::/3", None, None),
    ("a000::/3", None, None),
    ("c000::/3", None, None),
    ("e000::/4", None, None),
    ("f000::/5", None, None),
    ("fc00::/7", None, None),
    ("fe00::/9", None, None),
    ("fe80::/10", None, None),
    ("fec0::/10", None, None),
    ("ff00::/8", None, None),
]
NETWORKS = [ip_network(network) for network, _, _ in NOT_GLOBAL]
# Globally reachable according to the registry, but never a receiver: anycast of protocols, and identifiers.
PROTOCOL_ADDRESSES = ["192.0.0.9", "192.0.0.10", "2001:1::1", "2001:1::2", "2001:1::3", "2001:3::1", "2001:4:112::1"]
PROTOCOL_ADDRESSES += ["2001:20::1", "2001:30::1", "192.88.99.1"]
GLOBAL = ["8.8.8.8", "1.1.1.1", "192.31.196.1", "192.52.193.1", "192.175.48.1", "2606:4700::1111"]
GLOBAL += ["2001:4860:4860::8888", "2620:4f:8000::1", "2a00:1450::1", "64:ff9b::808:808", "64:ff9b::1.1.1.1"]


@pytest.mark.parametrize(("network", "before", "after"), NOT_GLOBAL, ids=[network for network, *_ in NOT_GLOBAL])
def test_networks_that_are_not_global_are_blocked_in_public_up_to_their_edges(
    dispatch: Dispatch, settings: Settings, network: str, before: str | None, after: str | None
) -> None:
    settings.WEBHOOK_ADDRESSES = PUBLIC
    inside = ip_network(network)
    for address in (inside[0], inside[-1], inside[inside.num_addresses // 2]):
        assert rejection(f"https://{host(address)}/", PUBLIC) == "blocked_address", address
        assert dispatch.error(f"https://{host(address)}/") == BLOCKED, address
    assert dispatch.dialled == []

    for beside in filter(None, (before, after)):
        assert rejection(f"https://{host(beside)}/", PUBLIC) is None, beside
        assert dispatch.error(f"https://{host(beside)}/") == DeliveryError.NOT_CONNECTED, beside
    assert dispatch.dialled == [*filter(None, (before, after))]


def test_protocol_addresses_are_blocked_in_public() -> None:
    for address in PROTOCOL_ADDRESSES:
        assert rejection(f"https://{host(address)}/", PUBLIC) == "blocked_address", address


def test_global_addresses_are_dialled_in_public(dispatch: Dispatch, settings: Settings) -> None:
    settings.WEBHOOK_ADDRESSES = PUBLIC
    for address in GLOBAL:
        assert rejection(f"https://{host(address)}/", PUBLIC) is None, address
        assert dispatch.error(f"https://{host(address)}/") == DeliveryError.NOT_CONNECTED, address
    assert dispatch.dialled == GLOBAL


def test_public_requires_https(dispatch: Dispatch, settings: Settings, receiver: Receiver) -> None:
    settings.WEBHOOK_ADDRESSES = PUBLIC
    dispatch.resolve("receiver.test", "8.8.8.8", "127.0.0.1")
    for scheme in ("http", "HTTP", "hTTp"):
        url = f"{scheme}://receiver.test:{receiver.port}/"
        assert rejection(url, PUBLIC) == "https_required"
        assert rejection(url, LOCAL) is None
        assert dispatch.error(url) == BLOCKED
    assert dispatch.dialled == []
    assert rejection("HttpS://8.8.8.8/", PUBLIC) is None
    assert dispatch.error("HttpS://8.8.8.8/") == DeliveryError.NOT_CONNECTED
    assert dispatch.dialled == ["8.8.8.8"]


def test_local_allows_this_machine_and_private_networks(dispatch: Dispatch, receiver: Receiver) -> None:
    assert rejection(receiver.url("/hook"), LOCAL) is None
    assert dispatch.send(receiver.url("/hook")).status_code == 200
    inside = ["127.255.255.255", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "198.18.0.1", "::1", "fd00::1"]
    inside += ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::1", "2001:0:a00:1::"]
    for address in inside:
        assert rejection(f"http://{host(address)}:8000/", LOCAL) is None, address
        assert dispatch.error(f"http://{host(address)}:8000/") == DeliveryError.NOT_CONNECTED, address
    assert dispatch.dialled == ["127.0.0.1", *inside]


# --- Comparison with Python -----------------------------------------------------------------------------------------

# Blocked, although some versions of Python call them global (see above and `PROTOCOL_ADDRESSES`).
EXTRA = ["192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"]
EXTRA_V6 = ["::ffff:0:0/96", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "fec0::/10"]
NAT64 = IPv6Network("64:ff9b::/96")


def any_address(version: Literal[4, 6]) -> st.SearchStrategy[Any]:
    """Any address, often one in a blocked network or near its edges."""
    near = [network for network in NETWORKS if network.version == version]
    edges = [edge for network in near for edge in (int(network[0]), int(network[-1]))]
    make, last = (IPv4Address, 2**32 - 1) if version == 4 else (IPv6Address, 2**128 - 1)
    around = st.builds(
        lambda edge, step: make(min(max(edge + step, 0), last)), st.sampled_from(edges), st.integers(-2, 2)
    )
    return st.one_of(st.ip_addresses(v=version), around, *[st.ip_addresses(network=network) for network in near])


def is_python_global(address: Address) -> bool:
    return address.is_global and not (address.is_multicast or address.is_reserved)


@hypothesis_settings(max_examples=500, deadline=None)
@given(any_address(4))
def test_an_ipv4_address_is_blocked_in_public_exactly_when_it_is_not_global(address: IPv4Address) -> None:
    is_extra = any(address in IPv4Network(network) for network in EXTRA)

    assert is_blocked(address, PUBLIC) == (not is_python_global(address) or is_extra)
    assert (rejection(f"https://{address}/", PUBLIC) is not None) == is_blocked(address, PUBLIC)


@hypothesis_settings(max_examples=500, deadline=None)
@given(any_address(6))
def test_an_ipv6_address_is_blocked_in_public_exactly_when_it_is_not_global(address: IPv6Address) -> None:
    assume(address not in NAT64)
    is_extra = any(address in IPv6Network(network) for network in EXTRA_V6)

    assert is_blocked(address, PUBLIC) == (not is_python_global(address) or is_extra)
    for text in (str(address), address.exploded, str(address).upper()):
        assert (rejection(f"https://[{text}]/", PUBLIC) is not None) == is_blocked(address, PUBLIC)


@hypothesis_settings(max_examples=300, deadline=None)
@given(any_address(4))
def test_a_nat64_address_is_blocked_in_public_exactly_when_its_ipv4_address_is(address: IPv4Address) -> None:
    assert is_blocked(f"64:ff9b::{address}", PUBLIC) == is_blocked(address, PUBLIC)


def test_a_blocked_address_is_blocked_in_every_notation(dispatch: Dispatch, settings: Settings) -> None:
    always = [IPv4Network(f"{METADATA}/16", strict=False), IPv4Network("168.63.129.16/32")]

    @hypothesis_settings(max_examples=150, deadline=None)
    @given(st.one_of([st.ip_addresses(network=network) for network in always]), any_address(4), st.data())
    def check(metadata: IPv4Address, other: IPv4Address, data: st.DataObject) -> None:
        profile = data.draw(st.sampled_from(AddressProfile))
        address = metadata if profile is LOCAL or not is_blocked(other, PUBLIC) else other
        settings.WEBHOOK_ADDRESSES = profile
        form = data.draw(st.sampled_from([*notations(address), *embeddings(address)]))
        assert rejection(f"https://{host(form)}/", profile) is not None, form
        assert dispatch.error(f"https://{host(form)}/") is not None, form
        dispatch.resolve("name.test", form)
        assert dispatch.error("https://name.test/") == BLOCKED, form
        assert dispatch.dialled == []

    check()


# --- Names ----------------------------------------------------------------------------------------------------------


def test_registration_does_not_resolve_names() -> None:
    for name in ("localhost", "metadata.google.internal", "no.such.name.invalid", "xn--bcher-kva.example", "a_b", "a."):
        assert rejection(f"https://{name}/", PUBLIC) is None


@pytest.mark.parametrize(
    "addresses",
    [[METADATA], ["fe80::a9fe:a9fe"], ["fe80::1%lo"], [METADATA, "fd00:ec2::254", "::ffff:169.254.169.254"]],
)
def test_a_name_with_only_blocked_addresses_is_not_dialled(dispatch: Dispatch, addresses: list[str]) -> None:
    dispatch.resolve("metadata.test", *addresses)
    outcome = dispatch.send("http://metadata.test/latest/meta-data")

    assert (outcome.status_code, outcome.error) == (None, BLOCKED)
    assert dispatch.dialled == []


@pytest.mark.parametrize("found", ["metadata.test", "2852039166", "0xa9fea9fe", "169.254.43518", "0251.0376.0251.0376"])
def test_a_resolved_value_other_than_a_plain_address_is_blocked(dispatch: Dispatch, found: str) -> None:
    dispatch.resolve("name.test", found)

    assert dispatch.error("http://name.test/") == BLOCKED
    assert dispatch.dialled == []


@pytest.mark.parametrize(
    "addresses",
    [
        [METADATA, "127.0.0.1"],
        ["127.0.0.1", METADATA],
        ["fe80::1", METADATA, "::ffff:169.254.169.254", "fd00:ec2::254", "127.0.0.1"],
    ],
)
def test_an_allowed_address_among_several_is_used(dispatch: Dispatch, receiver: Receiver, addresses: list[str]) -> None:
    dispatch.resolve("both.test", *addresses)
    outcome = dispatch.send(f"http://both.test:{receiver.port}/hook")

    assert (outcome.status_code, outcome.error) == (200, None)
    assert dispatch.dialled == ["127.0.0.1"]
    assert len(receiver.requests_to("/hook")) == 1


def test_a_blocked_address_is_not_tried_after_an_allowed_one_failed(dispatch: Dispatch, settings: Settings) -> None:
    settings.WEBHOOK_ADDRESSES = PUBLIC
    dispatch.resolve("both.test", "10.0.0.1", "8.8.8.8", "::1")

    assert dispatch.error("https://both.test/") is not None
    assert {*dispatch.dialled} == {"8.8.8.8"}


@pytest.mark.parametrize("address", ["10.0.{}.{}", "169.254.{}.{}"])
def test_the_number_of_dialled_addresses_is_limited(dispatch: Dispatch, address: str) -> None:
    dispatch.resolve("many.test", *[address.format(number // 250, number % 250) for number in range(4_000)])
    allowed = address.startswith("10.")
    outcome = dispatch.send("http://many.test/")

    assert outcome.error == (DeliveryError.NOT_CONNECTED if allowed else BLOCKED)
    assert len({*dispatch.dialled}) == (http_client.MAX_ADDRESSES if allowed else 0)
    assert len(dispatch.dialled) < http_client.MAX_ADDRESSES**2
    assert outcome.duration_ms < 1_000


def test_a_name_is_checked_for_each_new_connection(dispatch: Dispatch, receiver: Receiver) -> None:
    url = receiver.on("/hook", respond(headers=CLOSED)).replace("127.0.0.1", "changing.test")
    dispatch.resolve("changing.test", "127.0.0.1")
    assert dispatch.send(url).status_code == 200

    dispatch.resolve("changing.test", METADATA)
    assert dispatch.error(url) == BLOCKED
    dispatch.resolve("changing.test", "127.0.0.1")
    assert dispatch.send(url).status_code == 200
    assert dispatch.dialled == ["127.0.0.1", "127.0.0.1"]


def test_a_kept_connection_serves_no_other_name(dispatch: Dispatch, receiver: Receiver) -> None:
    kept, other = (f"http://{name}.test:{receiver.port}/hook" for name in ("kept", "other"))
    dispatch.resolve("kept.test", "127.0.0.1")
    dispatch.resolve("other.test", METADATA)
    assert dispatch.send(kept).status_code == 200

    dispatch.resolve("kept.test", METADATA)
    assert dispatch.send(kept).status_code == 200
    assert dispatch.error(other) == BLOCKED
    assert [request.connection for request in receiver.requests_to("/hook")] == [1, 1]
    assert dispatch.dialled == ["127.0.0.1"]


def test_public_reaches_this_machine_by_no_name(dispatch: Dispatch, settings: Settings, receiver: Receiver) -> None:
    settings.WEBHOOK_ADDRESSES = PUBLIC
    for address in ("127.0.0.1", "0.0.0.0", "::1", "::", *embeddings(IPv4Address("127.0.0.1"))):  # noqa: S104
        dispatch.resolve("localhost", address)
        assert dispatch.error(f"https://localhost:{receiver.port}/") == BLOCKED, address
    assert dispatch.dialled == []
    assert receiver.connection_count == 0


# --- Redirects, proxies and URLs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(dispatch: Dispatch, receiver: Receiver, status: int) -> None:
    for target in (f"http://{METADATA}/", receiver.url("/elsewhere")):
        outcome = dispatch.send(receiver.on("/hook", redirect(target, status)))
        assert (outcome.status_code, outcome.error) == (status, None)
    assert {*dispatch.dialled} == {"127.0.0.1"}
    assert receiver.requests_to("/elsewhere") == []


def test_proxies_of_the_environment_are_ignored(
    dispatch: Dispatch, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, receiver.url())
    dispatch.resolve("metadata.test", METADATA)

    assert dispatch.error("http://metadata.test/") == BLOCKED
    assert dispatch.error("https://metadata.test/") == BLOCKED
    assert dispatch.send("http://10.0.0.1/").error == DeliveryError.NOT_CONNECTED
    assert dispatch.dialled == ["10.0.0.1"]


NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,9}(\.[A-Za-z0-9_-]{1,9}){0,2}\.?", fullmatch=True)
PATHS = st.from_regex(r"[/?]([A-Za-z0-9._~:/?\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2}){0,20}", fullmatch=True)


def test_a_url_is_requested_as_registered(dispatch: Dispatch, receiver: Receiver) -> None:
    @hypothesis_settings(max_examples=100, deadline=None)
    @given(NAMES, PATHS)
    def check(name: str, path: str) -> None:
        assume(not ENDS_IN_NUMBER.fullmatch(name) and not path.endswith("?"))
        url = f"http://{name}:{receiver.port}{path}"
        assert rejection(url, LOCAL) is None
        dispatch.resolve(name, "127.0.0.1")
        sent = dispatch.send(url)
        assert (sent.status_code, sent.error) == (200, None)
        assert receiver.requests[-1].path == (path if path.startswith("/") else f"/{path}")
        assert receiver.requests[-1].headers["host"] == f"{name.removesuffix('.')}:{receiver.port}"

    check()
