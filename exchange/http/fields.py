"""What a request may say, field by field: nothing is converted, trimmed or rounded; every bad field is named at once.

Each field also tells the OpenAPI document exactly what it takes (`schema`). The same fields read query parameters,
where everything is text.
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
from exchange.rules import AMOUNT, AMOUNT_DECIMALS, AMOUNT_INTEGER_DIGITS, MAX_QUANTITY

Word = TypeVar("Word", bound=StrEnum)

MAX_ERRORS = 50  # named in one answer; no more are collected, however many a body has
MAX_NAME_SHOWN = 64  # characters of a field name that is not ours

_SMALLEST = Decimal(1).scaleb(-AMOUNT_DECIMALS)
# Quantizing in this context is exact, or raises: Inexact for too many decimals, InvalidOperation for too many digits.
_EXACT = Context(prec=AMOUNT_INTEGER_DIGITS + AMOUNT_DECIMALS, traps=[Inexact, InvalidOperation])
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt]([01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_DIGITS = re.compile(r"[0-9]{1,15}")


Contradiction = tuple[str, ErrorDetail]  # the field to blame, and why


class StrictSerializer(serializers.Serializer[Any]):
    """A JSON object, or a query, with these fields and no others."""

    default_error_messages = {"invalid": "Must be a JSON object."}

    @classmethod
    def contradictions(cls, data: Mapping[str, Any]) -> Iterable[Contradiction]:
        """What is wrong between fields, told from the raw values: a bad field hides nothing of it."""
        return ()

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The validated values, with those that follow from others."""
        return values

    @classmethod
    def valid_values(cls, data: Any) -> dict[str, Any] | None:
        """The validated values, or None if anything is wrong: `run_validation` finds and names every error.

        It makes the same checks by the same fields, without what Django REST framework does around each of them: that
        takes several times as long.
        """
        fast = _fast(cls)
        if fast is None or type(data) is not dict or not fast.required <= data.keys():
            return None
        values = fast.defaults.copy()
        try:
            for name, value in data.items():
                values[name] = None if value is None and name in fast.nullable else fast.converters[name](value)
        except (KeyError, serializers.ValidationError):  # an unknown name is a KeyError
            return None
        return None if any(cls.contradictions(data)) else cls.completed(values)

    def run_validation(self, data: Any = empty) -> dict[str, Any]:
        """The validated values; `ValidationError` with every error."""
        values = self.valid_values(data)
        return super().run_validation(data) if values is None else values

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        """The values of the fields, or all their errors and the first of the others, in the order of the body."""
        values: dict[str, Any] = {}
        refusal = serializers.ValidationError({})
        try:
            values = super().to_internal_value(data)
        except serializers.ValidationError as of_fields:
            refusal = of_fields
        errors: Any = refusal.detail  # a serializer's own are always by field
        if isinstance(data, dict):
            for name, detail in islice(chain(self.contradictions(data), self._unknown(data)), MAX_ERRORS):
                errors.setdefault(name, []).append(detail)
        if errors:
            raise refusal
        return self.completed(values)

    def _unknown(self, data: Mapping[str, Any]) -> Iterator[Contradiction]:
        detail = ErrorDetail("There is no such field here.", "unknown_field")
        return ((name, detail) for name in data if name not in self._declared_fields)


class _Fast(NamedTuple):
    """The fields of a serializer, as `valid_values` needs them."""

    converters: Mapping[str, Callable[[Any], Any]]
    defaults: dict[str, Any]
    required: Set[str]
    nullable: Set[str]


@cache
def _fast(serializer: type[StrictSerializer]) -> _Fast | None:
    """None for a serializer that has other fields than ours, whose validation may be more than one call."""
    fields = serializer._declared_fields
    if not all(isinstance(field, WireField) for field in fields.values()):
        return None
    return _Fast(
        converters={name: field.to_internal_value for name, field in fields.items()},
        defaults={name: field.default for name, field in fields.items() if field.default is not empty},
        required={name for name, field in fields.items() if field.required},
        nullable={name for name, field in fields.items() if field.allow_null},
    )


class Items(serializers.ListField):
    """A list whose items are checked one by one, until as many are bad as an answer names."""

    def run_child_validation(self, data: Iterable[Any]) -> list[Any]:
        items: list[Any] = []
        errors: dict[str, Any] = {}
        for index, item in enumerate(data):
            try:
                items.append(self.child.run_validation(item))
            except serializers.ValidationError as refusal:
                errors[str(index)] = refusal.detail
            if len(errors) == MAX_ERRORS:
                break
        if errors:
            raise serializers.ValidationError(errors)
        return items


def validated(
    serializer: type[StrictSerializer],
    values: Mapping[str, Any],
    errors: list[FieldError],
    *,
    max_errors: int = MAX_ERRORS,
) -> dict[str, Any]:
    """What `serializer` makes of `values`; what is wrong with them is added to `errors`, at most `max_errors`."""
    try:
        accepted: dict[str, Any] = _shared(serializer).run_validation(values)
    except serializers.ValidationError as refusal:
        errors += islice(_flattened(refusal.detail), max_errors)
        return {}
    return accepted


@cache
def _shared(serializer: type[StrictSerializer]) -> StrictSerializer:
    """One instance for all requests: validation keeps no state in it, and building one copies every field."""
    return serializer()


