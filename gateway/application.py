"""What the web server calls: one event loop reads every request and writes every answer.

The usual order and cancel never leave it: while they wait for their turn they cost no thread, nor the switching between
threads that was two fifths of a web process' time. Everything else is Django's, in threads.
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
from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]  # the latter comes from within it

from exchange import heartbeat, readiness, rejection_counts
from exchange.errors import Overloaded, RateLimited
from exchange.http import log_throttle, rate_limits
from exchange.http.middleware import STARTED_AT, Environ, request_id_of
from exchange.http.problems import problem_response
from exchange.http.responses import RenderedResponse, json_response
from exchange.http.threads import run_in_thread
from exchange.keys import refresh_cache, save_last_used
from exchange.response_bodies import HealthBody
from gateway import address_limits, fast_path
from gateway.connections import Connections
from gateway.fast_path import FastRequest
from gateway.request_bodies import RequestBodies

WSGI = Callable[[Environ, Any], Iterable[bytes]]

_BODILESS_METHODS = {"GET", "HEAD", "OPTIONS"}
_UNPREFIXED_HEADERS = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}
_log = structlog.get_logger(__name__)


class Gateway:
    """An RSGI application, as granian runs it."""

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
        self._delayed_responses = 0  # requests whose refusal is held back

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
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
            and not address_limits.is_refused(environ)
        ):
            rejection_counts.add(1)
        protocol.response_bytes(response.status, list(response.headers.items()), response.content)

    async def _respond_to_body(self, environ: Environ, protocol: HTTPProtocol) -> RenderedResponse:
        try:
            await self._bodies.receive(environ, protocol)
            return await self.respond(environ)
        except Overloaded:
            return _overloaded_response(environ)
        finally:
            self._bodies.release(environ)

    async def respond(self, environ: Environ) -> RenderedResponse:
        """The answer, held back if it is that the client asks too much: else it would ask again at once."""
        response = await self._dispatch(environ)
        if response.status == HTTPStatus.TOO_MANY_REQUESTS:
            await self._delay()
        return response

    async def _dispatch(self, environ: Environ) -> RenderedResponse:
        """Whichever way is the request's; an order is turned away at the door when no more may wait.

        Under several times the load that can be borne, refusing must cost next to nothing. But its body has been read:
        a server that answers before closes the connection, and the client's next order would have an unknown outcome.
        """
        if _enters_queue(environ) and self._is_queue_full():
            return _overloaded_response(environ)
        request = self._parse_fast_request(environ)
        if request and (response := await fast_path.run(request, environ)):
            return response
        if _is_health_check(environ):
            known = _health_response(environ)
            return await run_in_thread(_call_wsgi, self._full_path, environ) if known is None else known
        try:
            token = address_limits.admit(environ)
        except RateLimited as error:
            return fast_path.finish(environ, problem_response(error, request_id_of(environ)))
        response = await run_in_thread(_call_wsgi, self._full_path, environ)
        if token:
            token.give_back_if_valid()
        return response

    async def _delay(self) -> None:
        """Slow down a client that was refused and may ask again at once, unless many are being slowed down already."""
        if self._delayed_responses < settings.RATE_LIMIT_PAUSES:
            self._delayed_responses += 1
            try:
                await asyncio.sleep(settings.RATE_LIMIT_PAUSE_SECONDS)
            finally:
                self._delayed_responses -= 1


def _run_upkeep(connections: Connections) -> None:
    """What a web process does beside its requests; in a thread of its own, since under load every other is busy.

    Keys are renewed twice in the time for which they are believed; counts are written as often.
    """
    uses_are_due_at = time.monotonic()
    while True:
        time.sleep(settings.KEY_CACHE_SECONDS / 2)
        _run_chore(refresh_cache)
        _run_chore(connections.close_excess)
        _run_chore(rejection_counts.flush)
        _run_chore(log_throttle.flush)
        if time.monotonic() >= uses_are_due_at:
            uses_are_due_at = time.monotonic() + settings.KEY_USE_WRITTEN_SECONDS
            _run_chore(save_last_used)
        heartbeat.mark(heartbeat.WEB)


def _run_chore(chore: Callable[[], None]) -> None:
    try:
        with closing(connection):
            chore()
    except Exception as error:  # whatever it is, the others are to be done, and this one the next time
        _log.error("chore_failed", chore=chore.__name__, exc_info=error)


def environ_of(scope: Scope) -> Environ:
    """The request as WSGI has it, but for its body.

    A header that came more than once is joined, as cookies are; of those that describe the body the first one counts.
    One with an underscore in its name is left out: WSGI would take `X_Forwarded_For` for the `X-Forwarded-For` of a
    proxy. One that is not ASCII is not there: granian leaves it out.
    """
    server, _, port = scope.server.rpartition(":")
    environ = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": scope.path.encode().decode("latin-1"),  # WSGI's way of writing bytes
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
        if name in _UNPREFIXED_HEADERS:
            environ.setdefault(_UNPREFIXED_HEADERS[name], value)
            continue
        key = f"HTTP_{name.upper().replace('-', '_')}"
        separator = ";" if name == "cookie" else ","
        environ[key] = f"{environ[key]}{separator}{value}" if key in environ else value
    return environ


def _enters_queue(environ: Environ) -> bool:
    """Whether it would wait for its turn. A mass cancel does not: it goes its own way."""
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    return (method == "POST" and path == "/orders") or (method in ("POST", "DELETE") and path.startswith("/orders/"))


def _is_health_check(environ: Environ) -> bool:
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    return method == "GET" and path in ("/healthz", "/readyz") and not environ["QUERY_STRING"]


def _health_response(environ: Environ) -> RenderedResponse | None:
    """The answer from memory, if it is there. It costs no more than a refusal, so nobody is refused one."""
    if environ["PATH_INFO"] == "/healthz":
        return fast_path.finish(environ, json_response(HealthBody("ok")))
    if body := readiness.cached():
        return fast_path.finish(environ, json_response(body, body.status))
    return None


def _places_orders(environ: Environ) -> bool:
    return environ["REQUEST_METHOD"] == "POST" and environ["PATH_INFO"] in ("/orders", "/orders/batch")


def _overloaded_response(environ: Environ) -> RenderedResponse:
    request_id = request_id_of(environ)
    response = problem_response(Overloaded(), request_id)
    return response._replace(headers={**response.headers, "X-Request-Id": request_id})


def _call_wsgi(application: WSGI, environ: Environ) -> RenderedResponse:
    start: list[Any] = []
    pieces = application(environ, lambda status, headers, exc_info=None: start.extend((status, headers)))
    try:
        content = b"".join(pieces)
    finally:
        if hasattr(pieces, "close"):
            pieces.close()  # the request has ended
    status, headers = start
    return RenderedResponse(int(status.partition(" ")[0]), dict(headers), content)
