"""Strict serializer fields: they never convert, trim or round a value, and all errors are reported at once.

Each field describes the values it accepts for the OpenAPI document (`schema`). Query parameters, which are always
text, are validated by the same fields.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from datetime import UTC, datetime
from decimal import Context, Decimal, Inexact, InvalidOperation
from enum import StrEnum
from functools import cache
from itertools import chain, islice
from typing import Any, Generic, NamedTuple, TypeVar

from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail
from rest_framework.fields import empty

from exchange.errors import FieldError
from exchange.json_codec import MAX_NAME_SHOWN
from exchange.rules import AMOUNT, AMOUNT_DECIMALS, AMOUNT_INTEGER_DIGITS, MAX_QUANTITY

Member = TypeVar("Member", bound=StrEnum)

MAX_ERRORS = 50  # in one response; validation stops collecting errors here

_SMALLEST = Decimal(1).scaleb(-AMOUNT_DECIMALS)
# Quantizing in this context is exact or raises: Inexact for too many decimals, InvalidOperation for too many digits.
_EXACT = Context(prec=AMOUNT_INTEGER_DIGITS + AMOUNT_DECIMALS, traps=[Inexact, InvalidOperation])
_HOUR_MINUTE = "([01][0-9]|2[0-3]):[0-5][0-9]"
_INSTANT = re.compile(
    rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[Tt]{_HOUR_MINUTE}:[0-9]{{2}}(\.(?P<decimals>[0-9]{{1,9}}))?"
    rf"([Zz]|[+-]{_HOUR_MINUTE})"
)
_TIME_DECIMALS = 6  # a time is stored in microseconds
_DIGITS = re.compile(r"[0-9]{1,15}")


CrossFieldError = tuple[str, ErrorDetail]  # field name, error


class StrictSerializer(serializers.Serializer[Any]):
    """Serializer of a JSON object or a query string; unknown fields are errors."""

    default_error_messages = {"invalid": "Must be a JSON object."}

    @classmethod
    def cross_field_errors(cls, data: Mapping[str, Any]) -> Iterable[CrossFieldError]:
        """Errors that depend on several fields, found in the raw values: an invalid field does not hide them."""
        return ()

    @classmethod
    def with_derived_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Add values that follow from other validated values."""
        return values

    @classmethod
    def run_fast_validation(cls, data: Any) -> dict[str, Any] | None:
        """Fast validation: same result as the serializer, or None to fall back to it, which reports the errors.

        It calls the same field methods, without Django REST framework's per-field overhead, which takes several times
        as long.
        """
        fast = _fast_path(cls)
        if fast is None or type(data) is not dict or not fast.required <= data.keys():
            return None
        values = fast.defaults.copy()
        try:
            for name, value in data.items():
                values[name] = None if value is None and name in fast.nullable else fast.converters[name](value)
        except (KeyError, serializers.ValidationError):  # KeyError: an unknown field
            return None
        return None if any(cls.cross_field_errors(data)) else cls.with_derived_values(values)

    def run_validation(self, data: Any = empty) -> dict[str, Any]:
        """Return the validated values, or raise `ValidationError` with every error."""
        values = self.run_fast_validation(data)
        return super().run_validation(data) if values is None else values

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        """Return the values, or raise all errors of the declared fields and up to `MAX_ERRORS` others."""
        values: dict[str, Any] = {}
        error = serializers.ValidationError({})
        try:
            values = super().to_internal_value(data)
        except serializers.ValidationError as field_error:
            error = field_error
        errors: Any = error.detail  # a dict by field name
        if isinstance(data, dict):
            for name, detail in islice(chain(self.cross_field_errors(data), self._unknown(data)), MAX_ERRORS):
                errors.setdefault(name, []).append(detail)
        if errors:
            raise error
        return self.with_derived_values(values)

    def _unknown(self, data: Mapping[str, Any]) -> Iterator[CrossFieldError]:
        detail = ErrorDetail("Unknown field.", "unknown_field")
        return ((name, detail) for name in data if name not in self._declared_fields)


class _FastPath(NamedTuple):
    """A serializer's fields, prepared for `run_fast_validation`."""

    converters: Mapping[str, Callable[[Any], Any]]
    defaults: dict[str, Any]
    required: Set[str]
    nullable: Set[str]


@cache
def _fast_path(serializer: type[StrictSerializer]) -> _FastPath | None:
    """Prepare the fast path, or return None: other fields may validate in more than `to_internal_value`."""
    fields = serializer._declared_fields
    if not all(isinstance(field, StrictField) for field in fields.values()):
        return None
    return _FastPath(
        converters={name: field.to_internal_value for name, field in fields.items()},
        defaults={name: field.default for name, field in fields.items() if field.default is not empty},
        required={name for name, field in fields.items() if field.required},
        nullable={name for name, field in fields.items() if field.allow_null},
    )


