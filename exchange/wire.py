"""JSON as the exchange reads and writes it: exact decimals, UTC times, limits on everything.

What is sent is a `msgspec.Struct`: `encoded` writes it as it is, `exchange.http.schema` describes it. `Decimal`s become
JSON numbers with the very decimals they carry.
"""

import json
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec
from django.conf import settings

from exchange.errors import FieldError, MalformedRequest

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
    most = settings.MAX_BODY_CONTAINERS
    if len(body) > most and body.count(b"{") + body.count(b"[") > most:
        raise MalformedRequest(f"The body may have at most {most} objects and lists.")
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
        if len(body) > settings.MAX_BODY_BYTES:  # but to read it takes several times as long
            raise
        values = json.loads(body, parse_float=_decimal, parse_int=_integer, parse_constant=_no_constant)
        json.dumps(values, ensure_ascii=False, default=str).encode()  # half a surrogate pair is a ValueError here
        return values
