"""The response to a request, as it is sent: from the fast path, or from Django."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from django.http import HttpResponse

from exchange.json_codec import encode_json

JSON = "application/json"  # JSON is UTF-8, and its media type has no charset


class Response(NamedTuple):
    """Status, headers and content."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def as_django(self) -> HttpResponse:
        """The same for Django and REST framework."""
        return HttpResponse(self.content, status=self.status, headers=self.headers)


def json_response(body: object, status: int = HTTPStatus.OK, headers: Mapping[str, str] = {}) -> Response:
    """A Struct, or whatever else msgspec encodes, as JSON."""
    return Response(status, {"Content-Type": JSON, **headers}, encode_json(body))