class StrictList(serializers.ListField):
    """List field that validates its items one by one and stops at `MAX_ERRORS` invalid ones."""

    default_error_messages = {
        "not_a_list": "Must be a list.",
        "min_length": "Must have at least {min_length} item.",
        "max_length": "May have at most {max_length} items.",
    }

    def run_child_validation(self, data: Iterable[Any]) -> list[Any]:
        items: list[Any] = []
        errors: dict[str, Any] = {}
        for index, item in enumerate(data):
            try:
                items.append(self.child.run_validation(item))
            except serializers.ValidationError as error:
                errors[str(index)] = error.detail
            if len(errors) == MAX_ERRORS:
                break
        if errors:
            raise serializers.ValidationError(errors)
        return items


def validate(
    serializer: type[StrictSerializer],
    values: Mapping[str, Any],
    errors: list[FieldError],
    *,
    max_errors: int = MAX_ERRORS,
) -> dict[str, Any]:
    """Validate `values` with `serializer`, adding at most `max_errors` errors to `errors`."""
    try:
        accepted: dict[str, Any] = _shared_instance(serializer).run_validation(values)
    except serializers.ValidationError as error:
        errors += islice(_flatten(error.detail), max_errors)
        return {}
    return accepted


@cache
def _shared_instance(serializer: type[StrictSerializer]) -> StrictSerializer:
    """Return one instance for all requests: validation keeps no state in it, and creating one copies every field."""
    return serializer()


def field_errors(detail: Any) -> list[FieldError]:
    """Flatten REST framework's nested errors into at most `MAX_ERRORS`: `initial_holdings.0.quantity`."""
    return list(islice(_flatten(detail), MAX_ERRORS))


def _flatten(detail: Any, name: str = "") -> Iterator[FieldError]:
    if isinstance(detail, ErrorDetail):
        yield FieldError(name, str(detail.code), str(detail))
    elif isinstance(detail, dict):
        for key, inner in detail.items():
            yield from _flatten(inner, _join(name, key))
    else:
        for inner in detail:
            yield from _flatten(inner, name)


def _join(name: str, key: object) -> str:
    if key == "non_field_errors":
        return name
    shown = str(key)[:MAX_NAME_SHOWN]
    return f"{name}.{shown}" if name else shown


class StrictField(serializers.Field[Any, Any, Any, Any]):
    """Base of the strict fields: each provides its JSON schema."""

    def schema(self) -> dict[str, Any]:
        raise NotImplementedError


