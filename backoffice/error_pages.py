"""Error pages of the back office."""

import sys
from http import HTTPStatus

import structlog
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db import DataError, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.views import defaults

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


def overloaded() -> HttpResponse:
    """Return the 503 page. Rendering it needs no database connection."""
    page = render_to_string("503.html")
    return HttpResponse(page, status=HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Error page for a form that was not sent from a page of the current session."""
    message = "The form was not sent from a page of this session, so nothing was done. Reload the page and try again."
    return _page(request, 403, "Form rejected", message)


def _page(request: HttpRequest, status: int, title: str, message: str) -> HttpResponse:
    context = {**admin.site.each_context(request), "title": title, "message": message}
    layout = "backoffice/page.html" if context["has_permission"] else "backoffice/signed_out.html"
    return render(request, "backoffice/error.html", {**context, "layout": layout}, status=status)
