"""JSON as the exchange reads and writes it: exact decimals, UTC times, limits on everything.

What is sent is a `msgspec.Struct`: the renderer encodes it as it is, `exchange.schema` describes it. `Decimal`s become
JSON numbers with the very decimals they carry.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec
from django.http import UnreadablePostError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from exchange.errors import FieldError, MalformedRequest, TooLarge

MAX_INTEGER_DIGITS = 100  # more than any field takes, fewer than Python refuses to read

Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class Problem(msgspec.Struct, frozen=True):
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: tuple[FieldError, ...] | msgspec.UnsetType = msgspec.UNSET


def _decimal(literal: str) -> Decimal:
    try:
        return Decimal(literal)
    except InvalidOperation:  # an exponent beyond what Decimal holds: every field refuses what is not finite
        return Decimal("NaN")


def _integer(literal: str) -> int | Decimal:
    return int(literal) if len(literal) <= MAX_INTEGER_DIGITS else Decimal("NaN")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = msgspec.json.Decoder(float_hook=_decimal)
_ENCODER = msgspec.json.Encoder(decimal_format="number")


def encoded(body: object) -> bytes:
    """`body` as JSON."""
    return _ENCODER.encode(body)


def decoded(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; numbers are `int` as they were written, or else `Decimal`."""
    try:
        values = _decoded(body)
    except (msgspec.MsgspecError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        raise MalformedRequest(f"The body is not JSON in UTF-8: {error}.") from error
    except RecursionError as error:
        raise MalformedRequest("The body is nested too deeply.") from error
    if not isinstance(values, dict):
        raise MalformedRequest("The body must be a JSON object.")
    return values


def _decoded(body: bytes) -> Any:
    try:
        return _DECODER.decode(body)
    except msgspec.ValidationError:  # an integer with thousands of digits is JSON too, and some field's to refuse
        values = json.loads(body, parse_float=_decimal, parse_int=_integer, parse_constant=_no_constant)
        json.dumps(values, ensure_ascii=False, default=str).encode()  # half a surrogate pair is a ValueError here
        return values


class JSONParser(BaseParser):
    """Reads a body of at most the view's `max_body_bytes`."""

    media_type = "application/json"

    def parse(
        self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        assert parser_context is not None
        limit: int = parser_context["view"].max_body_bytes
        announced = int(parser_context["request"].META["CONTENT_LENGTH"])
        if announced > limit:
            raise TooLarge(f"The body may have at most {limit} bytes.")
        try:
            body: bytes = stream.read(announced)
        except UnreadablePostError as error:
            raise MalformedRequest("The body could not be read.") from error
        if len(body) < announced:
            raise MalformedRequest("The body ended before its Content-Length.")
        return decoded(body)


class JSONRenderer(BaseRenderer):
    """Writes a Struct, or whatever else msgspec encodes."""

    media_type = "application/json"
    format = "json"
    charset = None  # JSON is UTF-8 and its media type has no charset

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None
    ) -> bytes:
        return b"" if data is None else encoded(data)


class JSONNegotiation(BaseContentNegotiation):
    """There is one form, whatever `Accept` says; a body must say that it is in it."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        media_type, _, _ = request.content_type.partition(";")
        return parsers[0] if media_type.strip().lower() == parsers[0].media_type else None

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type
