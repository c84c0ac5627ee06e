"""Django's WSGI handler, with requests that no Content-Type can break and answers in one piece."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.db import connection
from django.http import HttpResponse
from django.http.response import HttpResponseBase

from exchange import short_way
from exchange.errors import Overloaded
from exchange.keys import renew_known
from exchange.middleware import STARTED, request_id_of
from exchange.problems import problem_response
from exchange.short_way import Errand

# One at a time: hundreds of threads at it would keep the one that executes orders from the interpreter.
_refusing = threading.Lock()
_FOR_BROWSERS = ("/admin/", "/static/", "/docs")  # cookies, files, pages: Django's own way


class ExchangeRequest(WSGIRequest):
    """A request whose Content-Type is a media type, with the boundary of a form if it is one.

    JSON has no charset. Django and REST framework believe one all the same: names that Python knows (`rot13`) or
    stumbles over would make reading even the query string fail, before any of our code runs.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        environ.pop("HTTP_CONTENT_LENGTH", None)  # of a header `Content_Length`, which REST framework would believe
        super().__init__(environ)

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        media_type, *parameters = meta.get("CONTENT_TYPE", "").split(";")
        boundaries = [each for each in parameters if each.strip().lower().startswith("boundary=")]
        meta["CONTENT_TYPE"] = ";".join([media_type.strip().lower(), *boundaries])
        super()._set_content_type_params(meta)  # type: ignore[misc]  # Django's own hook, unknown to its stubs


class ExchangeHandler(WSGIHandler):
    request_class = ExchangeRequest

    def __init__(
        self,
        takes_no_orders: Callable[[], bool],
        errand_of: Callable[[dict[str, Any]], Errand | None],
    ) -> None:
        super().__init__()
        self._takes_no_orders = takes_no_orders
        self._errand_of = errand_of

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Answer, as Django's handler does but for the API without its signals.

        All that hangs on them for us is that the connection goes back to the pool, and under many threads sending them
        showed in every profile: they wait for one lock.
        """
        environ[STARTED] = time.perf_counter()
        if environ["PATH_INFO"].startswith(_FOR_BROWSERS):
            return _in_one_piece(super().__call__(environ, start_response))
        if _is_for_a_book(environ) and self._takes_no_orders():
            return _refused(environ, start_response)
        try:
            renew_known()
            errand = self._errand_of(environ)
            reply = short_way.run(errand, environ) if errand else None
            if reply:
                start_response(f"{reply.status} {reply.status.phrase}", list(reply.headers.items()))
                return [reply.content]
            return _answer(self.get_response(self.request_class(environ)), start_response)
        finally:
            connection.close()


def _in_one_piece(response: Any) -> Any:
    """A list of one: granian sends it with its length, where it sends an iterable in chunks."""
    if not isinstance(response, HttpResponse):
        return response
    content = response.content
    response.close()  # what the server does to an iterable: the request has ended
    return [content]


def _is_for_a_book(environ: dict[str, Any]) -> bool:
    """Whether it would wait for its turn. A mass cancel does not: it goes its own way."""
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    return (method == "POST" and path == "/orders") or (method in ("POST", "DELETE") and path.startswith("/orders/"))


def _refused(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Turned away at the door: under several times the load that can be borne, refusing must cost next to nothing.

    The body is read all the same: a server that answers before closes the connection, and the client's next order would
    have an unknown outcome.
    """
    with suppress(OSError):
        environ["wsgi.input"].read(settings.MAX_BATCH_BODY_BYTES)
    with _refusing:
        request_id = request_id_of(environ)
        response = problem_response(SimpleNamespace(request_id=request_id), Overloaded())
        response["X-Request-Id"] = request_id
        return _answer(response, start_response)


def _answer(response: HttpResponseBase, start_response: Any) -> list[bytes]:
    assert isinstance(response, HttpResponse)  # nothing of the API is sent piece by piece
    start_response(f"{response.status_code} {response.reason_phrase}", list(response.items()))
    return [response.content]
