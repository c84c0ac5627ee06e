"""Middleware of both servers: every request gets one id and one log line.

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
MAX_PATH_LOGGED = 200
STARTED = "exchange.started"  # in the environ: when the request came in, by `time.perf_counter`
REQUEST_ID = "exchange.request_id"  # there, too

Environ = dict[str, Any]  # of WSGI

# Its messages are lines of JSON already, which `config.logs` passes on: the way through structlog takes 100 µs.
_log = logging.getLogger("exchange.requests")


class RequestLog:
    """Gives each request its id, says it in the answer and in every log line, and logs what became of it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request.META.setdefault(STARTED, time.perf_counter())
        request_id = request_id_of(request.META)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        response = self.get_response(request)
        response["X-Request-Id"] = request_id
        self.log(request, response.status_code)
        return response

    def log(self, request: HttpRequest, status: int) -> None:
        """Log every request: people have no key, and a page costs its sender more than a line."""
        write_line(request.META, request.path, status, None)


class ApiRequestLog(RequestLog):
    """The same for the API, where requests without a valid key may come in log_throttle."""

    def log(self, request: HttpRequest, status: int) -> None:
        log_request(request.META, request.path, status, getattr(request, "auth", None))


def request_id_of(environ: Environ) -> str:
    """The id that the client gave the request, if it is one, or a new one; whoever asks again is told the same."""
    known: str | None = environ.get(REQUEST_ID)
    if known is None:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        known = environ[REQUEST_ID] = given if _ID.fullmatch(given) else str(uuid_utils.uuid7())
    return known


def actor_of(principal: Principal, environ: Environ) -> Actor:
    """Who acts by a request with a key, as the audit tells it."""
    return Actor(ActorKind.KEY, principal.key_prefix, address_of(environ), request_id_of(environ))


def log_request(environ: Environ, path: str, status: int, principal: Principal | None) -> None:
    """Log a request to the API that was just answered, unless it is one of a flood without a valid key."""
    if principal is not None or _should_log(environ, status):
        write_line(environ, path, status, principal)


def write_line(environ: Environ, path: str, status: int, principal: Principal | None) -> None:
    """Write the log line of a request that was just answered."""
    if not _log.isEnabledFor(logging.INFO):
        return
    told = {
        "method": environ["REQUEST_METHOD"],
        "path": _KEY.sub("brs_…", path[:MAX_PATH_LOGGED]),
        "status": status,
        "milliseconds": round((time.perf_counter() - environ[STARTED]) * 1000, 1),
        "key": principal.key_prefix if principal else None,
        "broker": principal.broker_id if principal else None,
        "event": "request",
        "request_id": request_id_of(environ),
        "logger": _log.name,
        "level": "info",
        "timestamp": datetime.now(UTC),
    }
    line = encode_json(told).decode()
    _write(line if line.isascii() else json.dumps(msgspec.to_builtins(told)))  # escaped: some characters end a line


def _should_log(environ: Environ, status: int) -> bool:
    return log_throttle.should_log(network_of(environ) or "", status)


def _write(line: str) -> None:
    """Log it; who called is in no line, and finding out takes longer than the rest."""
    _log.handle(_log.makeRecord(_log.name, logging.INFO, __file__, 0, line, (), None))
