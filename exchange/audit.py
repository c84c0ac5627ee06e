"""The record of what operators do: who, when, from where, what, why, and how it was before and after.

An entry is written in the transaction of the act that it tells, by a function of the database (`sql/record_audit.sql`),
so that the write path can send it along with the rest. The table only grows: the database itself refuses to change or
remove an entry. Each entry has a hash of its content and the hash before it, and `manage.py reconcile` verifies the
chain, so that what got past the database shows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

import msgspec
import structlog
from django.conf import settings
from django.db import connection

from exchange.rules import ChoicesEnum

ADDRESS_LENGTH = 64
_FORWARDED = {"HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED"}  # what proxies say, if they say anything
IPV6_PREFIX = 64  # bits: the smallest network that anybody is given
HASH_BYTES = 32  # SHA-256

_log = structlog.get_logger(__name__)


class ActorKind(ChoicesEnum):
    """How somebody acts: signed in to the back office, with an operator's key over REST, or at the machine itself."""

    USER = "user"
    KEY = "key"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and from where: a user's name, a key's prefix or a command; the address is empty at the machine."""

    kind: ActorKind
    name: str
    address: str = ""
    request_id: str = ""


class Action(ChoicesEnum):
    """What can be done; the word before the dot says what kind of thing the subject is."""

    INSTRUMENT_LIST = "instrument.list"
    INSTRUMENT_EDIT = "instrument.edit"
    INSTRUMENT_HALT = "instrument.halt"
    INSTRUMENT_RESUME = "instrument.resume"
    BROKER_ADMIT = "broker.admit"
    BROKER_SUSPEND = "broker.suspend"
    BROKER_REINSTATE = "broker.reinstate"
    BROKER_CANCEL_ORDERS = "broker.cancel_orders"
    BROKER_TRANSFER = "broker.transfer"
    KEY_ISSUE = "key.issue"
    KEY_REVOKE = "key.revoke"
    ORDER_CANCEL = "order.cancel"
    WEBHOOK_PAUSE = "webhook.pause"
    WEBHOOK_RESUME = "webhook.resume"
    DELIVERY_REDELIVER = "delivery.redeliver"
    RECONCILE_START = "reconcile.start"
    USER_ADD = "user.add"
    USER_CHANGE = "user.change"
    USER_DELETE = "user.delete"
    USER_ENROL = "user.enrol_two_factor"
    USER_RESET = "user.reset_two_factor"


class Entry(msgspec.Struct, frozen=True):
    """An act, as it is written down; `before` and `after` tell what of the subject it changed."""

    actor_kind: ActorKind
    actor: str
    address: str
    request_id: str
    action: Action
    subject: str
    reason: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None

    @classmethod
    def of(
        cls,
        by: Actor,
        action: Action,
        subject: object,
        *,
        reason: str = "",
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> "Entry":
        return cls(by.kind, by.name, by.address, by.request_id, action, str(subject), reason, before, after)


# For the statement that writes the act, as its last part: it locks the head of the chain until the transaction ends.
# Gives how many entries that were, null for none.
RECORD = "exchange_record_audit(%(audit)s::json)"


def encode_entries(entries: Iterable[Entry]) -> str | None:
    """`entries` as `RECORD` takes them: amounts are strings, since nobody may read them as binary floats."""
    found = list(entries)
    return _ENCODER.encode(found).decode() if found else None


def record(*entries: Entry) -> None:
    """Write entries in the transaction that is open, the act's own, as its last statement."""
    assert connection.in_atomic_block
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {RECORD}", {"audit": encode_entries(entries)})


def address_of(environ: Mapping[str, Any]) -> str:
    """The client's address: the socket's, or what the outermost of our own proxies says of it."""
    proxies: int = settings.TRUSTED_PROXIES
    if not proxies and not _FORWARDED.isdisjoint(environ):
        _warn_of_a_proxy()
    forwarded: list[str] = environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
    said = forwarded[-proxies].strip() if len(forwarded) >= proxies > 0 else ""
    address = said or str(environ.get("REMOTE_ADDR", ""))
    return address[:ADDRESS_LENGTH]  # with fewer proxies than we are told of it is what the client says


@cache
def _warn_of_a_proxy() -> None:
    """Say once in each process that clients may share an address."""
    _log.warning(
        "proxy_not_trusted",
        detail="A request was forwarded, but TRUSTED_PROXIES is 0. If a proxy of ours did that, all clients share its"
        " address, and with it the limits of logins and of requests without a valid key.",
    )


def network_of(environ: Mapping[str, Any]) -> str | None:
    """The client's address, if what is said of it is one; of IPv6 its network, in which a client has all there are."""
    try:
        found = ip_address(address_of(environ).strip("[]"))
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or IPv6Network((found, IPV6_PREFIX), strict=False).network_address
    return str(found)


def _encoded(value: object) -> object:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(type(value))


_ENCODER = msgspec.json.Encoder(enc_hook=_encoded)  # Decimals become strings by default
