"""Operator actions: a permission, a form and one call of a service.

Each action has its own page, which names the rows and asks for a reason before anything is done. Actions run outside
any transaction of the admin and call the same services as the API.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlencode

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import InterfaceError, OperationalError
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from backoffice.links import list_url, page_url
from exchange.audit import Actor, ActorKind, address_of
from exchange.errors import ExchangeError, OutcomeUnknown
from exchange.http.middleware import request_id_of
from exchange.http.problems import as_exchange_error
from exchange.rules import MAX_REASON_LENGTH

MAX_SUBJECTS = 500  # of one action


def actor_of(request: HttpRequest) -> Actor:
    """The signed-in user, as the audit names them."""
    return Actor(ActorKind.USER, request.user.get_username(), address_of(request.META), request_id_of(request.META))


class ReasonForm(forms.Form):
    """Every action says why."""

    reason = forms.CharField(max_length=MAX_REASON_LENGTH, help_text="Goes on record with the action.")


@dataclass(frozen=True, slots=True)
class ActionResult:
    """What came of an action, as its user is told; a secret is shown once and kept nowhere."""

    message: str
    secret: str = ""
    is_warning: bool = False  # it was done in part, or had been done before
    url: str = ""  # where to go now, if not back


class OperatorAction:
    """One thing that can be done to the rows of a model, to one, to several, or to none in particular."""

    name: ClassVar[str]  # in its URL
    label: ClassVar[str]  # on its button
    explanation: ClassVar[str]  # on its page: what will happen
    permission: ClassVar[str]  # "app.codename"
    form_class: ClassVar[type[forms.Form]] = ReasonForm
    max_subjects: ClassVar[int] = 1  # 0: it is about no row in particular
    is_dangerous: ClassVar[bool] = False

    def applies_to(self, row: Any) -> bool:
        """Whether it could be done to this row as it stands: else it has no button."""
        return True

    def is_allowed_for(self, request: HttpRequest, row: Any) -> bool:
        """Whether who asks may do it to this row, given that they may do it at all."""
        return True

    def describe(self, row: Any) -> str:
        """What its page says of this row, beside what it is called by."""
        return str(row)

    def initial(self, row: Any) -> dict[str, Any]:
        """What its form begins with."""
        return {}

    def perform(self, by: Actor, subjects: Sequence[Any], **fields: Any) -> ActionResult:
        """Do it by one call of a service; a refusal is raised."""
        raise NotImplementedError


def is_permitted(request: HttpRequest, action: OperatorAction) -> bool:
    return request.user.has_perm(action.permission)


def action_url(model: type[Model], action: OperatorAction, *rows: Model) -> str:
    path = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{action.name.replace('-', '_')}")
    return f"{path}?{urlencode([('id', row.pk) for row in rows])}" if rows else path


def action_page(
    request: HttpRequest, action: OperatorAction, model: type[Model], context: dict[str, Any]
) -> HttpResponse:
    """Ask, and when that is answered do it and say what came of it."""
    if not is_permitted(request, action):
        raise PermissionDenied
    subjects = _subjects(request, action, model)
    if not all(action.is_allowed_for(request, row) for row in subjects):
        raise PermissionDenied
    if action.max_subjects and not subjects:
        messages.warning(request, "Nothing was selected.")
        return HttpResponseRedirect(_return_url(model, subjects))
    initial = action.initial(subjects[0]) if len(subjects) == 1 else {}
    form = action.form_class(request.POST if request.method == "POST" else None, initial=initial)
    if request.method == "POST" and form.is_valid():
        try:
            result = action.perform(actor_of(request), subjects, **form.cleaned_data)
        except (ExchangeError, OperationalError, InterfaceError) as error:
            _add_errors(form, _as_exchange_error(error))
        else:
            return _result_response(request, action, model, subjects, result, context)
    return TemplateResponse(
        request,
        "backoffice/action.html",
        {
            **context,
            "title": action.label,
            "operator_action": action,
            "form": form,
            "subjects": [action.describe(row) for row in subjects],
            "back_url": _return_url(model, subjects),
        },
    )


def _subjects(request: HttpRequest, action: OperatorAction, model: type[Model]) -> list[Any]:
    """The rows that the action is about, in the order of their keys; 404 where one does not exist, or for too many."""
    if not action.max_subjects:
        return []
    ids = list(dict.fromkeys(request.GET.getlist("id")))
    try:
        rows = list(model._default_manager.filter(pk__in=ids[: action.max_subjects + 1]).order_by("pk"))
    except (ValueError, forms.ValidationError) as error:  # what is no id of these rows
        raise Http404 from error
    if len(ids) > action.max_subjects or len(rows) != len(ids):
        raise Http404
    return rows


def _as_exchange_error(error: Exception) -> ExchangeError:
    """Why it was not done; of a database that failed, whether that is certain."""
    if isinstance(error, ExchangeError):
        return error
    refusal = as_exchange_error(error)
    if isinstance(refusal, OutcomeUnknown):
        return OutcomeUnknown("It is not known whether this was done: look, before you press again.")
    return refusal


def _add_errors(form: forms.Form, refusal: ExchangeError) -> None:
    """Say on the form why the service refused."""
    for error in refusal.errors:
        if error.field in form.fields:
            form.add_error(error.field, error.detail)
        else:
            form.add_error(None, f"{error.field}: {error.detail}")
    if not refusal.errors:
        form.add_error(None, refusal.detail)


def _return_url(model: type[Model], subjects: Sequence[Model]) -> str:
    """Where one came from: the row, or the list."""
    return page_url(model, subjects[0].pk) if len(subjects) == 1 else list_url(model)


def _result_response(
    request: HttpRequest,
    action: OperatorAction,
    model: type[Model],
    subjects: Sequence[Any],
    result: ActionResult,
    context: dict[str, Any],
) -> HttpResponse:
    next_url = result.url or _return_url(model, subjects)
    if result.secret:  # shown by this answer alone: a message would be stored on its way
        shown = {**context, "title": action.label, "action_result": result, "back_url": next_url}
        return TemplateResponse(request, "backoffice/secret.html", shown)
    messages.add_message(request, messages.WARNING if result.is_warning else messages.SUCCESS, result.message)
    return HttpResponseRedirect(next_url)
