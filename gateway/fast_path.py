"""The fast path: executes requests in their usual form without Django's handler, middleware, URL map and views.

Those cost several times as much as the order itself. A request that is unusual, or that must be rejected before it is
executed, takes the full path, which makes all checks and words all errors. Until then nothing was executed or counted.
"""

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.security import SecurityMiddleware

from exchange.http.middleware import Environ, log_request, request_id_of
from exchange.http.problems import as_exchange_error, problem_response
from exchange.http.rate_limits import RateLimit
from exchange.http.responses import JSON, RenderedResponse
from exchange.keys import Principal, cached_principal

_JSON_TYPES = {JSON, f"{JSON}; charset=utf-8"}  # the defaults of HTTP clients
_SCHEME = "Bearer "
_LENGTH = re.compile(r"[0-9]{1,9}")
_CODINGS = {"HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_ENCODING"}


@dataclass(frozen=True, slots=True)
class FastRequest:
    """A validated request, ready to be executed once its key's rate limit allows it."""

    principal: Principal
    limit: RateLimit
    execute: Callable[[], Awaitable[RenderedResponse]]


def principal_of(environ: Mapping[str, Any]) -> Principal | None:
    """The principal of a cached key in a well-formed Authorization header, or None."""
    authorization: str = environ.get("HTTP_AUTHORIZATION", "")
    return cached_principal(authorization[len(_SCHEME) :]) if authorization.startswith(_SCHEME) else None


def body_of(environ: Environ) -> bytes | None:
    """A JSON body with a Content-Length that counts as one request, or None. It can be read again."""
    length = environ.get("CONTENT_LENGTH", "")
    if environ.get("CONTENT_TYPE") not in _JSON_TYPES or not environ.keys().isdisjoint(_CODINGS):
        return None
    if not _LENGTH.fullmatch(length) or not 0 < int(length) <= settings.RATE_LIMIT_BYTES_PER_REQUEST:
        return None
    try:
        body: bytes = environ["wsgi.input"].read()
    except OSError:
        return None
    environ["wsgi.input"].seek(0)
    return body if len(body) == int(length) else None


async def run(request: FastRequest, environ: Environ) -> RenderedResponse | None:
    """Execute the request. None, without executing it, if its key has used up its rate limit."""
    allowance = request.limit.take(request.principal.key_prefix, 1, time.monotonic_ns())
    if not allowance.is_granted:
        return None
    request_id = request_id_of(environ)
    structlog.contextvars.bind_contextvars(request_id=request_id)
    try:
        response = await request.execute()
    except Exception as exception:
        response = problem_response(as_exchange_error(exception), request_id)
    return finish(environ, response, request.principal, request.limit.headers(allowance))


def finish(
    environ: Environ, response: RenderedResponse, principal: Principal | None = None, headers: Mapping[str, str] = {}
) -> RenderedResponse:
    """Log the request and return the response with all headers."""
    log_request(environ, environ["PATH_INFO"], response.status, principal)
    all_headers = {**_COMMON_HEADERS, **response.headers, **headers, "X-Request-Id": request_id_of(environ)}
    return RenderedResponse(response.status, all_headers, response.content)


def _middleware_headers() -> dict[str, str]:
    """The headers that Django's middleware adds to every response."""
    response = HttpResponse()
    del response["Content-Type"]
    for middleware in (SecurityMiddleware, XFrameOptionsMiddleware):
        middleware(lambda _: response).process_response(HttpRequest(), response)
    return dict(response.items())


_COMMON_HEADERS = _middleware_headers()
