"""The rendered response of the fast path and of error handlers."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from django.http import HttpResponse

from exchange.json_codec import encode_json

JSON = "application/json"  # without a charset: JSON is always UTF-8


class RenderedResponse(NamedTuple):
    """Status, headers and body of a response, independent of Django."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def as_django(self) -> HttpResponse:
        """Return the same response for Django and REST framework."""
        return HttpResponse(self.content, status=self.status, headers=self.headers)


def json_response(body: object, status: int = HTTPStatus.OK, headers: Mapping[str, str] = {}) -> RenderedResponse:
    """Encode a Struct, or another value that msgspec encodes, as a JSON response."""
    return RenderedResponse(status, {"Content-Type": JSON, **headers}, encode_json(body))
