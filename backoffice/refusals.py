"""Rejections in the back office are pages of its own. Those of the API are problems: `exchange.http.problems`."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from exchange.http import problems


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler403`."""
    if not _is_in_the_office(request):
        return problems.permission_denied(request, exception)
    return _page(request, 403, "Not allowed", "Your groups do not allow this. An administrator can change that.")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler404`."""
    if not _is_in_the_office(request):
        return problems.not_found(request, exception)
    return _page(request, 404, "Not found", "There is nothing at this address, or no longer.")


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """A form that did not come from a page of ours, or from one of an earlier login."""
    told = "The form was not sent from a page of this session, so nothing was done. Open the page again, and repeat it."
    return _page(request, 403, "Form refused", told)


def _is_in_the_office(request: HttpRequest) -> bool:
    return request.path.startswith("/admin/") and hasattr(request, "user")


def _page(request: HttpRequest, status: int, title: str, told: str) -> HttpResponse:
    context = {**admin.site.each_context(request), "title": title, "told": told}
    layout = "backoffice/page.html" if context["has_permission"] else "backoffice/outside.html"
    return render(request, "backoffice/refusal.html", {**context, "layout": layout}, status=status)
