"""How refusals look in the back office: pages, where the API answers with problems."""

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
    return _page(request, 403, "Not allowed", "Your groups do not allow this. An administrator can change that.")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler404`."""
    return _page(request, 404, "Not found", "There is nothing at this address, or no longer.")


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's `handler500`: an exception that no view handled."""
    exception = sys.exception()
    if isinstance(exception, DataError | ValidationError):  # what the admin takes from a request unchecked
        return bad_request(request, exception)
    if isinstance(exception, OperationalError | InterfaceError):
        as_exchange_error(exception)  # logs it, and replaces connections that PostgreSQL has closed
        return overloaded()
    _log.exception("unexpected")
    return defaults.server_error(request)


def overloaded() -> HttpResponse:
    """The page for too much at once; rendering it takes no connection to the database."""
    page = render_to_string("503.html")
    return HttpResponse(page, status=HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """A form that did not come from a page of ours, or from one of an earlier login."""
    told = "The form was not sent from a page of this session, so nothing was done. Open the page again, and repeat it."
    return _page(request, 403, "Form refused", told)


def _page(request: HttpRequest, status: int, title: str, told: str) -> HttpResponse:
    context = {**admin.site.each_context(request), "title": title, "told": told}
    layout = "backoffice/page.html" if context["has_permission"] else "backoffice/signed_out.html"
    return render(request, "backoffice/error.html", {**context, "layout": layout}, status=status)
