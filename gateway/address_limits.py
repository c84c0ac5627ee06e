"""Limits requests without a valid key, by client address, before Django sees them.

A key that was valid when this process last looked it up is not counted, whatever others do at its address. Any other
request takes a token of its address, and gives it back if its key turns out to be valid. Keys that have to be looked up
have tokens of their own: a client that repeats a wrong key, or has none, cannot use those up.
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

_NOT_COUNTED = "/static/"  # a page has many files
_REFUSED = "gateway.unknown"  # in the environ of a request that was refused here


class Token(NamedTuple):
    """What a request without a valid key takes."""

    limit: RateLimit
    address: str
    key: str

    def give_back_if_valid(self) -> None:
        """Return it if the key has been looked up and is valid."""
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
    environ[_REFUSED] = True
    raise RateLimited(
        f"Too many requests without a valid key came from this address; wait {allowance.seconds} s.",
        retry_after_seconds=allowance.seconds,
    )


def is_refused(environ: Environ) -> bool:
    """True if the request was refused here: it counts for nobody."""
    return _REFUSED in environ
