"""Django's WSGI handler, with requests that no Content-Type can break."""

from typing import Any

from django.core.handlers.wsgi import WSGIHandler, WSGIRequest


class ExchangeRequest(WSGIRequest):
    """A request whose Content-Type is a media type and nothing more.

    JSON has no charset. Django believes one all the same: some names that Python knows (`rot13`) or stumbles over would
    make reading even the query string fail, before any of our code runs.
    """

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        media_type, _, _ = meta.get("CONTENT_TYPE", "").partition(";")
        self.content_type = media_type.strip().lower()
        self.content_params = {}


class ExchangeHandler(WSGIHandler):
    request_class = ExchangeRequest
