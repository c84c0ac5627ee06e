"""Browsers in which a user has logged in before. Failed logins of others at the same address do not lock them out.

A complete login sets a signed cookie that names the user and the browser. Later logins of that user are counted by
browser instead of by address, with the same limit, so an attacker gains nothing. A new password invalidates the cookie.
"""

import secrets
from ipaddress import IPv6Network
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.auth.models import User
from django.core import signing
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.crypto import constant_time_compare

COOKIE = "known_device"
_SALT = "backoffice.known_devices"
_NETWORK = IPv6Network("100::/64")  # discard-only (RFC 6666): axes counts by address, so each device gets one
_ID_BITS = 64


class Device(NamedTuple):
    """A browser, its user, and a value that changes with the user's password."""

    id: int
    username: str
    password: str

    @property
    def address(self) -> str:
        """The address that represents the device."""
        return str(_NETWORK[self.id])


def remember(user: Any, response: HttpResponse) -> HttpResponse:
    """Set the cookie after a complete login."""
    device = Device(secrets.randbits(_ID_BITS), user.get_username(), user.get_session_auth_hash())
    response.set_cookie(
        COOKIE,
        signing.dumps(device, salt=_SALT),
        max_age=settings.KNOWN_DEVICE_AGE,
        path=reverse("admin:index"),
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )
    return response


def claimed_device(request: HttpRequest) -> Device | None:
    """Return the cookie's device if it belongs to the submitted user. No database access."""
    try:
        values = signing.loads(request.COOKIES.get(COOKIE, ""), salt=_SALT, max_age=settings.KNOWN_DEVICE_AGE)
    except signing.BadSignature:
        return None
    device = Device(*values)
    return device if device.username == request.POST.get("username") else None


def known_device(request: HttpRequest) -> Device | None:
    """Return the claimed device if the user's password has not changed since."""
    device = claimed_device(request)
    user = User.objects.filter(username=device.username).first() if device else None
    if device and user and constant_time_compare(user.get_session_auth_hash(), device.password):
        return device
    return None
