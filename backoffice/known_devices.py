"""Browsers in which a user has logged in before: failures of others at the same address do not lock them out.

A full login leaves a signed cookie, which names the user and the browser. With it a login of that user is counted by
browser, where others are counted by address: the limit of the user is the same, and strangers gain nothing. A new
password makes the cookie worthless.
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
_NETWORK = IPv6Network("100::/64")  # of no host (RFC 6666): axes counts by address, and a device needs one
_ID_BITS = 64


class Device(NamedTuple):
    """A browser, the user that logged in there, and what changes with the user's password."""

    id: int
    username: str
    password: str

    @property
    def address(self) -> str:
        """The address that stands for the device."""
        return str(_NETWORK[self.id])


def remember(user: Any, response: HttpResponse) -> HttpResponse:
    """Leave the cookie in the browser in which the user has just taken every step of the login."""
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
    """The device, if a login comes from one of the user it names; found out without the database."""
    try:
        values = signing.loads(request.COOKIES.get(COOKIE, ""), salt=_SALT, max_age=settings.KNOWN_DEVICE_AGE)
    except signing.BadSignature:
        return None
    device = Device(*values)
    return device if device.username == request.POST.get("username") else None


def known_device(request: HttpRequest) -> Device | None:
    """The same, if the user's password is still the one that was used there."""
    device = claimed_device(request)
    user = User.objects.filter(username=device.username).first() if device else None
    if device and user and constant_time_compare(user.get_session_auth_hash(), device.password):
        return device
    return None
