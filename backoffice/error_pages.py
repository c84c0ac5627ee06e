"""Error pages of the back office."""

import sys
from http import HTTPStatus

import structlog
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db import DataError, InterfaceError, OperationalError
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.urls import reverse
from django.views import defaults

from backoffice.links import list_url
from exchange.http.problems import RETRY_AFTER_SECONDS, as_exchange_error

bad_request = defaults.bad_request  # Django's `handler400`

_log = structlog.get_logger(__name__)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler403`."""
    return _page(
        request, 403, "Permission denied", "You don't have permission. An administrator can change your groups."
    )


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler404`."""
    return _page(request, 404, "Not found", "This page does not exist.")


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's `handler500`, for exceptions that no view handled."""
    exception = sys.exception()
    if isinstance(exception, DataError | ValidationError):  # request data that the admin does not validate
        return bad_request(request, exception)
    if isinstance(exception, OperationalError | InterfaceError):
        as_exchange_error(exception)  # logs it and replaces lost connections
        return overloaded()
    _log.exception("unexpected")
    return defaults.server_error(request)


def invalid_filter(request: HttpRequest, model: type[Model], message: str) -> HttpResponse:
    """Return the 400 page for the URL of a list. Without the filter, the list would show other rows than expected."""
    link = f"Show all {model._meta.verbose_name_plural}"
    return _page(request, 400, "Invalid filter", f"{message} Nothing is shown.", list_url(model), link)


def overloaded() -> HttpResponse:
    """Return the 503 page. Rendering it needs no database connection."""
    page = render_to_string("503.html")
    return HttpResponse(page, status=HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Error page for a form that was not sent from a page of the current session."""
    message = "The form was not sent from a page of this session, so nothing was done. Reload the page and try again."
    return _page(request, 403, "Form rejected", message)


def _page(
    request: HttpRequest, status: int, title: str, message: str, url: str = "", link: str = "Go to dashboard"
) -> HttpResponse:
    shown = {"title": title, "message": message, "url": url or reverse("admin:index"), "link": link}
    context = {**admin.site.each_context(request), **shown}
    layout = "backoffice/page.html" if context["has_permission"] else "backoffice/signed_out.html"
    return render(request, "backoffice/error.html", {**context, "layout": layout}, status=status)
