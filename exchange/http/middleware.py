"""Middleware of both servers: one id and one log line per request.

The API throttles the log lines of requests without a valid key (`exchange.http.log_throttle`). Of a request's URL, only
the path is logged, with keys masked.
"""

import json
import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
import uuid_utils
from django.http import HttpRequest, HttpResponse

from exchange.audit import Actor, ActorKind, address_of, network_of
from exchange.http import log_throttle
from exchange.json_codec import encode_json
from exchange.keys import Principal

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"brs_\w+")
MAX_METHOD_LOGGED, MAX_PATH_LOGGED = 20, 200
STARTED_AT = "exchange.started"  # environ key: arrival of the request, by `time.perf_counter`
REQUEST_ID = "exchange.request_id"  # environ key

Environ = dict[str, Any]  # WSGI environ

# Its messages are complete JSON lines, which `config.logs` writes unchanged: structlog would take 100 µs per line.
_log = logging.getLogger("exchange.requests")


class RequestLogMiddleware:
    """Middleware that adds the request id to the response and to all log lines, and logs the request."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request.META.setdefault(STARTED_AT, time.perf_counter())
        request_id = request_id_of(request.META)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        response = self.get_response(request)
        response["X-Request-Id"] = request_id
        self.log(request, response.status_code)
        return response

    def log(self, request: HttpRequest, status: int) -> None:
        """Log every request. The back office has no keys, so its log lines are not throttled."""
        write_log_line(request.META, request.path, status, None)


class ApiRequestLogMiddleware(RequestLogMiddleware):
    """Variant for the API, which throttles the log lines of requests without a valid key."""

    def log(self, request: HttpRequest, status: int) -> None:
        log_request(request.META, request.path, status, getattr(request, "auth", None))


def request_id_of(environ: Environ) -> str:
    """Return the request's id: the client's if it is well-formed, otherwise a new one, kept in the environ."""
    request_id: str | None = environ.get(REQUEST_ID)
    if request_id is None:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = environ[REQUEST_ID] = given if _ID.fullmatch(given) else str(uuid_utils.uuid7())
    return request_id


def actor_of(principal: Principal, environ: Environ) -> Actor:
    """Return the key of a request as the audit log records it."""
    return Actor(ActorKind.KEY, principal.key_prefix, address_of(environ), request_id_of(environ))


def log_request(environ: Environ, path: str, status: int, principal: Principal | None) -> None:
    """Log a completed API request, unless it has no valid key and its log lines are throttled."""
    if principal is not None or _should_log(environ, status):
        write_log_line(environ, path, status, principal)


def write_log_line(environ: Environ, path: str, status: int, principal: Principal | None) -> None:
    """Write the log line of a completed request."""
    if not _log.isEnabledFor(logging.INFO):
        return
    entry = {
        "method": environ["REQUEST_METHOD"][:MAX_METHOD_LOGGED],
        "path": _KEY.sub("brs_…", path[:MAX_PATH_LOGGED]),
        "status": status,
        "milliseconds": round((time.perf_counter() - environ[STARTED_AT]) * 1000, 1),
        "key": principal.key_prefix if principal else None,
        "broker": principal.broker_id if principal else None,
        "event": "request",
        "request_id": request_id_of(environ),
        "logger": _log.name,
        "level": "info",
        "timestamp": datetime.now(UTC),
    }
    line = encode_json(entry).decode()
    # Other lines are escaped, because some Unicode characters end a line.
    _write(line if line.isascii() else json.dumps(msgspec.to_builtins(entry)))


def _should_log(environ: Environ, status: int) -> bool:
    return log_throttle.should_log(network_of(environ) or "", status)


def _write(line: str) -> None:
    """Log a line without looking up the caller, which would take longer than the rest."""
    _log.handle(_log.makeRecord(_log.name, logging.INFO, __file__, 0, line, (), None))
