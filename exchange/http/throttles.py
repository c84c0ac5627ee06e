"""DRF throttle for the rate limit of a key: takes a view set's `cost` from its bucket (`exchange.http.rate_limits`)."""

import time
from typing import Any

from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from exchange.errors import RateLimited
from exchange.http import rate_limits


class KeyThrottle(BaseThrottle):
    """Applies the limit of cancels to the view set's `cancels`, and the limit of requests to all other actions."""

    def allow_request(self, request: Request, view: Any) -> bool:
        """Take the tokens and add the limit's headers to the response, or reject the request."""
        limit = rate_limits.cancels() if view.action in view.cancels else rate_limits.requests()
        allowance = limit.take(
            view.principal.key_prefix, view.cost, time.monotonic_ns(), already_taken=view.already_taken
        )
        view.headers |= limit.headers(allowance)
        if not allowance.is_granted:
            raise RateLimited(
                f"This key may send {limit.per_second} {limit.name} a second, and {limit.burst} at once; "
                f"wait {allowance.seconds} s.",
                retry_after_seconds=allowance.seconds,
            )
        return True
