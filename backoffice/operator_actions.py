"""Operator actions: a permission, a form and one call of a service.

Each action has its own page, which names the rows, shows the impact and asks for a reason before anything is done.
Actions run outside any transaction of the admin and call the same services as the API.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlencode

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import InterfaceError, OperationalError
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html

from backoffice import one_time_secrets
from backoffice.links import list_url, page_url
from exchange.audit import Actor, ActorKind, address_of
from exchange.errors import ExchangeError, OutcomeUnknown
from exchange.http.middleware import request_id_of
from exchange.http.problems import as_exchange_error
from exchange.rules import MAX_REASON_LENGTH

MAX_SUBJECTS = 500  # rows of one action
LIST_QUERY = "_changelist_filters"  # Django's parameter for the query of the list that the user came from


def actor_of(request: HttpRequest) -> Actor:
    """Return the signed-in user as an actor of the audit log."""
    return Actor(ActorKind.USER, request.user.get_username(), address_of(request.META), request_id_of(request.META))


class ReasonForm(forms.Form):
    """Base of action forms, with the required reason."""

    reason = forms.CharField(max_length=MAX_REASON_LENGTH, help_text="Recorded in the audit log.")


@dataclass(frozen=True, slots=True)
class ActionResult:
    """The outcome of an action as shown to the user. A secret is shown once."""

    message: str
    secret: str = ""
    is_warning: bool = False  # done in part, or already done before
    url: str = ""  # where to continue, if not on the page the user came from


@dataclass(frozen=True, slots=True)
class Impact:
    """A table of figures that an action affects. The first cell of each row is its heading."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class OperatorAction:
    """An action on one row of a model, on several rows, or on the model as a whole."""

    name: ClassVar[str]  # in its URL
    label: ClassVar[str]  # without its object, for lists: "Cancel"
    label_format: ClassVar[str] = ""  # with one row; by default the label, then the row
    back_label: ClassVar[str] = "Back"
    explanation: ClassVar[str]  # on its page: the effect
    permission: ClassVar[str]  # "app.codename"
    form_class: ClassVar[type[forms.Form]] = ReasonForm
    max_subjects: ClassVar[int] = 1  # 0: it applies to no row in particular
    is_dangerous: ClassVar[bool] = False
    is_reviewed: ClassVar[bool] = False  # it always has `changes` to confirm

    def label_for(self, rows: Sequence[Any]) -> str:
        """Return the action with its object: "Halt AAPL", "Cancel 5 orders"."""
        if not rows:
            return self.label
        if len(rows) > 1:
            return f"{self.label} {len(rows):,} {rows[0]._meta.verbose_name_plural}"
        return self.label_format.format(rows[0]) if self.label_format else f"{self.label} {rows[0]}"

    def applies_to(self, row: Any) -> bool:
        """True if the row's state allows the action. Otherwise it has no button."""
        return True

    def is_allowed_for(self, request: HttpRequest, row: Any) -> bool:
        """True if the user may do it to this row, given the permission to do it at all."""
        return True

    def describe(self, row: Any) -> str:
        """Describe the row on the action's page."""
        return str(row)

    def impact(self, rows: Sequence[Any]) -> Impact | None:
        """Return the current figures of the rows."""
        return None

    def changes(self, rows: Sequence[Any], **fields: Any) -> Impact | None:
        """Return the changes by the values of the form, which the user must confirm. None: nothing to confirm."""
        return None

    def initial(self, row: Any) -> dict[str, Any]:
        """Return the initial values of the form."""
        return {}

    def error_url(self, row: Any, code: str, value: Any) -> str:
        """Return the URL of the objects that cause the error with this code, or ""."""
        return ""

    def perform(self, by: Actor, subjects: Sequence[Any], **fields: Any) -> ActionResult:
        """Do it with one call of a service, which raises its rejections."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class ActionButton:
    """A link to the page of an action."""

    text: str
    url: str
    is_dangerous: bool = False


def action_button(model: type[Model], action: OperatorAction, *rows: Model) -> ActionButton:
    return ActionButton(action.label_for(rows), action_url(model, action, *rows), action.is_dangerous)


def action_url(model: type[Model], action: OperatorAction, *rows: Model) -> str:
    path = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{action.name.replace('-', '_')}")
    return f"{path}?{urlencode([('id', row.pk) for row in rows])}" if rows else path


def open_for_selection(action: OperatorAction, model_admin: Any, request: HttpRequest, rows: Any) -> HttpResponse:
    """Redirect from a changelist to the action's page, which asks for a reason. Django calls it as an admin action."""
    query = urlencode([("id", row.pk) for row in rows] + [(LIST_QUERY, request.GET.urlencode())])
    return HttpResponseRedirect(f"{action_url(model_admin.model, action)}?{query}")


def is_permitted(request: HttpRequest, action: OperatorAction) -> bool:
    return request.user.has_perm(action.permission)


