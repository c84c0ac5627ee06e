"""What every request passes, and what only pages for browsers need.

Every request gets one id and one log line, but for floods without a valid key (`exchange.http.floods`). Keys
never get into a log: the path is all that is told of a request.
"""

import json
import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import structlog
import uuid_utils
from axes.middleware import AxesMiddleware
from csp.middleware import CSPMiddleware
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.http.response import HttpResponseBase
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.cache import add_never_cache_headers
from django.utils.deprecation import MiddlewareMixin
from django_otp.middleware import OTPMiddleware

from exchange.audit import Actor, ActorKind, address_of, network_of
from exchange.http import floods
from exchange.keys import Principal
from exchange.wire import encoded

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"brs_\w+")
MAX_PATH_LOGGED = 200
_ALWAYS_LOGGED = "/admin/"  # what people do there has no key, and logins have limits of their own
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
        log_request(request.META, request.path, response.status_code, getattr(request, "auth", None))
        return response


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
    """The line of a request that was just answered, unless it is one of a flood without a valid key."""
    if not _log.isEnabledFor(logging.INFO):
        return
    if principal is None and not path.startswith(_ALWAYS_LOGGED) and not _has_its_line(environ, status):
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
    line = encoded(told).decode()
    _write(line if line.isascii() else json.dumps(msgspec.to_builtins(told)))  # escaped: some characters end a line


def _has_its_line(environ: Environ, status: int) -> bool:
    return floods.has_its_line(network_of(environ) or "", status)


def _write(line: str) -> None:
    """Log it; who called is in no line, and finding out takes longer than the rest."""
    _log.handle(_log.makeRecord(_log.name, logging.INFO, __file__, 0, line, (), None))


# --- Pages for browsers ---------------------------------------------------------------------------------------------


class _ForBrowsers:
    """Lets a middleware of Django work on these pages only: the API knows no cookies and no users, and pays for none.

    Django's checks look for the classes themselves in MIDDLEWARE, or for subclasses such as these.
    """

    paths: ClassVar[tuple[str, ...]] = ("/admin/",)
    if TYPE_CHECKING:
        get_response: Any  # the middleware's

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        work = super().__call__ if self.is_for(request) else self.get_response  # type: ignore[misc]  # as above
        answer: HttpResponseBase = work(request)
        return answer

    def is_for(self, request: HttpRequest) -> bool:
        return request.path_info.startswith(self.paths)


class NeverCached(_ForBrowsers, MiddlewareMixin):
    """Nothing of the back office is kept by a browser or on the way to it, not even a refusal."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        add_never_cache_headers(response)
        return response


class Sessions(_ForBrowsers, SessionMiddleware):
    pass


class Csrf(_ForBrowsers, CsrfViewMiddleware):
    def process_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseForbidden | None:
        return super().process_view(request, *args, **kwargs) if self.is_for(request) else None


class Users(_ForBrowsers, AuthenticationMiddleware):
    pass


class SecondFactors(_ForBrowsers, OTPMiddleware):  # type: ignore[misc]  # django-otp is not typed
    """Whether the user, in this session, has shown a second factor: `request.user.is_verified()`."""


class Messages(_ForBrowsers, MessageMiddleware):
    pass


class Frames(_ForBrowsers, XFrameOptionsMiddleware):
    paths = ("/admin/", "/docs")


class Content(_ForBrowsers, CSPMiddleware):
    """What a page may load, run and send to: `CONTENT_SECURITY_POLICY`."""

    paths = ("/admin/", "/docs")


class Attempts(_ForBrowsers, AxesMiddleware):  # type: ignore[misc]  # axes is not typed
    """Answers a login that was one too many with the page that says so."""
