"""Middleware of our own for the back office."""

from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.cache import add_never_cache_headers

Respond = Callable[[HttpRequest], HttpResponseBase]


def never_cache(get_response: Respond) -> Respond:
    """Let no browser or proxy keep a page, not even a refusal: a page may show a secret."""

    def respond(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        add_never_cache_headers(response)
        return response

    return respond
