"""Limits on failed logins: a low limit per user and address, and a higher limit per address for all users together.

There is no limit per user alone, because anyone could then lock an operator out of the kill switch. A browser in which
the user has logged in before is counted separately, so failures of others at its address do not affect it.
"""

from typing import Any

from axes.attempts import get_cool_off_threshold
from axes.handlers.database import AxesDatabaseHandler
from axes.models import AccessAttempt
from django.conf import settings
from django.contrib import admin
from django.db.models import Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from backoffice import known_devices
from exchange.audit import network_of

MAX_NAME_LENGTH = 150  # the limit of Django's user names

Credentials = dict[str, Any] | None


class LoginLimitHandler(AxesDatabaseHandler):  # type: ignore[misc]  # axes is not typed
    """The handler of axes, which limits failures per user and address, with an additional limit per address."""

    def get_failures(self, request: HttpRequest, credentials: Credentials = None) -> int:
        failures: int = super().get_failures(request, credentials)
        return max(failures, settings.LOGIN_FAILURES) if _is_address_locked_out(request) else failures


def _is_address_locked_out(request: Any) -> bool:
    attempts = AccessAttempt.objects.filter(
        ip_address=request.axes_ip_address, attempt_time__gte=get_cool_off_threshold(request)
    )
    failures = attempts.aggregate(failures=Sum("failures_since_start"))["failures"] or 0
    return bool(failures >= settings.LOGIN_FAILURES_OF_ADDRESS)


def client_address(request: HttpRequest) -> str | None:
    """Return the address to count failures by: the client's, or the one that stands for the user's known device."""
    device = known_devices.known_device(request)
    return device.address if device else network_of(request.META)


def attempted_username(request: HttpRequest, credentials: Credentials) -> str:
    """Return the submitted user name, cut to `MAX_NAME_LENGTH`."""
    source = request.POST if credentials is None else credentials
    return str(source.get("username", ""))[:MAX_NAME_LENGTH]


def lockout_response(request: HttpRequest, original_response: HttpResponse, credentials: Credentials) -> HttpResponse:
    """Lockout page, shown even for a correct password."""
    minutes = int(settings.LOGIN_LOCKOUT.total_seconds() // 60)
    context = {**admin.site.each_context(request), "title": "Too many failed logins", "minutes": minutes}
    response = render(request, "backoffice/locked_out.html", context, status=429)
    response["Retry-After"] = str(minutes * 60)
    return response
