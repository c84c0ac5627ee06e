"""Limits requests without a valid key, by client address, before Django sees them.

Requests with a key that was valid when this process last looked it up are not counted. All others take a token of their
address and return it if the key turns out to be valid. Look-ups of unknown keys take tokens from a separate limit, so
that clients that repeat a wrong key, or send none, cannot use it up.
"""

import time
from typing import NamedTuple

from exchange import keys
from exchange.audit import network_of
from exchange.errors import RateLimited
from exchange.http import rate_limits
from exchange.http.authentication import bearer_key
from exchange.http.middleware import Environ
from exchange.http.rate_limits import RateLimit

_NOT_COUNTED = "/static/"  # a page loads many files
_REJECTED = "gateway.is_rejected"  # in the environ of a request that was rejected here


class Token(NamedTuple):
    """A token that a request without a valid key has taken."""

    limit: RateLimit
    address: str
    key: str

    def return_if_valid(self) -> None:
        """Return the token if the key has been looked up and is valid."""
        if self.key and keys.was_valid(self.key):
            self.limit.return_token(self.address)


def admit(environ: Environ) -> Token | None:
    """Take a token for a request that needs one. Raise `RateLimited` if its address has none left."""
    key = bearer_key(environ) or ""
    if keys.was_valid(key) or environ["PATH_INFO"].startswith(_NOT_COUNTED):
        return None
    limit = rate_limits.lookups() if keys.needs_lookup(key) else rate_limits.unknown()
    token = Token(limit, network_of(environ) or "", key)
    allowance = limit.take(token.address, 1, time.monotonic_ns())
    if allowance.is_granted:
        return token
    environ[_REJECTED] = True
    raise RateLimited(
        f"Too many requests without a valid key came from this address; wait {allowance.seconds} s.",
        retry_after_seconds=allowance.seconds,
    )


def is_rejected(environ: Environ) -> bool:
    """True if the request was rejected here. Such requests are not counted as rejected orders."""
    return _REJECTED in environ
