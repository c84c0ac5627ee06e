"""The rate limit of a key: a DRF throttle for view sets, and a middleware for everything else."""

import time
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from exchange.http import rate_limits
from exchange.http.admission import is_health_check
from exchange.http.authentication import bearer_key
from exchange.http.middleware import request_id_of
from exchange.http.problems import problem_response
from exchange.keys import cached_principal


class KeyThrottle(BaseThrottle):
    """Applies the limit of cancels to the view set's `cancels`, and the limit of requests to all other actions."""

    def allow_request(self, request: Request, view: Any) -> bool:
        """Take the view set's `cost` and add the limit's headers to the response, or reject the request."""
        limit = rate_limits.cancels() if view.action in view.cancels else rate_limits.requests()
        allowance = limit.take(
            view.principal.key_prefix, view.cost, time.monotonic_ns(), already_taken=view.already_taken
        )
        view.headers |= limit.headers(allowance)
        if not allowance.is_granted:
            raise limit.rejection(allowance)
        return True


def limit_other_requests(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware that applies the limit of requests where no throttle did: unknown paths, documents, broken bodies.

    It counts requests with a cached valid key; the gateway counts all others by address.
    """

    def respond(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if "RateLimit" in response or is_health_check(request.META):
            return response
        principal = cached_principal(bearer_key(request.META) or "")
        if principal is None:
            return response
        limit = rate_limits.requests()
        allowance = limit.take(principal.key_prefix, 1, time.monotonic_ns())
        if not allowance.is_granted:
            response = problem_response(limit.rejection(allowance), request_id_of(request.META)).as_django()
        for name, value in limit.headers(allowance).items():
            response[name] = value
        return response

    return respond
