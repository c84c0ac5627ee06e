"""Audit log of operator actions: actor, time, address, action, reason, and the state before and after.

Entries are written in the transaction of the action, by a database function (`sql/record_audit.sql`), so that the write
path can include them in its statement. The table is append-only: a trigger rejects changes. Each entry contains a hash
of its content and the preceding hash. `manage.py reconcile` verifies this chain, to detect changes made in spite of the
trigger.
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
_FORWARDED = {"HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED"}  # set by proxies
IPV6_PREFIX = 64  # bits: the smallest network that providers assign
HASH_BYTES = 32  # SHA-256

_log = structlog.get_logger(__name__)


class ActorKind(ChoicesEnum):
    """Kind of actor: a user of the back office, an operator's API key, or a management command."""

    USER = "user"
    KEY = "key"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class Actor:
    """The actor: a user name, key prefix or command, and its address (empty for commands)."""

    kind: ActorKind
    name: str
    address: str = ""
    request_id: str = ""


class Action(ChoicesEnum):
    """The audited actions. The part before the dot is the type of the subject."""

    INSTRUMENT_LIST = "instrument.list"
    INSTRUMENT_EDIT = "instrument.edit"
    INSTRUMENT_REMOVE = "instrument.remove"
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
    LIST_EXPORT = "list.export"
    USER_ADD = "user.add"
    USER_CHANGE = "user.change"
    USER_DELETE = "user.delete"
    USER_ENROL = "user.enrol_two_factor"
    USER_RESET = "user.reset_two_factor"


class Entry(msgspec.Struct, frozen=True):
    """A new audit entry. `before` and `after` contain the changed attributes of the subject."""

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


# SQL expression for the statement that saves the action. It must be the last part of the transaction, because it locks
# the head of the chain until the end. Returns the number of entries, or null for none.
RECORD = "exchange_record_audit(%(audit)s::json)"


def encode_entries(entries: Iterable[Entry]) -> str | None:
    """Encode entries for `RECORD`. Amounts become strings, so that no reader converts them to binary floats."""
    entries = list(entries)
    return _ENCODER.encode(entries).decode() if entries else None


def record(*entries: Entry) -> None:
    """Write entries. Must be the last statement of the action's transaction."""
    assert connection.in_atomic_block
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {RECORD}", {"audit": encode_entries(entries)})


def address_of(environ: Mapping[str, Any]) -> str:
    """Return the client's address: the socket's, or the one that the outermost trusted proxy reports."""
    proxies: int = settings.TRUSTED_PROXIES
    if not proxies and not _FORWARDED.isdisjoint(environ):
        _warn_of_untrusted_proxy()
    forwarded: list[str] = environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
    reported = forwarded[-proxies].strip() if len(forwarded) >= proxies > 0 else ""
    address = reported or str(environ.get("REMOTE_ADDR", ""))
    return address[:ADDRESS_LENGTH]  # the client can set it if there are fewer proxies than TRUSTED_PROXIES


@cache
def _warn_of_untrusted_proxy() -> None:
    """Warn once per process that clients may share an address."""
    _log.warning(
        "proxy_not_trusted",
        detail="A request was forwarded, but TRUSTED_PROXIES is 0. If this server is behind a proxy, all clients share"
        " the proxy's address, and with it the limits of logins and of requests without a valid key.",
    )


def network_of(environ: Mapping[str, Any]) -> str | None:
    """Return the client's IPv4 address or IPv6 network, of which a client can use every address."""
    try:
        found = ip_address(address_of(environ).strip("[]"))
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or IPv6Network((found, IPV6_PREFIX), strict=False).network_address
    return str(found)


def _encode_decimal(value: object) -> object:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(type(value))


_ENCODER = msgspec.json.Encoder(enc_hook=_encode_decimal)  # Decimals become strings by default
