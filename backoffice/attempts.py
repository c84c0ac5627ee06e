"""Attempts to log in are limited: few for one user from one address, more for an address whoever it tries to be.

There is no limit for a user alone: by it anybody, from anywhere, could keep an operator from the kill switch. And a
browser in which the user has logged in before is counted by itself, whatever others do at its address.
They are made one at a time, so that however many come, orders have the rest of the machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
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

_turn = Lock()
_places: list[str | None] = []  # the addresses of who has the turn, or waits for it
_changing_places = Lock()


@contextmanager
def turn(request: HttpRequest) -> Iterator[bool]:
    """Wait to be the only one in this web process who tries to log in; whether that came about.

    To hash a password takes a core a third of a second, and meanwhile its thread keeps a connection that orders may
    need: who waits must have none yet. And who is counted before the next is let in cannot try more often than allowed.
    """
    with _place(_origin(request)) as has_place:
        has_turn = has_place and _turn.acquire(timeout=settings.LOGIN_PATIENCE_SECONDS)
        try:
            yield has_turn
        finally:
            if has_turn:
                _turn.release()


@contextmanager
def _place(address: str | None) -> Iterator[bool]:
    """A place among those who wait; no address has so many that others would find none."""
    with _changing_places:
        is_free = len(_places) < settings.LOGIN_PLACES and _places.count(address) < settings.LOGIN_PLACES_OF_ADDRESS
        if is_free:
            _places.append(address)
    try:
        yield is_free
    finally:
        if is_free:
            with _changing_places:
                _places.remove(address)


class Handler(AxesDatabaseHandler):  # type: ignore[misc]  # axes is not typed
    """axes' own, which counts the failures of a user from an address, with the limit of the address beside it."""

    def get_failures(self, request: HttpRequest, credentials: Credentials = None) -> int:
        failures: int = super().get_failures(request, credentials)
        return max(failures, settings.LOGIN_FAILURES) if _is_address_out(request) else failures


def _is_address_out(request: Any) -> bool:
    attempts = AccessAttempt.objects.filter(
        ip_address=request.axes_ip_address, attempt_time__gte=get_cool_off_threshold(request)
    )
    failures = attempts.aggregate(failures=Sum("failures_since_start"))["failures"] or 0
    return bool(failures >= settings.LOGIN_FAILURES_OF_ADDRESS)


def address(request: HttpRequest) -> str | None:
    """The client's address as axes counts it, or that of the user's known device."""
    device = known_devices.known(request)
    return device.address if device else network_of(request.META)


def _origin(request: HttpRequest) -> str | None:
    """The same without asking the database: whoever waits holds no connection."""
    device = known_devices.claimed(request)
    return device.address if device else network_of(request.META)


def name_tried(request: HttpRequest, credentials: Credentials) -> str:
    """Whom one tried to be, as far as a user's name may be long."""
    told = request.POST if credentials is None else credentials
    return str(told.get("username", ""))[:MAX_NAME_LENGTH]


def locked_out(request: HttpRequest, response: HttpResponse, credentials: Credentials) -> HttpResponse:
    """What who tried too often sees, with a good password too."""
    minutes = int(settings.LOGIN_LOCKOUT.total_seconds() // 60)
    context = {**admin.site.each_context(request), "title": "Too many attempts", "minutes": minutes}
    answer = render(request, "backoffice/locked_out.html", context, status=429)
    answer["Retry-After"] = str(minutes * 60)
    return answer
