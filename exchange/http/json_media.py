"""DRF parser and renderer for JSON by msgspec. It is the only format and always UTF-8, so nothing is negotiated."""

from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

from django.http import HttpRequest, UnreadablePostError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from exchange.errors import MalformedRequest, TooLarge, UnsupportedContentEncoding
from exchange.json_codec import decode_json_object, encode_json

MEDIA_TYPE = "application/json"


class MsgspecParser(BaseParser):
    """Parser of JSON objects with exact numbers, of at most the view's `max_body_bytes`."""

    media_type = MEDIA_TYPE

    def parse(
        self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        assert parser_context is not None
        length, max_length = content_length(parser_context["request"].META), parser_context["view"].max_body_bytes
        if length > max_length:
            raise TooLarge(f"The body may have at most {max_length} bytes.")
        body = stream.read()
        if len(body) < length:
            raise MalformedRequest("The body is shorter than its Content-Length.")
        return decode_json_object(body)


class MsgspecRenderer(BaseRenderer):
    """Renderer of Structs and other values that msgspec encodes. None is an empty body."""

    media_type = MEDIA_TYPE
    format = "json"
    charset = None

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None
    ) -> bytes:
        return b"" if data is None else encode_json(data)


class NoNegotiation(BaseContentNegotiation):
    """The only parser, for its own media type, and the only renderer, regardless of the `Accept` header."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        (parser,) = parsers
        codings = request.META.get("HTTP_CONTENT_ENCODING", "").lower().split(",")
        if {coding.strip() for coding in codings} - {"identity", ""}:
            raise UnsupportedContentEncoding
        return parser if request._request.content_type == parser.media_type else None

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        (renderer,) = renderers
        return renderer, str(renderer.media_type)


def read_body(request: HttpRequest, max_bytes: int) -> int:
    """Read the body unless it is longer than `max_bytes`, and return the number of bytes read."""
    _buffer_chunked_body(request, max_bytes)
    length = content_length(request.META)
    if not 0 < length <= max_bytes:
        return 0
    try:
        request.body  # noqa: B018 (a property that reads)
    except UnreadablePostError as error:
        raise MalformedRequest("The body could not be read.") from error
    return length


def content_length(environ: Mapping[str, Any]) -> int:
    """Return the length of the body by its header, 0 if there is none."""
    length = environ.get("CONTENT_LENGTH") or "0"
    return int(length) if length.isdecimal() else 0


def _buffer_chunked_body(request: HttpRequest, max_bytes: int) -> None:
    """Read a chunked body and set its length: without one, Django treats the body as empty."""
    chunked = "HTTP_TRANSFER_ENCODING" in request.META and not request.META.get("CONTENT_LENGTH")
    if chunked and request.META.get("wsgi.input_terminated"):  # otherwise the end of the body is unknown
        try:
            body = request.META["wsgi.input"].read(max_bytes + 1)
        except OSError as error:
            raise MalformedRequest("The body could not be read.") from error
        request.META["CONTENT_LENGTH"] = str(len(body))
        request._stream = BytesIO(body)  # Django reads the body from here
