"""Query parameters that narrow a list, as strict as the fields of a body."""

from collections.abc import Mapping
from typing import Any

import django_filters  # type: ignore[import-untyped]  # it has no stubs
from django import forms
from rest_framework import serializers

from exchange.errors import FieldError
from exchange.http.fields import WireField, field_errors


class _StrictFormField(forms.Field):
    """A form field that leaves the checking to a wire field; a parameter that is there may not be empty."""

    def __init__(self, wire: WireField) -> None:
        self.wire = wire
        super().__init__(required=False)

    def clean(self, value: Any) -> Any:
        if value is None:
            return None
        try:
            return self.wire.run_validation(value)
        except serializers.ValidationError as refusal:
            found = [forms.ValidationError(each.detail, each.code) for each in field_errors(refusal.detail)]
            raise forms.ValidationError(found) from refusal


class FieldFilter(django_filters.Filter):  # type: ignore[misc]  # untyped
    """Narrows by one column, to what the wire field accepts: `FieldFilter(Timestamp(), "created_at", "gt")`."""

    def __init__(self, wire: WireField, field_name: str | None = None, lookup_expr: str = "exact") -> None:
        self.wire = wire
        super().__init__(field_name, lookup_expr)

    @property
    def field(self) -> forms.Field:
        return _StrictFormField(self.wire)


class Filters(django_filters.FilterSet):  # type: ignore[misc]  # untyped
    """The filters of a list: declare `FieldFilter`s and a `Meta` with the model and `fields = ()`."""

    def field_errors(self) -> list[FieldError]:
        """What is wrong with the parameters."""
        problems: Mapping[str, list[Any]] = self.form.errors.get_json_data()
        return [
            FieldError(name, str(each["code"]), each["message"]) for name, found in problems.items() for each in found
        ]
