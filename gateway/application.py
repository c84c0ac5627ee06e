"""The API's RSGI application: one event loop reads every request and writes every response.

Orders and cancels on the fast path stay on the event loop. They occupy no thread while they wait, and need no switching
between threads, which took two fifths of a web process's time. All other requests go to Django, in threads.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from http import HTTPStatus
from io import BytesIO
from typing import Any

import structlog
from django.conf import settings
from django.db import connection
from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]  # re-exported from the Rust module

from exchange import heartbeat, readiness, rejection_counts
from exchange.errors import ExchangeError, MalformedRequest, Overloaded, RateLimited
from exchange.http import log_throttle, rate_limits
from exchange.http.admission import check_http, is_health_check
from exchange.http.middleware import STARTED_AT, Environ, request_id_of
from exchange.http.problems import problem_response
from exchange.http.responses import RenderedResponse, json_response
from exchange.http.threads import read_in_thread, run_in_thread
from exchange.keys import refresh_cache, save_last_used
from exchange.response_bodies import HealthBody
from exchange.watchdog import Watchdog
from gateway import address_limits, fast_path
from gateway.connections import Connections
from gateway.fast_path import FastRequest
from gateway.request_bodies import RequestBodies

WSGI = Callable[[Environ, Any], Iterable[bytes]]

_BODILESS_METHODS = {"GET", "HEAD", "OPTIONS"}
_UNPREFIXED_HEADERS = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}
_log = structlog.get_logger(__name__)


class Gateway:
    """The RSGI application that granian runs. `full_path` is Django's WSGI handler."""

    def __init__(
        self,
        full_path: WSGI,
        is_queue_full: Callable[[], bool],
        parse_fast_request: Callable[[Environ], FastRequest | None],
    ) -> None:
        self._full_path = full_path
        self._is_queue_full = is_queue_full
        self._parse_fast_request = parse_fast_request
        self._connections = Connections()
        self._bodies = RequestBodies()
        self._delayed_responses = 0

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watchdog = loop.create_task(Watchdog(settings.WATCHDOG_SECONDS).run_on_loop())
        threading.Thread(target=_run_upkeep, args=[self._connections], name="upkeep", daemon=True).start()
        threading.Thread(target=rate_limits.share_forever, name="limits", daemon=True).start()

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        started = time.perf_counter()
        self._connections.record_request(scope.server, scope.client, started)
        environ = environ_of(scope)
        environ[STARTED_AT] = started
        if scope.method in _BODILESS_METHODS:
            response = await self.respond(environ)
        else:
            response = await self._respond_to_body(environ, protocol)
        if (
            _places_orders(environ)
            and rejection_counts.is_rejection(response.status)
            and not address_limits.is_rejected(environ)
        ):
            rejection_counts.add(1)
        protocol.response_bytes(response.status, list(response.headers.items()), response.content)

    async def _respond_to_body(self, environ: Environ, protocol: HTTPProtocol) -> RenderedResponse:
        try:
            await self._bodies.receive(environ, protocol)
            return await self.respond(environ)
        except Overloaded as error:
            return _rejection(error, environ)
        finally:
            self._bodies.release(environ)

    async def respond(self, environ: Environ) -> RenderedResponse:
        """Respond to the request. A 429 is delayed, because many clients repeat the request at once."""
        response = await self._dispatch(environ)
        if response.status == HTTPStatus.TOO_MANY_REQUESTS:
            await self._delay()
        return response

    async def _dispatch(self, environ: Environ) -> RenderedResponse:
        """Send the request down the fast path or the full path. With a full queue, reject orders before either.

        Rejections must cost next to nothing, so that they are still sent at several times the load that the exchange
        can process. The body has been read before, because a server that responds earlier closes the connection, and
        the client's next order would have an unknown outcome.
        """
        try:
            check_http(environ)
            if _enters_queue(environ) and self._is_queue_full():
                raise Overloaded
            request = self._parse_fast_request(environ)
            if request and (response := await fast_path.run(request, environ)):
                return response
            if is_health_check(environ):
                known = _health_response(environ)
                return await run_in_thread(_call_wsgi, self._full_path, environ) if known is None else known
            token = address_limits.admit(environ)
        except (MalformedRequest, Overloaded, RateLimited) as error:
            return _rejection(error, environ)
        run = read_in_thread if environ["REQUEST_METHOD"] in _BODILESS_METHODS else run_in_thread
        response = await run(_call_wsgi, self._full_path, environ)
        if token:
            token.return_if_valid()
        return response

    async def _delay(self) -> None:
        """Delay a response, unless `RATE_LIMIT_MAX_DELAYED` responses are delayed already."""
        if self._delayed_responses < settings.RATE_LIMIT_MAX_DELAYED:
            self._delayed_responses += 1
            try:
                await asyncio.sleep(settings.RATE_LIMIT_DELAY_SECONDS)
            finally:
                self._delayed_responses -= 1


