"""JSON encoding and decoding with exact decimals, UTC times and size limits.

Responses are `msgspec.Struct`s: `encode_json` writes them, `exchange.http.schema` describes them. A `Decimal` becomes a
JSON number with exactly its own decimals.
"""

import json
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec
from django.conf import settings

from exchange.errors import FieldError, MalformedRequest

MAX_INTEGER_DIGITS = 100  # more than any field accepts, and below the limit at which Python's int() raises

Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class Problem(msgspec.Struct, frozen=True):
    """The reason why a request was rejected (RFC 9457)."""

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
    except InvalidOperation:  # the exponent is out of Decimal's range; every field rejects NaN
        return Decimal("NaN")


def _integer(literal: str) -> int | Decimal:
    return int(literal) if len(literal) <= MAX_INTEGER_DIGITS else Decimal("NaN")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = msgspec.json.Decoder(float_hook=_decimal)
_ENCODER = msgspec.json.Encoder(decimal_format="number")


def encode_json(body: object) -> bytes:
    """Encode `body` as JSON."""
    return _ENCODER.encode(body)


def decode_json_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object. Integers become `int`, other numbers `Decimal`."""
    max_containers = settings.MAX_BODY_CONTAINERS
    if len(body) > max_containers and body.count(b"{") + body.count(b"[") > max_containers:
        raise MalformedRequest(f"The body may have at most {max_containers} objects and lists.")
    try:
        values = _decode(body)
    except (msgspec.MsgspecError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        raise MalformedRequest(f"The body is not JSON in UTF-8: {error}.") from error
    except RecursionError as error:
        raise MalformedRequest("The body is nested too deeply.") from error
    if not isinstance(values, dict):
        raise MalformedRequest("The body must be a JSON object.")
    return values


def _decode(body: bytes) -> Any:
    try:
        return _DECODER.decode(body)
    except msgspec.ValidationError:  # an integer of thousands of digits is valid JSON: the field must reject it
        if len(body) > settings.MAX_BODY_BYTES:  # the json module takes several times as long
            raise
        values = json.loads(body, parse_float=_decimal, parse_int=_integer, parse_constant=_no_constant)
        json.dumps(values, ensure_ascii=False, default=str).encode()  # a lone surrogate raises ValueError
        return values
