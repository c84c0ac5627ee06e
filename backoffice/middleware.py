"""Middleware of the back office."""

from collections.abc import Callable

from django.db import connection
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.cache import add_never_cache_headers

from exchange.database import replace_lost_connections

Respond = Callable[[HttpRequest], HttpResponseBase]


def never_cache(get_response: Respond) -> Respond:
    """Forbid browsers and proxies to store any response: a page may show a secret."""

    def respond(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        add_never_cache_headers(response)
        return response

    return respond


def live_connection(get_response: Respond) -> Respond:
    """Test the request's connection to the database, and replace all lost ones at once, so that no page fails.

    The pool's own check (`CONN_HEALTH_CHECKS`) replaces one at a time, and waits seconds before the next.
    """

    def respond(request: HttpRequest) -> HttpResponseBase:
        connection.ensure_connection()
        if not connection.is_usable():
            connection.close()
            replace_lost_connections()
        return get_response(request)

    return respond
