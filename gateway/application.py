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

from exchange import heartbeat, readiness, rejects
from exchange.bodies import HealthBody
from exchange.errors import Overloaded, RateLimited
from exchange.http import floods, limits
from exchange.http.middleware import STARTED, Environ, request_id_of
from exchange.http.problems import problem_response
from exchange.http.responses import Response, json_response
from exchange.http.threads import in_thread
from exchange.keys import renew_known, write_uses
from gateway import fast_path, unknown
from gateway.connections import Connections
from gateway.fast_path import Errand
from gateway.request_bodies import RequestBodies

WSGI = Callable[[Environ, Any], Iterable[bytes]]

_BODILESS = {"GET", "HEAD", "OPTIONS"}
_WITHOUT_PREFIX = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}
_log = structlog.get_logger(__name__)


class Front:
    """An RSGI application, as granian runs it."""

    def __init__(
        self, long_way: WSGI, takes_no_orders: Callable[[], bool], errand_of: Callable[[Environ], Errand | None]
    ) -> None:
        self._long_way = long_way
        self._takes_no_orders = takes_no_orders
        self._errand_of = errand_of
        self._connections = Connections()
        self._bodies = RequestBodies()
        self._paused = 0  # requests whose refusal is held back

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        threading.Thread(target=_keep_up_for_ever, args=[self._connections], name="upkeep", daemon=True).start()
        threading.Thread(target=limits.share_for_ever, name="limits", daemon=True).start()

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        started = time.perf_counter()
        self._connections.note(scope.server, scope.client, started)
        environ = environ_of(scope)
        environ[STARTED] = started
        if scope.method in _BODILESS:
            response = await self.answer(environ)
        else:
            response = await self._answer_to_body(environ, protocol)
        if _is_to_place(environ) and rejects.is_refusal(response.status) and not unknown.is_refused(environ):
            rejects.note(1)
        protocol.response_bytes(response.status, list(response.headers.items()), response.content)

    async def _answer_to_body(self, environ: Environ, protocol: HTTPProtocol) -> Response:
        try:
            await self._bodies.receive(environ, protocol)
            return await self.answer(environ)
        except Overloaded:
            return _refusal(environ)
        finally:
            self._bodies.release(environ)

    async def answer(self, environ: Environ) -> Response:
        """The answer, held back if it is that the client asks too much: else it would ask again at once."""
        response = await self._respond(environ)
        if response.status == HTTPStatus.TOO_MANY_REQUESTS:
            await self._pause()
        return response

    async def _respond(self, environ: Environ) -> Response:
        """Whichever way is the request's; an order is turned away at the door when no more may wait.

        Under several times the load that can be borne, refusing must cost next to nothing. But its body has been read:
        a server that answers before closes the connection, and the client's next order would have an unknown outcome.
        """
        if _is_for_a_book(environ) and self._takes_no_orders():
            return _refusal(environ)
        errand = self._errand_of(environ)
        if errand and (done := await fast_path.run(errand, environ)):
            return done
        if _is_health_check(environ):
            known = _health(environ)
            return await in_thread(_django, self._long_way, environ) if known is None else known
        try:
            token = unknown.admit(environ)
        except RateLimited as error:
            return fast_path.finished(environ, problem_response(error, request_id_of(environ)))
        answered = await in_thread(_django, self._long_way, environ)
        if token:
            token.give_back_if_valid()
        return answered

    async def _pause(self) -> None:
        """Slow down a client that was refused and may ask again at once, unless many are being slowed down already."""
        if self._paused < settings.RATE_LIMIT_PAUSES:
            self._paused += 1
            try:
                await asyncio.sleep(settings.RATE_LIMIT_PAUSE_SECONDS)
            finally:
                self._paused -= 1


def _keep_up_for_ever(connections: Connections) -> None:
    """What a web process does beside its requests; in a thread of its own, since under load every other is busy.

    Keys are renewed twice in the time for which they are believed; counts are written as often.
    """
    uses_are_due_at = time.monotonic()
    while True:
        time.sleep(settings.KEY_CACHE_SECONDS / 2)
        _do(renew_known)
        _do(connections.close_excess)
        _do(rejects.write)
        _do(floods.write)
        if time.monotonic() >= uses_are_due_at:
            uses_are_due_at = time.monotonic() + settings.KEY_USE_WRITTEN_SECONDS
            _do(write_uses)
        heartbeat.mark(heartbeat.WEB)


def _do(chore: Callable[[], None]) -> None:
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
        if name in _WITHOUT_PREFIX:
            environ.setdefault(_WITHOUT_PREFIX[name], value)
            continue
        key = f"HTTP_{name.upper().replace('-', '_')}"
        joint = ";" if name == "cookie" else ","
        environ[key] = f"{environ[key]}{joint}{value}" if key in environ else value
    return environ


def _is_for_a_book(environ: Environ) -> bool:
    """Whether it would wait for its turn. A mass cancel does not: it goes its own way."""
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    return (method == "POST" and path == "/orders") or (method in ("POST", "DELETE") and path.startswith("/orders/"))


def _is_health_check(environ: Environ) -> bool:
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    return method == "GET" and path in ("/healthz", "/readyz") and not environ["QUERY_STRING"]


def _health(environ: Environ) -> Response | None:
    """The answer from memory, if it is there. It costs no more than a refusal, so nobody is refused one."""
    if environ["PATH_INFO"] == "/healthz":
        return fast_path.finished(environ, json_response(HealthBody("ok")))
    if body := readiness.remembered():
        return fast_path.finished(environ, json_response(body, body.status))
    return None


def _is_to_place(environ: Environ) -> bool:
    return environ["REQUEST_METHOD"] == "POST" and environ["PATH_INFO"] in ("/orders", "/orders/batch")


def _refusal(environ: Environ) -> Response:
    request_id = request_id_of(environ)
    response = problem_response(Overloaded(), request_id)
    return response._replace(headers={**response.headers, "X-Request-Id": request_id})


def _django(application: WSGI, environ: Environ) -> Response:
    told: list[Any] = []
    pieces = application(environ, lambda status, headers, exc_info=None: told.extend((status, headers)))
    try:
        content = b"".join(pieces)
    finally:
        if hasattr(pieces, "close"):
            pieces.close()  # the request has ended
    status, headers = told
    return Response(int(status.partition(" ")[0]), dict(headers), content)
