"""Django's WSGI handler, with requests that no Content-Type can break and answers in one piece."""

from typing import Any

from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.http import HttpResponse


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

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """A list of one: granian sends it with its length, where it sends an iterable in chunks."""
        response = super().__call__(environ, start_response)
        if not isinstance(response, HttpResponse):
            return response
        content = response.content
        response.close()  # what the server does to an iterable: the request has ended
        return [content]
