"""Query parameters that narrow a list, as strict as the fields of a body."""

from collections.abc import Mapping
from typing import Any

import django_filters  # type: ignore[import-untyped]  # it has no stubs
from django import forms
from rest_framework import serializers

from exchange.errors import FieldError
from exchange.http.fields import WireField, field_errors


class _WireFormField(forms.Field):
    """A form field that converts with a wire field. `Filters.field_errors` has validated the value."""

    def __init__(self, wire: WireField) -> None:
        self.wire = wire
        super().__init__(required=False)

    def clean(self, value: Any) -> Any:
        return None if value is None else self.wire.run_validation(value)


class FieldFilter(django_filters.Filter):  # type: ignore[misc]  # untyped
    """Narrows by one column, to what the wire field accepts: `FieldFilter(Timestamp(), "created_at", "gt")`."""

    def __init__(self, wire: WireField, field_name: str | None = None, lookup_expr: str = "exact") -> None:
        self.wire = wire
        super().__init__(field_name, lookup_expr)

    @property
    def field(self) -> forms.Field:
        return _WireFormField(self.wire)


class Filters(django_filters.FilterSet):  # type: ignore[misc]  # untyped
    """The filters of a list: declare `FieldFilter`s and a `Meta` with the model and `fields = ()`."""

    @classmethod
    def field_errors(cls, parameters: Mapping[str, str]) -> list[FieldError]:
        """The errors of these parameters; a parameter that is there may not be empty."""
        errors: list[FieldError] = []
        for name, value in parameters.items():
            try:
                cls.base_filters[name].wire.run_validation(value)
            except serializers.ValidationError as rejection:
                errors += [FieldError(name, each.code, each.detail) for each in field_errors(rejection.detail)]
        return errors
