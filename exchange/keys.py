"""API keys: bearer tokens, stored as a public prefix and the SHA-256 of a 256-bit secret.

Valid keys are cached for `KEY_CACHE_SECONDS`, by the SHA-256 of the whole key: a request needs no query, and a key that
another process revokes stops working after that time. Before it ends, the keys in use are queried again, all at once.
Invalid and revoked keys are rejected for `INVALID_KEY_CACHE_SECONDS` without another query. The times of last use are
saved periodically, in one statement.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import NamedTuple

import structlog
from django.conf import settings
from django.db import Error as DatabaseFailure
from django.db import connection
from django.utils import timezone

from exchange.errors import Unauthenticated
from exchange.models import ApiKey
from exchange.rules import Scope

_KEY = re.compile(r"brs_([0-9a-f]{12})_([0-9a-f]{64})")
_KEY_LENGTH = len("brs_") + 12 + len("_") + 64
_log = structlog.get_logger(__name__)
_NO_HASH = bytes(32)  # compared if the prefix is unknown, so that the response takes the same time


@dataclass(frozen=True, slots=True)
class Principal:
    """The broker and scopes of a key. An operator has no `broker_id`."""

    broker_id: str | None
    scopes: frozenset[Scope]
    key_prefix: str

    @property
    def is_operator(self) -> bool:
        return Scope.OPERATOR in self.scopes

    def may(self, scope: Scope) -> bool:
        """True if this key has the scope. Every scope includes `read`."""
        return scope in self.scopes or scope is Scope.READ


class _CachedKey(NamedTuple):
    """A key that was valid when it was looked up. It is used without another query until `fresh_until`."""

    principal: Principal
    expires_at: datetime | None
    fresh_until: float


class _KeyCache:
    """Cache of valid and rejected keys. Reads take no lock, because a single dictionary lookup is atomic."""

    def __init__(self) -> None:
        self.by_digest: dict[bytes, _CachedKey] = {}  # ordered by lookup, latest last
        self.rejected_until: dict[bytes, float] = {}
        self.used_at: dict[bytes, float] = {}
        self.unsaved_uses: dict[str, float] = {}  # time of last use by prefix
        self.invalidations = 0
        self._lock = Lock()

    def add(self, digest: bytes, cached: _CachedKey, invalidations: int) -> None:
        """Cache a key, unless any key was invalidated since its lookup: it may have been this one."""
        with self._lock:
            if self.invalidations != invalidations:
                return
            self.by_digest.pop(digest, None)
            self.by_digest[digest] = cached
            if len(self.by_digest) > settings.KEY_CACHE_SIZE:
                del self.by_digest[next(iter(self.by_digest))]

    def reject(self, digest: bytes, until: float) -> None:
        """Reject this key until then, also if it was cached as valid."""
        with self._lock:
            self.by_digest.pop(digest, None)
            self.rejected_until.pop(digest, None)
            self.rejected_until[digest] = until
            if len(self.rejected_until) > settings.INVALID_KEY_CACHE_SIZE:
                del self.rejected_until[next(iter(self.rejected_until))]

    def is_rejected(self, digest: bytes, now: float) -> bool:
        return now < self.rejected_until.get(digest, now)

    def record_use(self, digest: bytes, cached: _CachedKey, now: float) -> None:
        self.used_at[digest] = self.unsaved_uses[cached.principal.key_prefix] = now

    def used_since(self, since: float) -> dict[bytes, str]:
        """Return the prefixes of cached keys used since then, and drop the times of use of all others."""
        prefixes = {}
        for digest, used_at in list(self.used_at.items()):
            cached = self.by_digest.get(digest)
            if cached is None or used_at < since:
                self.used_at.pop(digest, None)
            else:
                prefixes[digest] = cached.principal.key_prefix
        return prefixes

    def extend(self, digests: Iterable[bytes], valid: Container[str], until: float) -> None:
        """Extend the keys whose prefix is in `valid`, except those that have left the cache."""
        with self._lock:
            for digest in digests:
                cached = self.by_digest.get(digest)
                if cached is not None and cached.principal.key_prefix in valid:
                    self.by_digest[digest] = cached._replace(fresh_until=until)

    def invalidate(self, prefix: str) -> None:
        with self._lock:
            self.invalidations += 1
            for digest in [each for each, cached in self.by_digest.items() if cached.principal.key_prefix == prefix]:
                del self.by_digest[digest]


_cache = _KeyCache()


def new_key() -> tuple[str, str, bytes]:
    """Generate a key. Returns the key, its prefix and the hash of its secret, of which the last two are stored."""
    prefix, secret = secrets.token_hex(6), secrets.token_hex(32)
    return f"brs_{prefix}_{secret}", prefix, _hash(secret)


def authenticate_key(key: str, clock: Callable[[], float] = time.monotonic) -> Principal:
    """Return the principal of this key, or raise `Unauthenticated`."""
    if not _looks_like_key(key):
        raise Unauthenticated
    digest = _hash(key)  # clients cannot choose it, so the timing of the lookup reveals nothing about existing keys
    cached = _cache.by_digest.get(digest)
    if cached is None or clock() >= cached.fresh_until:
        cached = _look_up(key, digest, clock)
    if _has_expired(cached):
        raise Unauthenticated
    _cache.record_use(digest, cached, clock())
    return cached.principal


def cached_principal(key: str, clock: Callable[[], float] = time.monotonic) -> Principal | None:
    """Return the principal of this key if it is cached, without a query."""
    digest = _hash(key) if key.isascii() else b""
    cached = _cache.by_digest.get(digest)
    if cached is None or (now := clock()) >= cached.fresh_until or _has_expired(cached):
        return None
    _cache.record_use(digest, cached, now)
    return cached.principal


def was_valid(key: str) -> bool:
    """True if the key was valid when this process last looked it up, however long ago, and has not expired since."""
    cached = _cache.by_digest.get(_hash(key)) if _looks_like_key(key) else None
    return cached is not None and not _has_expired(cached)


def needs_lookup(key: str, clock: Callable[[], float] = time.monotonic) -> bool:
    """True if it takes a query to decide whether this text is a valid key."""
    return _looks_like_key(key) and bool(_KEY.fullmatch(key)) and not _cache.is_rejected(_hash(key), clock())


def refresh_cache(clock: Callable[[], float] = time.monotonic) -> None:
    """Extend all keys in use that are still valid, in one query.

    Without this, each key would be looked up again when it expires from the cache: with a thousand brokers, that is
    every other request.
    """
    now = clock()
    prefixes = _cache.used_since(now - settings.KEY_REFRESH_SECONDS)
    if not prefixes:
        return
    unrevoked = ApiKey.objects.filter(prefix__in=list(prefixes.values()), revoked_at=None)
    try:
        valid = set(unrevoked.values_list("prefix", flat=True))
    except DatabaseFailure as error:  # each key is looked up by itself when it expires from the cache
        _log.warning("keys_not_renewed", error=str(error))
    else:
        _cache.extend(prefixes, valid, until=now + settings.KEY_CACHE_SECONDS)


def save_last_used(clock: Callable[[], float] = time.monotonic) -> None:
    """Save the times of last use since the previous call in one statement, for each key at most once a minute."""
    uses, _cache.unsaved_uses = _cache.unsaved_uses, {}
    now, used = clock(), list(uses.items())
    if not used:
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute(_SAVE_LAST_USED, [[prefix for prefix, _ in used], [now - used_at for _, used_at in used]])
    except DatabaseFailure:
        _cache.unsaved_uses = uses | _cache.unsaved_uses
        raise


def invalidate_key(prefix: str) -> None:
    """Drop a key from the cache after its revocation was committed."""
    _cache.invalidate(prefix)


def _look_up(key: str, digest: bytes, clock: Callable[[], float]) -> _CachedKey:
    """Look up a key and cache the result, as of the moment before the query."""
    parts = _KEY.fullmatch(key)
    if parts is None or _cache.is_rejected(digest, clock()):
        raise Unauthenticated
    prefix, secret = parts.groups()
    invalidations, queried_at = _cache.invalidations, clock()
    stored = ApiKey.objects.filter(prefix=prefix).only("secret_hash", "broker", "scopes", "expires_at", "revoked_at")
    api_key = stored.first()
    expected = bytes(api_key.secret_hash) if api_key else _NO_HASH
    if not hmac.compare_digest(_hash(secret), expected) or api_key is None or api_key.revoked_at is not None:
        _cache.reject(digest, until=queried_at + settings.INVALID_KEY_CACHE_SECONDS)
        raise Unauthenticated
    principal = Principal(api_key.broker_id, frozenset(map(Scope, api_key.scopes)), prefix)
    cached = _CachedKey(principal, api_key.expires_at, queried_at + settings.KEY_CACHE_SECONDS)
    _cache.add(digest, cached, invalidations)
    return cached


def _looks_like_key(key: str) -> bool:
    """True if the text has the length of a key and is ASCII: a cheap check before the pattern."""
    return len(key) == _KEY_LENGTH and key.isascii()


def _has_expired(cached: _CachedKey) -> bool:
    return cached.expires_at is not None and timezone.now() >= cached.expires_at


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


# Rows are locked in the order of their prefix, because web processes often save the use of the same keys.
_SAVE_LAST_USED = """
WITH used AS (
  SELECT prefix, statement_timestamp() - seconds * interval '1 second' AS at
  FROM unnest(%s::text[], %s::float8[]) AS row(prefix, seconds)
), locked AS MATERIALIZED (
  SELECT prefix, at FROM exchange_apikey key JOIN used USING (prefix)
  WHERE key.last_used_at IS NULL OR key.last_used_at < date_trunc('minute', at)
  ORDER BY prefix FOR NO KEY UPDATE OF key
)
UPDATE exchange_apikey key SET last_used_at = at FROM locked WHERE key.prefix = locked.prefix
"""
