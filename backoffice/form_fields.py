"""What operators write into forms: taken by the very rules of the API, and no value is converted or rounded."""

import re
from collections.abc import Callable
from typing import Any

from django import forms
from rest_framework import serializers

from exchange.http.fields import Amount, Quantity, StrictField, Text, Timestamp, field_errors
from exchange.rules import BROKER_ID, MAX_INITIAL_CASH, SYMBOL, TRANSFER_REFERENCE, ChoicesEnum

_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
_LOCAL_DATETIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?")


class ApiField(forms.CharField):
    """Takes what a field of the API takes, once `read` has made of the text what would be in the JSON."""

    def __init__(self, field: StrictField, *, read: Callable[[str], Any] = str, **options: Any) -> None:
        self.field, self.read = field, read
        super().__init__(**options)

    def clean(self, value: Any) -> Any:
        text = super().clean(value)
        if not text:
            return None
        try:
            return self.field.run_validation(self.read(text))
        except serializers.ValidationError as refusal:
            raise forms.ValidationError([error.detail for error in field_errors(refusal.detail)]) from refusal


def broker_id(**options: Any) -> ApiField:
    wrong = "Letters, digits, hyphens and underscores, 64 at most."
    return ApiField(Text(BROKER_ID, error_messages={"pattern": wrong}), **options)


def symbol(**options: Any) -> ApiField:
    wrong = "Capital letters, digits and dots, 12 at most."
    return ApiField(Text(SYMBOL, error_messages={"pattern": wrong}), **options)


def reference(**options: Any) -> ApiField:
    wrong = "Letters, digits, dots, colons, hyphens and underscores, 64 at most."
    return ApiField(Text(TRANSFER_REFERENCE, error_messages={"pattern": wrong}), **options)


def amount(*, signed: bool = False, **options: Any) -> ApiField:
    """Cash: what is moved if `signed`, else what there is at first."""
    wrong = {"invalid": "Must be a number below 10^16, with 4 decimals at most and a point before them."}
    bounds: dict[str, Any] = {"negative": True} if signed else {"zero": True, "maximum": MAX_INITIAL_CASH}
    return ApiField(Amount(**bounds, error_messages=wrong), **options)


def tick_size(**options: Any) -> ApiField:
    wrong = {"invalid": "Must be a number below 10^16, with 4 decimals at most and a point before them."}
    return ApiField(Amount(error_messages=wrong), **options)


def shares(*, signed: bool = False, **options: Any) -> ApiField:
    return ApiField(quantity_field(signed=signed), read=parse_integer, **options)


def quantity_field(*, signed: bool = False) -> Quantity:
    return Quantity(signed=signed, error_messages={"invalid": "Must be a whole number, in digits."})


def parse_integer(text: str) -> int | str:
    """The number that these digits are; what is none stays as it is, to be refused."""
    return int(text) if _INTEGER.fullmatch(text) else text


def utc_datetime(**options: Any) -> ApiField:
    """A time in UTC as browsers write it, or with an offset of its own."""
    wrong = "Must be a time, such as 2026-02-16 16:29 (UTC)."
    widget = forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"})
    return ApiField(Timestamp(error_messages={"invalid": wrong}), read=_in_utc, widget=widget, **options)


def _in_utc(text: str) -> str:
    local = _LOCAL_DATETIME.fullmatch(text)
    if local is None:
        return text
    return text.replace(" ", "T") + ("Z" if local[1] else ":00Z")


class FilterChoiceField(forms.ChoiceField):
    """One of a closed set of words, or any; for a filter."""

    def __init__(self, words: type[ChoicesEnum], *more: str, **options: Any) -> None:
        names = [*more, *(word.value for word in words)]
        choices = [("", "any"), *((name, name.replace("_", " ")) for name in names)]
        super().__init__(choices=choices, required=False, **options)