def _run_upkeep(connections: Connections) -> None:
    """Run the periodic chores of a web process, in a thread of its own, because the others may be busy under load.

    The period is half the lifetime of a cached key, so that keys are refreshed before they expire.
    """
    uses_are_due_at = time.monotonic()
    while True:
        time.sleep(settings.KEY_CACHE_SECONDS / 2)
        _run_chore(refresh_cache)
        _run_chore(connections.close_excess)
        _run_chore(rejection_counts.flush)
        _run_chore(log_throttle.flush)
        if time.monotonic() >= uses_are_due_at:
            uses_are_due_at = time.monotonic() + settings.KEY_USE_FLUSH_SECONDS
            _run_chore(save_last_used)
        heartbeat.mark(heartbeat.WEB)


def _run_chore(chore: Callable[[], None]) -> None:
    try:
        with closing(connection):
            chore()
    except Exception as error:  # the other chores go on, and this one is retried in the next period
        _log.error("chore_failed", chore=chore.__name__, exc_info=error)


def environ_of(scope: Scope) -> Environ:
    """The WSGI environment of a request, without its body.

    Repeated headers are joined. Headers with an underscore in their name are left out, because WSGI would take
    `X_Forwarded_For` for the `X-Forwarded-For` of a proxy. granian leaves out headers that are not ASCII.
    """
    server, _, port = scope.server.rpartition(":")
    environ = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": scope.path.encode().decode("latin-1"),  # WSGI represents bytes as latin-1
        "QUERY_STRING": scope.query_string.encode().decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "SERVER_NAME": server,
        "SERVER_PORT": port,
        "REMOTE_ADDR": scope.client.rpartition(":")[0],
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": BytesIO(),
        "wsgi.input_terminated": True,
    }
    for name, value in scope.headers.items():
        if "_" in name:
            continue
        key = _UNPREFIXED_HEADERS.get(name) or f"HTTP_{name.upper().replace('-', '_')}"
        separator = ";" if name == "cookie" else ","
        environ[key] = f"{environ[key]}{separator}{value}" if key in environ else value
    return environ


def _enters_queue(environ: Environ) -> bool:
    """True if the request waits in the sequencer's queue. A mass cancel does not."""
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    return (method == "POST" and path == "/orders") or (method in ("POST", "DELETE") and path.startswith("/orders/"))


def _health_response(environ: Environ) -> RenderedResponse | None:
    """The cached response to a health check, or None. It costs no more than a rejection, so it has no rate limit."""
    if environ["PATH_INFO"] == "/healthz":
        return fast_path.finish(environ, json_response(HealthBody("ok")))
    if body := readiness.cached():
        return fast_path.finish(environ, json_response(body, body.status))
    return None


def _places_orders(environ: Environ) -> bool:
    return environ["REQUEST_METHOD"] == "POST" and environ["PATH_INFO"] in ("/orders", "/orders/batch")


def _rejection(error: ExchangeError, environ: Environ) -> RenderedResponse:
    """The response to a request that is rejected before its key is checked, so that its log line is throttled."""
    return fast_path.finish(environ, problem_response(error, request_id_of(environ)))


def _call_wsgi(application: WSGI, environ: Environ) -> RenderedResponse:
    start: list[Any] = []
    pieces = application(environ, lambda status, headers, exc_info=None: start.extend((status, headers)))
    try:
        content = b"".join(pieces)
    finally:
        if hasattr(pieces, "close"):
            pieces.close()
    status, headers = start
    return RenderedResponse(int(status.partition(" ")[0]), dict(headers), content)
