"""One id and one log line per request. Keys never get into a log: the path is all that is told of a request."""

import re
import time
from collections.abc import Callable

import structlog
import uuid_utils
from django.http import HttpRequest, HttpResponse

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"brs_\w+")
MAX_PATH_LOGGED = 200

_log = structlog.get_logger("exchange.requests")


class RequestLog:
    """Gives each request its id, says it in the answer and in every log line, and logs what became of it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        started = time.perf_counter()
        given = request.META.get("HTTP_X_REQUEST_ID", "")
        request_id = given if _ID.fullmatch(given) else str(uuid_utils.uuid7())
        request.request_id = request_id  # type: ignore[attr-defined]  # problems repeat it
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        response = self.get_response(request)
        response["X-Request-Id"] = request_id
        principal = getattr(request, "auth", None)
        _log.info(
            "request",
            method=request.method,
            path=_KEY.sub("brs_…", request.path[:MAX_PATH_LOGGED]),
            status=response.status_code,
            milliseconds=round((time.perf_counter() - started) * 1000, 1),
            key=principal.key_prefix if principal else None,
            broker=principal.broker_id if principal else None,
        )
        return response
