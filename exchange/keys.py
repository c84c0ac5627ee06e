"""Who is asking: bearer keys, shown once, kept as a public prefix and the SHA-256 of a 256-bit secret.

Keys are believed for `KEY_CACHE_SECONDS`, by the SHA-256 of the whole key: no query per request, and a key that
another process revokes is dead after that time. Those in use are asked about again before it ends, all in one query.
A key that is none, or is revoked, is refused for `KEY_REFUSAL_SECONDS` without another query. When a key was last used
is written down later, with others.
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


class _Known(NamedTuple):
    """A key that was not revoked when it was looked up, and until when that is believed."""

    principal: Principal
    expires_at: datetime | None
    believed_until: float


class _KnownKeys:
    """The keys of a moment ago. Reading takes no lock: one look into a dictionary is atomic."""

    def __init__(self) -> None:
        self.by_digest: dict[bytes, _Known] = {}  # the one looked up last comes last
        self.refused_until: dict[bytes, float] = {}
        self.used_at: dict[bytes, float] = {}
        self.uses: dict[str, float] = {}  # by prefix, since they were last written down
        self.forgotten = 0
        self._lock = Lock()

    def remember(self, digest: bytes, known: _Known, forgotten: int) -> None:
        """Keep what was looked up when so many had been forgotten, unless it may have been revoked since."""
        with self._lock:
            if self.forgotten != forgotten:
                return
            self.by_digest.pop(digest, None)
            self.by_digest[digest] = known
            if len(self.by_digest) > settings.KEY_CACHE_SIZE:
                del self.by_digest[next(iter(self.by_digest))]

    def refuse(self, digest: bytes, until: float) -> None:
        """Remember that this is no valid key, even if it was one."""
        with self._lock:
            self.by_digest.pop(digest, None)
            self.refused_until.pop(digest, None)
            self.refused_until[digest] = until
            if len(self.refused_until) > settings.KEY_REFUSALS_REMEMBERED:
                del self.refused_until[next(iter(self.refused_until))]

    def is_refused(self, digest: bytes, now: float) -> bool:
        return now < self.refused_until.get(digest, now)

    def note_use(self, digest: bytes, known: _Known, now: float) -> None:
        self.used_at[digest] = self.uses[known.principal.key_prefix] = now

    def in_use(self, since: float) -> dict[bytes, str]:
        """The prefixes of the remembered keys that were used since then; when others were is forgotten."""
        prefixes = {}
        for digest, used_at in list(self.used_at.items()):
            known = self.by_digest.get(digest)
            if known is None or used_at < since:
                self.used_at.pop(digest, None)
            else:
                prefixes[digest] = known.principal.key_prefix
        return prefixes

    def renew(self, digests: Iterable[bytes], alive: Container[str], until: float) -> None:
        """Go on believing those of these keys that are alive, but for those that have been forgotten meanwhile."""
        with self._lock:
            for digest in digests:
                known = self.by_digest.get(digest)
                if known is not None and known.principal.key_prefix in alive:
                    self.by_digest[digest] = known._replace(believed_until=until)

    def forget(self, prefix: str) -> None:
        with self._lock:
            self.forgotten += 1
            for digest in [each for each, known in self.by_digest.items() if known.principal.key_prefix == prefix]:
                del self.by_digest[digest]


_known_keys = _KnownKeys()


def new_key() -> tuple[str, str, bytes]:
    """A fresh key, with the prefix and the hash that are stored of it."""
    prefix, secret = secrets.token_hex(6), secrets.token_hex(32)
    return f"brs_{prefix}_{secret}", prefix, _hash(secret)


def principal_of_key(key: str, clock: Callable[[], float] = time.monotonic) -> Principal:
    """Whom this key stands for, or `Unauthenticated`."""
    if not _has_the_form(key):
        raise Unauthenticated
    digest = _hash(key)  # nobody can choose it: how long the look-up takes tells nothing about the keys there are
    known = _known_keys.by_digest.get(digest)
    if known is None or clock() >= known.believed_until:
        known = _look_up(key, digest, clock)
    if _has_expired(known):
        raise Unauthenticated
    _known_keys.note_use(digest, known, clock())
    return known.principal


def known_principal(key: str, clock: Callable[[], float] = time.monotonic) -> Principal | None:
    """Whom this key stands for, if that was looked up a moment ago."""
    digest = _hash(key) if key.isascii() else b""
    known = _known_keys.by_digest.get(digest)
    if known is None or (now := clock()) >= known.believed_until or _has_expired(known):
        return None
    _known_keys.note_use(digest, known, now)
    return known.principal


def was_valid(key: str) -> bool:
    """True if the key was valid when this process last looked it up, however long ago, and has not expired since."""
    known = _known_keys.by_digest.get(_hash(key)) if _has_the_form(key) else None
    return known is not None and not _has_expired(known)


def needs_look_up(key: str, clock: Callable[[], float] = time.monotonic) -> bool:
    """True if only the database can tell whether this text is a valid key."""
    return _has_the_form(key) and bool(_KEY.fullmatch(key)) and not _known_keys.is_refused(_hash(key), clock())


def renew_known(clock: Callable[[], float] = time.monotonic) -> None:
    """Ask about all keys in use in one query, and go on believing those that are alive.

    Else each would be asked about by itself when its time is over: with a thousand brokers that is every other request.
    """
    now = clock()
    prefixes = _known_keys.in_use(since=now - settings.KEY_RENEWAL_SECONDS)
    if not prefixes:
        return
    asked = ApiKey.objects.filter(prefix__in=list(prefixes.values()), revoked_at=None)
    try:
        alive = set(asked.values_list("prefix", flat=True))
    except DatabaseFailure as error:  # each is asked about by itself, then
        _log.warning("keys_not_renewed", error=str(error))
    else:
        _known_keys.renew(prefixes, alive, until=now + settings.KEY_CACHE_SECONDS)


def write_uses(clock: Callable[[], float] = time.monotonic) -> None:
    """Write down, to the minute, when the keys were used that were used since the last time: one statement for all."""
    uses, _known_keys.uses = _known_keys.uses, {}
    now, used = clock(), list(uses.items())
    if not used:
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute(_USED, [[prefix for prefix, _ in used], [now - used_at for _, used_at in used]])
    except DatabaseFailure:
        _known_keys.uses = uses | _known_keys.uses
        raise


def forget_key(prefix: str) -> None:
    """Believe nothing about this key any more: it was revoked, and that is committed."""
    _known_keys.forget(prefix)


def _look_up(key: str, digest: bytes, clock: Callable[[], float]) -> _Known:
    """Ask the database about a key and remember it, as of the moment before it was asked."""
    parts = _KEY.fullmatch(key)
    if parts is None or _known_keys.is_refused(digest, clock()):
        raise Unauthenticated
    prefix, secret = parts.groups()
    forgotten, asked_at = _known_keys.forgotten, clock()
    stored = ApiKey.objects.filter(prefix=prefix).only("secret_hash", "broker", "scopes", "expires_at", "revoked_at")
    api_key = stored.first()
    expected = bytes(api_key.secret_hash) if api_key else _NO_HASH
    if not hmac.compare_digest(_hash(secret), expected) or api_key is None or api_key.revoked_at is not None:
        _known_keys.refuse(digest, until=asked_at + settings.KEY_REFUSAL_SECONDS)
        raise Unauthenticated
    principal = Principal(api_key.broker_id, frozenset(map(Scope, api_key.scopes)), prefix)
    known = _Known(principal, api_key.expires_at, asked_at + settings.KEY_CACHE_SECONDS)
    _known_keys.remember(digest, known, forgotten)
    return known


def _has_the_form(key: str) -> bool:
    """True if the text is as long as a key and ASCII: cheap to tell, unlike the rest."""
    return len(key) == _KEY_LENGTH and key.isascii()


def _has_expired(known: _Known) -> bool:
    return known.expires_at is not None and timezone.now() >= known.expires_at


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


# Locked in one order: two web processes often write down the use of the same keys.
_USED = """
WITH used AS (
  SELECT prefix, date_trunc('minute', statement_timestamp() - seconds * interval '1 second') AS at
  FROM unnest(%s::text[], %s::float8[]) AS row(prefix, seconds)
), locked AS MATERIALIZED (
  SELECT prefix, at FROM exchange_apikey key JOIN used USING (prefix)
  WHERE key.last_used_at IS NULL OR key.last_used_at < at
  ORDER BY prefix FOR NO KEY UPDATE OF key
)
UPDATE exchange_apikey key SET last_used_at = at FROM locked WHERE key.prefix = locked.prefix
"""
