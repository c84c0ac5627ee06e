"""Where things are in the back office."""

from typing import Any
from urllib.parse import urlencode

from django.contrib.admin.utils import quote
from django.db.models import Model
from django.urls import reverse


def page_url(model: type[Model], pk: Any) -> str:
    """The page of the row with this key."""
    return reverse(f"admin:{_name(model)}_change", args=[quote(pk)])  # an underscore has a meaning there


def list_url(model: type[Model], **asked: Any) -> str:
    """The list of a model's rows, with what its filters are asked."""
    path = reverse(f"admin:{_name(model)}_changelist")
    return f"{path}?{urlencode(asked)}" if asked else path


def _name(model: type[Model]) -> str:
    return f"{model._meta.app_label}_{model._meta.model_name}"
