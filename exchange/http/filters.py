"""Filters of lists: query parameters, validated as strictly as body fields."""

from collections.abc import Mapping
from typing import Any

import django_filters  # type: ignore[import-untyped]  # it has no stubs
from django import forms
from rest_framework import serializers

from exchange.errors import FieldError
from exchange.http.fields import StrictField, field_errors


class _StrictFormField(forms.Field):
    """Form field that converts with a strict field. `Filters.field_errors` has already validated the value."""

    def __init__(self, value_field: StrictField) -> None:
        self.value_field = value_field
        super().__init__(required=False)

    def clean(self, value: Any) -> Any:
        return None if value is None else self.value_field.run_validation(value)


class FieldFilter(django_filters.Filter):  # type: ignore[misc]  # untyped
    """Filter of one column by a strict field's value: `FieldFilter(Timestamp(), "created_at", "gt")`."""

    def __init__(self, value_field: StrictField, field_name: str | None = None, lookup_expr: str = "exact") -> None:
        self.value_field = value_field
        super().__init__(field_name, lookup_expr)

    @property
    def field(self) -> forms.Field:
        return _StrictFormField(self.value_field)


class Filters(django_filters.FilterSet):  # type: ignore[misc]  # untyped
    """Filter set of a list: declare `FieldFilter`s and a `Meta` with the model and `fields = ()`."""

    @classmethod
    def field_errors(cls, parameters: Mapping[str, str]) -> list[FieldError]:
        """Validate these parameters and return their errors. An empty value is an error."""
        errors: list[FieldError] = []
        for name, value in parameters.items():
            try:
                cls.base_filters[name].value_field.run_validation(value)
            except serializers.ValidationError as error:
                errors += [FieldError(name, each.code, each.detail) for each in field_errors(error.detail)]
        return errors
