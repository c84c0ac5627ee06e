"""URLs of lists and row pages."""

from typing import Any
from urllib.parse import urlencode

from django.contrib.admin.utils import quote
from django.db.models import Model
from django.urls import reverse


def page_url(model: type[Model], pk: Any) -> str:
    """Return the URL of a row's page."""
    return reverse(f"admin:{_name(model)}_change", args=[quote(pk)])  # the admin escapes underscores


def list_url(model: type[Model], **filters: Any) -> str:
    """Return the URL of a model's list with these filters."""
    path = reverse(f"admin:{_name(model)}_changelist")
    return f"{path}?{urlencode(filters)}" if filters else path


def _name(model: type[Model]) -> str:
    return f"{model._meta.app_label}_{model._meta.model_name}"
