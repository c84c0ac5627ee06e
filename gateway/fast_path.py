"""The short way: what is asked in the one usual form is done past Django's handler, middleware, URL map and views.

Those cost several times what is done for an order. Whatever is not certain here, and whatever is to be refused before
anything is carried out, is left to the long way: there all is checked, and every refusal is worded. Until then nothing
was done and nothing was counted.
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

_JSON_TYPES = {JSON, f"{JSON}; charset=utf-8"}  # what clients send that nobody told what to send
_SCHEME = "Bearer "
_LENGTH = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class FastRequest:
    """A request that may be carried out as it stands, once its key's limit has room for it."""

    principal: Principal
    limit: RateLimit
    execute: Callable[[], Awaitable[RenderedResponse]]


def principal_of(environ: Mapping[str, Any]) -> Principal | None:
    """Who asks, if the key is the one header it should be and was looked up a moment ago."""
    authorization: str = environ.get("HTTP_AUTHORIZATION", "")
    return cached_principal(authorization[len(_SCHEME) :]) if authorization.startswith(_SCHEME) else None


def body_of(environ: Environ) -> bytes | None:
    """The body of a POST if it is JSON, of a length that was told and counts as one request; it can be read again."""
    length = environ.get("CONTENT_LENGTH", "")
    if environ.get("CONTENT_TYPE") not in _JSON_TYPES or "HTTP_TRANSFER_ENCODING" in environ:
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
    """Carry it out; None, and nothing was done, when its key has used up its limit."""
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
    """The response with the headers of every response and its own, once it is logged."""
    log_request(environ, environ["PATH_INFO"], response.status, principal)
    all_headers = {**_COMMON_HEADERS, **response.headers, **headers, "X-Request-Id": request_id_of(environ)}
    return response._replace(headers=all_headers)


def _middleware_headers() -> dict[str, str]:
    """The headers that Django's middleware gives every answer."""
    response = HttpResponse()
    del response["Content-Type"]
    for middleware in (SecurityMiddleware, XFrameOptionsMiddleware):
        middleware(lambda _: response).process_response(HttpRequest(), response)
    return dict(response.items())


_COMMON_HEADERS = _middleware_headers()
