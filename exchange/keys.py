"""Who is asking: bearer keys, shown once, kept as a public prefix and the SHA-256 of a 256-bit secret."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone

from exchange.errors import Unauthenticated
from exchange.models import ApiKey
from exchange.rules import Scope

_KEY = re.compile(r"brs_([0-9a-f]{12})_([0-9a-f]{64})")
_NO_HASH = bytes(32)  # what an unknown prefix is compared with, so that it takes as long as a known one


@dataclass(frozen=True, slots=True)
class Principal:
    """On whose behalf a request acts, and what it may do; an operator has no `broker_id`."""

    broker_id: str | None
    scopes: frozenset[Scope]
    key_prefix: str

    @property
    def is_operator(self) -> bool:
        return Scope.OPERATOR in self.scopes

    def may(self, scope: Scope) -> bool:
        """Whether this key has the scope: every scope includes `read`."""
        return scope in self.scopes or scope is Scope.READ


def new_key() -> tuple[str, str, bytes]:
    """A fresh key, with the prefix and the hash that are stored of it."""
    prefix, secret = secrets.token_hex(6), secrets.token_hex(32)
    return f"brs_{prefix}_{secret}", prefix, _hash(secret)


def principal_of_key(key: str) -> Principal:
    """Whom this key stands for, or `Unauthenticated`."""
    parts = _KEY.fullmatch(key)
    if parts is None:
        raise Unauthenticated
    prefix, secret = parts.groups()
    stored = ApiKey.objects.filter(prefix=prefix).only("secret_hash", "broker", "scopes", "expires_at", "revoked_at")
    api_key = stored.first()
    expected = bytes(api_key.secret_hash) if api_key else _NO_HASH
    if not hmac.compare_digest(_hash(secret), expected) or api_key is None or not _is_alive(api_key, timezone.now()):
        raise Unauthenticated
    return Principal(api_key.broker_id, frozenset(map(Scope, api_key.scopes)), prefix)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _is_alive(api_key: ApiKey, now: datetime) -> bool:
    return api_key.revoked_at is None and (api_key.expires_at is None or now < api_key.expires_at)
