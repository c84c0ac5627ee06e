"""JSON encoding and decoding with exact decimals, UTC times and size limits.

Responses are `msgspec.Struct`s: `encode_json` writes them, `exchange.http.schema` describes them. A `Decimal` becomes a
JSON number with exactly its own decimals.
"""

import json
from collections import Counter
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec
from django.conf import settings

from exchange.errors import FieldError, MalformedRequest

MAX_NAME_SHOWN = 64  # characters of the name of a field
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
        raise MalformedRequest(_reason(body, error)) from error
    except RecursionError as error:
        raise MalformedRequest("The body is nested too deeply.") from error
    if not isinstance(values, dict):
        raise MalformedRequest("The body must be a JSON object.")
    return values


def _decode(body: bytes) -> Any:
    try:
        values = _DECODER.decode(body)
    except msgspec.ValidationError as error:  # an integer of thousands of digits is valid JSON: its field rejects it
        if len(body) > settings.MAX_BODY_BYTES:
            raise MalformedRequest("An integer in the body has too many digits.") from error
        return _decode_slowly(body)
    if _structural_quotes(body) != _structural_quotes(encode_json(values)):
        _decode_slowly(body)  # raises, because an object has a repeated name: the decoder kept its last value only
    return values


def _structural_quotes(text: bytes) -> int:
    """Count the quotes that begin or end a string."""
    return text.replace(b"\\\\", b"").replace(b'\\"', b"").count(b'"')


def _decode_slowly(body: bytes) -> Any:
    """Decode with the json module, which takes several times as long and rejects repeated names."""
    values = json.loads(
        body.decode(),
        parse_float=_decimal,
        parse_int=_integer,
        parse_constant=_no_constant,
        object_pairs_hook=_object_without_repeated_names,
    )
    json.dumps(values, ensure_ascii=False, default=str).encode()  # half a surrogate pair raises UnicodeEncodeError
    return values


def _object_without_repeated_names(members: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(members)
    if len(values) < len(members):
        repeated, _ = Counter(name for name, _ in members).most_common(1)[0]
        name = json.dumps(repeated[:MAX_NAME_SHOWN])  # may contain half a surrogate pair
        raise MalformedRequest(f"An object in the body has the name {name} more than once.")
    return values


def _reason(body: bytes, error: Exception) -> str:
    """Return the detail for a body that cannot be decoded. The decoder also calls half a surrogate pair truncated."""
    if not body.strip(b" \t\r\n"):
        return "The body is empty."
    try:
        _decode_slowly(body)
    except UnicodeDecodeError as invalid:
        return f"The body is not UTF-8 (byte {invalid.start})."
    except UnicodeEncodeError:
        return "An escape in the body is half of a surrogate pair."
    except (ValueError, RecursionError):
        pass
    return f"The body is not JSON: {str(error).removeprefix('JSON is malformed: ')}."