def action_page(
    request: HttpRequest, action: OperatorAction, model: type[Model], context: dict[str, Any]
) -> HttpResponse:
    """Show the form of an action; on submission, perform the action and show its result."""
    if not is_permitted(request, action):
        raise PermissionDenied
    subjects = _subjects(request, action, model)
    if not all(action.is_allowed_for(request, row) for row in subjects):
        raise PermissionDenied
    return_url = _return_url(request, model, subjects)
    if action.max_subjects and not subjects:
        messages.warning(request, f"Select at least one {model._meta.verbose_name}.")
        return HttpResponseRedirect(return_url)
    context = {**context, "title": action.label_for(subjects)}
    if one_time_secrets.PARAMETER in request.GET:
        return _secret_page(request, return_url, context)
    initial = action.initial(subjects[0]) if len(subjects) == 1 else {}
    form = action.form_class(request.POST if request.method == "POST" else None, initial=initial)
    changes = action.changes(subjects, **form.cleaned_data) if form.is_valid() else None
    if form.is_valid() and (changes is None or request.POST.get("confirmed") == _digest(form)):
        changes = None
        try:
            result = action.perform(actor_of(request), subjects, **form.cleaned_data)
        except (ExchangeError, OperationalError, InterfaceError) as error:
            _add_errors(form, _as_exchange_error(error), action, subjects)
        else:
            return _result_response(request, result, result.url or return_url)
    return TemplateResponse(
        request,
        "backoffice/action.html",
        {
            **context,
            "operator_action": action,
            "form": form,
            "impact": action.impact(subjects),
            "changes": changes,
            "digest": _digest(form) if changes else "",
            "subjects": [action.describe(row) for row in subjects],
            "back_url": return_url,
        },
    )


def _digest(form: forms.Form) -> str:
    """Return a digest of the values of a form, to confirm exactly these."""
    return hashlib.sha256(urlencode([(name, form.data.get(name, "")) for name in form.fields]).encode()).hexdigest()


def _subjects(request: HttpRequest, action: OperatorAction, model: type[Model]) -> list[Any]:
    """Return the selected rows, ordered by key. Raise 404 if one does not exist or there are too many."""
    if not action.max_subjects:
        return []
    ids = list(dict.fromkeys(request.GET.getlist("id")))
    try:
        rows = list(model._default_manager.filter(pk__in=ids[: action.max_subjects + 1]).order_by("pk"))
    except (ValueError, forms.ValidationError) as error:  # a malformed id
        raise Http404 from error
    if len(ids) > action.max_subjects or len(rows) != len(ids):
        raise Http404
    return rows


def _as_exchange_error(error: Exception) -> ExchangeError:
    """Convert a database error to a rejection, which says whether the outcome is known."""
    if isinstance(error, ExchangeError):
        return error
    refusal = as_exchange_error(error)
    if isinstance(refusal, OutcomeUnknown):
        return OutcomeUnknown("The outcome is unknown. Check whether it was done before you try again.")
    return refusal


def _add_errors(form: forms.Form, refusal: ExchangeError, action: OperatorAction, subjects: Sequence[Any]) -> None:
    """Add the service's errors to the form, with links to their causes."""
    values = dict(form.cleaned_data)  # `add_error` removes the values of invalid fields
    for error in refusal.errors:
        if error.field not in form.fields:
            form.add_error(None, f"{error.field}: {error.detail}")
            continue
        url = action.error_url(subjects[0], error.code, values[error.field]) if subjects else ""
        shown = (
            format_html('{} <a class="o-link" href="{}">Show orders</a>', error.detail, url) if url else error.detail
        )
        form.add_error(error.field, shown)
    if not refusal.errors:
        form.add_error(None, refusal.detail)


def _return_url(request: HttpRequest, model: type[Model], subjects: Sequence[Model]) -> str:
    """Return the page that the user came from: the list with its filters, or the row's."""
    query = QueryDict(request.GET.get(LIST_QUERY)).urlencode()
    if len(subjects) == 1 and LIST_QUERY not in request.GET:
        return page_url(model, subjects[0].pk)
    return f"{list_url(model)}?{query}" if query else list_url(model)


def _result_response(request: HttpRequest, result: ActionResult, next_url: str) -> HttpResponse:
    """Redirect, so that reloading the next page does not repeat the action."""
    if result.secret:
        return one_time_secrets.redirect_to_secret(request, result.secret, message=result.message, url=next_url)
    messages.add_message(request, messages.WARNING if result.is_warning else messages.SUCCESS, result.message)
    return HttpResponseRedirect(next_url)


def _secret_page(request: HttpRequest, return_url: str, context: dict[str, Any]) -> HttpResponse:
    kept = one_time_secrets.take_secret(request)
    if kept is None:
        messages.warning(request, "The key was shown once and cannot be shown again. If you lost it, issue another.")
        return HttpResponseRedirect(return_url)
    response = TemplateResponse(request, "backoffice/secret.html", {**context, "shown": kept})
    one_time_secrets.forget_secret(request, response)
    return response
