"""The rate limit of a key. `exchange.http.limits` keeps the bucket; a view set's `cost` is taken from it."""

import time
from typing import Any

from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from exchange.errors import RateLimited
from exchange.http import limits


class KeyThrottle(BaseThrottle):
    """The limit of cancels for the view set's `cancels`: a broker that has used up the other can still cancel."""

    def allow_request(self, request: Request, view: Any) -> bool:
        """Take the tokens and add the limit's headers to the response, or reject the request."""
        limit = limits.cancels() if view.action in view.cancels else limits.requests()
        allowance = limit.take(view.principal.key_prefix, view.cost, time.monotonic_ns(), held=view.held)
        view.headers |= limit.headers(allowance)
        if not allowance.is_granted:
            raise RateLimited(
                f"This key may send {limit.per_second} {limit.name} a second, and {limit.burst} at once; "
                f"wait {allowance.seconds} s.",
                retry_after_seconds=allowance.seconds,
            )
        return True
