"""Form fields that validate by the rules of the API. Values are never converted or rounded."""

import re
from collections.abc import Callable
from typing import Any

from django import forms
from rest_framework import serializers

from backoffice.templatetags.formatting import readable
from exchange.http.fields import Amount, Quantity, StrictField, Text, Timestamp, field_errors
from exchange.rules import BROKER_ID, MAX_INITIAL_CASH, SYMBOL, TRANSFER_REFERENCE, ChoicesEnum

_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
_LOCAL_DATETIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?")


class ApiField(forms.CharField):
    """Form field with the validation of an API field. `read` converts the text to its JSON value."""

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
    message = "Use letters, digits, hyphens and underscores, at most 64."
    return ApiField(Text(BROKER_ID, error_messages={"pattern": message}), **options)


def symbol(**options: Any) -> ApiField:
    message = "Use capital letters, digits and dots, at most 12, not starting with a dot."
    return ApiField(Text(SYMBOL, error_messages={"pattern": message}), **options)


def reference(**options: Any) -> ApiField:
    message = "Use letters, digits, dots, colons, hyphens and underscores, at most 64."
    return ApiField(Text(TRANSFER_REFERENCE, error_messages={"pattern": message}), **options)


def amount(*, signed: bool = False, **options: Any) -> ApiField:
    """Return a field for cash: a transfer if `signed`, otherwise an initial balance."""
    messages = {"invalid": "Enter a number below 10^16 with at most 4 decimals, such as 1000.50."}
    bounds: dict[str, Any] = {"negative": True} if signed else {"zero": True, "maximum": MAX_INITIAL_CASH}
    return ApiField(Amount(**bounds, error_messages=messages), **options)


def tick_size(**options: Any) -> ApiField:
    messages = {"invalid": "Enter a number below 10^16 with at most 4 decimals, such as 1000.50."}
    return ApiField(Amount(error_messages=messages), **options)


def shares(*, signed: bool = False, **options: Any) -> ApiField:
    return ApiField(quantity_field(signed=signed), read=parse_integer, **options)


def quantity_field(*, signed: bool = False) -> Quantity:
    return Quantity(signed=signed, error_messages={"invalid": "Enter a whole number."})


def parse_integer(text: str) -> int | str:
    """Convert digits to a number. Other text is returned unchanged and then rejected."""
    return int(text) if _INTEGER.fullmatch(text) else text


def utc_datetime(**options: Any) -> ApiField:
    """Return a field for a time: in UTC as browsers send it, or with an offset."""
    message = "Enter a time such as 2026-02-16 16:29 (UTC)."
    widget = forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"})
    return ApiField(Timestamp(error_messages={"invalid": message}), read=_in_utc, widget=widget, **options)


def _in_utc(text: str) -> str:
    local = _LOCAL_DATETIME.fullmatch(text)
    if local is None:
        return text
    return text.replace(" ", "T") + ("Z" if local[1] else ":00Z")


class FilterChoiceField(forms.ChoiceField):
    """Filter field for one of an enum's values, or any."""

    def __init__(self, words: type[ChoicesEnum], *more: str, **options: Any) -> None:
        names = [*more, *(word.value for word in words)]
        choices = [("", "any"), *((name, readable(name)) for name in names)]
        super().__init__(choices=choices, required=False, **options)