def field_errors(detail: Any) -> list[FieldError]:
    """REST framework's nested errors, flat and dotted, at most `MAX_ERRORS`: `initial_holdings.0.quantity`."""
    return list(islice(_flattened(detail), MAX_ERRORS))


def _flattened(detail: Any, name: str = "") -> Iterator[FieldError]:
    if isinstance(detail, ErrorDetail):
        yield FieldError(name, str(detail.code), str(detail))
    elif isinstance(detail, dict):
        for key, inner in detail.items():
            yield from _flattened(inner, _joined(name, key))
    else:
        for inner in detail:
            yield from _flattened(inner, name)


def _joined(name: str, key: object) -> str:
    if key == "non_field_errors":
        return name
    shown = str(key)[:MAX_NAME_SHOWN]
    return f"{name}.{shown}" if name else shown


class WireField(serializers.Field[Any, Any, Any, Any]):
    """A field that knows its own JSON schema."""

    def schema(self) -> dict[str, Any]:
        raise NotImplementedError


class Text(WireField):
    """A string, taken as it is."""

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


class Choice(WireField, Generic[Word]):
    """One of an enum's words; gives the member. `words` narrows it to some of them."""

    default_error_messages = {"invalid": "Must be one of: {words}."}

    def __init__(self, enum: type[Word], *, words: tuple[Word, ...] = (), **kwargs: Any) -> None:
        self.enum, self.words, self.takes_all = enum, words or tuple(enum), not words
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> Word:
        if not isinstance(data, str) or data not in self.words:
            self.fail("invalid", words=", ".join(self.words))
        return self.enum(data)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": [word.value for word in self.words]}


class Amount(WireField):
    """A price or a sum of cash: a JSON number at its exact value, or a string of digits. Above 0 unless asked."""

    default_error_messages = {
        "invalid": "Must be a number, or a string of digits, below 10^16 with at most 4 decimals.",
        "min_value": "Must be {least}.",
        "max_value": "May be at most {maximum}.",
    }

    def __init__(
        self, *, zero: bool = False, negative: bool = False, maximum: int | None = None, **kwargs: Any
    ) -> None:
        self.zero, self.negative, self.maximum = zero, negative, maximum
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> Decimal:
        value = self._exact(data)
        if value is None:
            self.fail("invalid")
        if (value == 0 and not self.zero) or (value < 0 and not self.negative):
            self.fail("min_value", least=self._least())
        if self.maximum is not None and value > self.maximum:
            self.fail("max_value", maximum=self.maximum)
        return value if value else abs(value)  # -0.0 is 0

    def _exact(self, data: Any) -> Decimal | None:
        """The amount with four decimals, whatever it is written as; None if it is not one."""
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

    def _least(self) -> str:
        if self.negative:
            return "other than 0"
        return "0 or more" if self.zero else "above 0"

    def schema(self) -> dict[str, Any]:
        bound = 10**AMOUNT_INTEGER_DIGITS
        number: dict[str, Any] = {"type": "number", "exclusiveMaximum": bound, "multipleOf": float(_SMALLEST)}
        if self.negative:
            number["exclusiveMinimum"] = -bound
        else:
            number["minimum" if self.zero else "exclusiveMinimum"] = 0
        if self.maximum is not None:
            del number["exclusiveMaximum"]
            number["maximum"] = self.maximum
        sign = "-?" if self.negative else ""
        return {"anyOf": [number, {"type": "string", "pattern": f"^{sign}{AMOUNT.pattern}$"}]}


class Quantity(WireField):
    """A whole number of shares, written as a JSON integer; `signed` for what comes in or goes out."""

    default_error_messages = {
        "invalid": "Must be a whole JSON number, written without quotes, decimals or exponent.",
        "range": "Must be {least} to {maximum}.",
    }

    def __init__(self, *, signed: bool = False, **kwargs: Any) -> None:
        self.signed = signed
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> int:
        if type(data) is not int:  # a bool is an int to Python
            self.fail("invalid")
        shares: int = data
        if not (1 <= (abs(shares) if self.signed else shares) <= MAX_QUANTITY):
            least = f"not 0, and from {-MAX_QUANTITY}" if self.signed else 1
            self.fail("range", least=least, maximum=MAX_QUANTITY)
        return shares

    def schema(self) -> dict[str, Any]:
        if self.signed:
            return {"type": "integer", "minimum": -MAX_QUANTITY, "maximum": MAX_QUANTITY, "not": {"const": 0}}
        return {"type": "integer", "minimum": 1, "maximum": MAX_QUANTITY}


class Timestamp(WireField):
    """An RFC 3339 time with its offset; gives it in UTC."""

    default_error_messages = {
        "invalid": "Must be an RFC 3339 time with an offset, such as 2026-02-16T16:29:00Z.",
    }

    def to_internal_value(self, data: Any) -> datetime:
        if not isinstance(data, str) or not _INSTANT.fullmatch(data):
            self.fail("invalid")
        try:
            return datetime.fromisoformat(data.upper()).astimezone(UTC)
        except (ValueError, OverflowError):  # no such day or second; beyond the years 1 to 9999 in UTC
            self.fail("invalid")

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "date-time"}


class Flag(WireField):
    """`true` or `false`."""

    default_error_messages = {"invalid": "Must be true or false."}

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid")
        return data

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class Digits(WireField):
    """A whole number in a query parameter."""

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
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}