class Text(StrictField):
    """String field without trimming."""

    default_error_messages = {
        "invalid": "Must be a string.",
        "nul": "May not contain NUL characters.",
        "min_length": "Must have at least {length} character.",
        "max_length": "May have at most {length} characters.",
        "pattern": "Must match ^{pattern}$.",
    }

    def __init__(
        self,
        pattern: re.Pattern[str] | None = None,
        *,
        min_length: int = 1,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.pattern, self.min_length, self.max_length = pattern, min_length, max_length
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        if self.pattern is not None and not self.pattern.fullmatch(data):
            self.fail("pattern", pattern=self.pattern.pattern)
        if "\0" in data:
            self.fail("nul")
        if len(data) < self.min_length:
            self.fail("min_length", length=self.min_length)
        if self.max_length is not None and len(data) > self.max_length:
            self.fail("max_length", length=self.max_length)
        return data

    def schema(self) -> dict[str, Any]:
        if self.pattern is not None:
            return {"type": "string", "pattern": f"^{self.pattern.pattern}$"}
        longest = {} if self.max_length is None else {"maxLength": self.max_length}
        return {"type": "string", "minLength": self.min_length, **longest, "pattern": r"^[^\u0000]*$"}


class Choice(StrictField, Generic[Member]):
    """Enum field that returns the member. `members` and `name` restrict it to a named part of the enum."""

    default_error_messages = {"invalid": "Must be one of: {members}."}

    def __init__(self, enum: type[Member], *, members: tuple[Member, ...] = (), name: str = "", **kwargs: Any) -> None:
        self.enum, self.members, self.takes_all_members = enum, members or tuple(enum), not members
        self.component_name = name or enum.__name__
        self._by_value = {member.value: member for member in self.members}
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> Member:
        member = self._by_value.get(data) if isinstance(data, str) else None
        if member is None:
            self.fail("invalid", members=", ".join(self.members))
        return member

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": [member.value for member in self.members]}


class Amount(StrictField):
    """Price or cash amount: an exact JSON number or a string of digits; positive unless `zero` or `negative`."""

    default_error_messages = {
        "invalid": "Must be a number or a string of digits, below 10^16, with at most 4 decimals.",
        "min_value": "Must be {minimum}.",
        "max_value": "May be at most {maximum}.",
    }

    def __init__(
        self, *, zero: bool = False, negative: bool = False, maximum: int | None = None, **kwargs: Any
    ) -> None:
        self.zero, self.negative, self.maximum = zero, negative, maximum
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> Decimal:
        value = self._to_decimal(data)
        if value is None:
            self.fail("invalid")
        if (value == 0 and not self.zero) or (value < 0 and not self.negative):
            self.fail("min_value", minimum=self._minimum_text())
        if self.maximum is not None and value > self.maximum:
            self.fail("max_value", maximum=self.maximum)
        return value if value else abs(value)  # -0.0 is 0

    def _to_decimal(self, data: Any) -> Decimal | None:
        """Convert to four decimals; None if that is not exact or the value is not an amount."""
        if isinstance(data, str):
            unsigned = data.removeprefix("-") if self.negative else data
            data = Decimal(data) if AMOUNT.fullmatch(unsigned) else None
        elif type(data) is int:
            data = Decimal(data)
        if not isinstance(data, Decimal) or not data.is_finite():
            return None
        try:
            return data.quantize(_SMALLEST, context=_EXACT)
        except (Inexact, InvalidOperation):
            return None

    def _minimum_text(self) -> str:
        if self.negative:
            return "other than 0"
        return "0 or more" if self.zero else "above 0"

    def schema(self) -> dict[str, Any]:
        bound = 10**AMOUNT_INTEGER_DIGITS
        exact = f"A number with at most {AMOUNT_DECIMALS} decimals, taken exactly as it is written."
        number: dict[str, Any] = {"type": "number", "description": exact, "exclusiveMaximum": bound}
        if self.negative:
            number["exclusiveMinimum"] = -bound
        else:
            number["minimum" if self.zero else "exclusiveMinimum"] = 0
        if self.maximum is not None:
            del number["exclusiveMaximum"]
            number["maximum"] = self.maximum
        sign = "-?" if self.negative else ""
        text = {"type": "string", "description": "The same in digits.", "pattern": f"^{sign}{AMOUNT.pattern}$"}
        return {"oneOf": [number, text]}


class Quantity(StrictField):
    """Number of shares as a JSON integer, positive unless `signed` (for withdrawals)."""

    default_error_messages = {
        "invalid": "Must be a whole JSON number, written without quotes, decimals or exponent.",
        "range": "Must be {minimum} to {maximum}.",
    }

    def __init__(self, *, signed: bool = False, **kwargs: Any) -> None:
        self.signed = signed
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> int:
        if type(data) is not int:  # bool is a subclass of int
            self.fail("invalid")
        shares: int = data
        if not (1 <= (abs(shares) if self.signed else shares) <= MAX_QUANTITY):
            minimum = f"not 0, and from {-MAX_QUANTITY}" if self.signed else 1
            self.fail("range", minimum=minimum, maximum=MAX_QUANTITY)
        return shares

    def schema(self) -> dict[str, Any]:
        integer = {"type": "integer", "format": "int64", "maximum": MAX_QUANTITY}
        return integer | ({"minimum": -MAX_QUANTITY, "not": {"const": 0}} if self.signed else {"minimum": 1})


class Timestamp(StrictField):
    """RFC 3339 time with an offset, converted to UTC."""

    default_error_messages = {
        "invalid": "Must be an RFC 3339 time with an offset, such as 2026-02-16T16:29:00Z.",
        "too_precise": "The decimals of the second after the sixth must be zeros: times have microseconds.",
    }

    def to_internal_value(self, data: Any) -> datetime:
        parts = _INSTANT.fullmatch(data) if isinstance(data, str) else None
        if parts is None:
            self.fail("invalid")
        if (parts["decimals"] or "")[_TIME_DECIMALS:].strip("0"):
            self.fail("too_precise")
        try:
            return datetime.fromisoformat(data.upper()).astimezone(UTC)
        except (ValueError, OverflowError):  # no such day or second, or outside the years 1 to 9999 in UTC
            self.fail("invalid")

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "date-time"}


class Boolean(StrictField):
    """JSON boolean."""

    default_error_messages = {"invalid": "Must be true or false."}

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid")
        return data

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class QueryInteger(StrictField):
    """Integer in a query parameter."""

    default_error_messages = {"invalid": "Must be a whole number from {minimum} to {maximum}, in digits."}

    def __init__(self, minimum: int, maximum: int, **kwargs: Any) -> None:
        self.minimum, self.maximum = minimum, maximum
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> int:
        number = int(data) if isinstance(data, str) and _DIGITS.fullmatch(data) else None
        if number is None or not self.minimum <= number <= self.maximum:
            self.fail("invalid", minimum=self.minimum, maximum=self.maximum)
        return number

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "format": "int64", "minimum": self.minimum, "maximum": self.maximum}
