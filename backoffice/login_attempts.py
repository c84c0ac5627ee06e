"""Attempts to log in are limited: few for one user from one address, more for an address whoever it tries to be.

There is no limit for a user alone: by it anybody, from anywhere, could keep an operator from the kill switch. And a
browser in which the user has logged in before is counted by itself, whatever others do at its address.
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

MAX_NAME_LENGTH = 150  # of a user, says Django

Credentials = dict[str, Any] | None


class LoginLimitHandler(AxesDatabaseHandler):  # type: ignore[misc]  # axes is not typed
    """axes' own, which counts the failures of a user from an address, with the limit of the address beside it."""

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
    """The client's address as axes counts it, or that of the user's known device."""
    device = known_devices.known_device(request)
    return device.address if device else network_of(request.META)


def attempted_username(request: HttpRequest, credentials: Credentials) -> str:
    """Whom one tried to be, as far as a user's name may be long."""
    told = request.POST if credentials is None else credentials
    return str(told.get("username", ""))[:MAX_NAME_LENGTH]


def lockout_response(request: HttpRequest, response: HttpResponse, credentials: Credentials) -> HttpResponse:
    """What who tried too often sees, with a good password too."""
    minutes = int(settings.LOGIN_LOCKOUT.total_seconds() // 60)
    context = {**admin.site.each_context(request), "title": "Too many attempts", "minutes": minutes}
    answer = render(request, "backoffice/locked_out.html", context, status=429)
    answer["Retry-After"] = str(minutes * 60)
    return answer
