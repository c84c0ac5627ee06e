"""Second login step: a code of the user's authenticator, or a recovery code.

Enrolled users need it at every login. With `TWO_FACTOR_REQUIRED`, other users must enrol before anything else. A
session stores the device that verified it and must be verified again if that device is replaced. A reset ends all
sessions of the user.
"""

import time
from base64 import b32encode
from binascii import unhexlify
from typing import Any

import django_otp
import segno
import structlog
from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import User
from django.contrib.sessions.exceptions import SessionInterrupted
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django_otp.oath import TOTP
from django_otp.plugins.otp_static.models import StaticDevice, StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice, default_key

from backoffice import known_devices, sessions
from backoffice.operator_actions import actor_of
from exchange import audit
from exchange.audit import Action, Actor, Entry

CODE_DIGITS = 6  # length of an authenticator code; recovery codes are longer
TOLERATED_STEPS = 1  # clock difference of the authenticator, in steps of 30 seconds
_SESSION_KEY = "two_factor_key"  # in the enrolling session, so that no other session sees the key

_log = structlog.get_logger(__name__)


# --- Requirement ----------------------------------------------------------------------------------------------------


def needs_verification(request: HttpRequest) -> bool:
    """True if the second step is required and not done yet."""
    user: Any = request.user
    return not user.is_verified() and is_required_for(user)


def is_required_for(user: Any) -> bool:
    """True if the user's logins have a second step."""
    return bool(settings.TWO_FACTOR_REQUIRED or has_device(user))


def has_device(user: Any) -> bool:
    """True if the user has enrolled. The result is cached on the request's user."""
    if not hasattr(user, "has_second_factor"):
        user.has_second_factor = TOTPDevice.objects.filter(user=user, confirmed=True).exists()
    return bool(user.has_second_factor)


def redirect_to_second_step(request: HttpRequest) -> HttpResponseRedirect:
    """Redirect to the second step, which continues to the requested page."""
    name = "admin:two_factor" if has_device(request.user) else "admin:two_factor_setup"
    return HttpResponseRedirect(f"{reverse(name)}?{urlencode({'next': next_url(request)})}")


def next_url(request: HttpRequest) -> str:
    """Return the page to continue to. A URL of another site is replaced by the dashboard."""
    wanted = request.POST.get("next", request.GET.get("next", ""))
    is_own_site = url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure())
    return wanted if is_own_site else reverse("admin:index")


# --- Devices --------------------------------------------------------------------------------------------------------


def enrol(request: HttpRequest, key: str, totp: TOTP) -> tuple[TOTPDevice, list[str]]:
    """Replace the user's authenticator. Return the new device and its recovery codes."""
    user: Any = request.user
    with transaction.atomic():
        User.objects.select_for_update().get(pk=user.pk)  # concurrent tabs create one device
        if not request.session.exists(request.session.session_key or ""):  # reset in the meantime
            raise SessionInterrupted("The session has ended.")
        _delete_devices(user)
        fields = {"name": "Authenticator", "key": key, "drift": totp.drift, "last_t": totp.t()}
        device = TOTPDevice.objects.create(user=user, **fields)
        recovery = StaticDevice.objects.create(user=user, name="Recovery codes")
        codes = [StaticToken.random_token() for _ in range(settings.RECOVERY_CODES)]
        StaticToken.objects.bulk_create(StaticToken(device=recovery, token=code) for code in codes)
        audit.record(Entry.of(actor_of(request), Action.USER_ENROL, user.get_username()))
    return device, codes


def reset(user: User, *, by: Actor, reason: str) -> bool:
    """Delete the user's second factor and end all their sessions. Return False if there was none."""
    with transaction.atomic():
        User.objects.select_for_update().get(pk=user.pk)
        if not _delete_devices(user):
            return False
        sessions.end_all_of(user)
        audit.record(Entry.of(by, Action.USER_RESET, user.get_username(), reason=reason))
    return True


def _delete_devices(user: Any) -> bool:
    authenticators, _ = TOTPDevice.objects.filter(user=user).delete()
    recovery, _ = StaticDevice.objects.filter(user=user).delete()
    return bool(authenticators or recovery)


def verify_code(user: Any, code: str) -> TOTPDevice | StaticDevice | None:
    """Return the user's device that the code belongs to and use the code up. Wrong codes delay the next attempt."""
    model = TOTPDevice if len(code) == CODE_DIGITS else StaticDevice
    with transaction.atomic():
        for device in model.objects.select_for_update().filter(user=user, confirmed=True):
            if device.verify_token(code):
                return device
    return None


# --- Pages ----------------------------------------------------------------------------------------------------------


class CodeForm(forms.Form):
    """Form for a code, with or without spaces."""

    code = forms.CharField(
        max_length=20,
        widget=forms.TextInput({"autocomplete": "one-time-code", "autocapitalize": "off", "spellcheck": "false"}),
    )

    def clean_code(self) -> str:
        return "".join(str(self.cleaned_data["code"]).split()).lower()


def verify(request: HttpRequest) -> HttpResponse:
    """Page of the second step, which asks for a code."""
    if not needs_verification(request):
        return HttpResponseRedirect(next_url(request))
    if not has_device(request.user):
        return redirect_to_second_step(request)
    form = CodeForm(request.POST or None)
    form.fields["code"].help_text = "Six-digit code from your authenticator, or a recovery code."
    form.fields["code"].widget.attrs["autofocus"] = True
    if form.is_valid():
        if device := verify_code(request.user, form.cleaned_data["code"]):
            _mark_verified(request, device)
            return known_devices.remember(request.user, HttpResponseRedirect(next_url(request)))
        _log.warning("second_factor_refused", user=request.user.get_username(), address=actor_of(request).address)
        form.add_error(
            "code", "The code is invalid or was already used, or you must wait after a wrong code. Try the next code."
        )
    return _page(request, "backoffice/two_factor/verify.html", "Two-factor login", form=form)


def setup(request: HttpRequest) -> HttpResponse:
    """Page to enrol, or to change to another authenticator."""
    if needs_verification(request) and has_device(request.user):
        return redirect_to_second_step(request)
    key = request.session.setdefault(_SESSION_KEY, default_key())
    form = CodeForm(request.POST or None)
    form.fields["code"].help_text = "Six-digit code that the authenticator shows now."
    if form.is_valid():
        totp = _matching_totp(key, form.cleaned_data["code"])
        if totp is not None:
            return _enrol_response(request, key, totp)
        form.add_error("code", "The code does not match. Check the clock of your phone and try again.")
    secret = b32encode(unhexlify(key)).decode()
    uri = TOTPDevice(user=request.user, key=key).config_url
    return _page(
        request,
        "backoffice/two_factor/setup.html",
        "Two-factor login",
        form=form,
        is_enrolled=has_device(request.user),
        secret=" ".join(secret[start : start + 4] for start in range(0, len(secret), 4)),
        qr=segno.make(uri, error="m").svg_inline(scale=4, border=2, light="white"),
    )


def _matching_totp(key: str, code: str) -> TOTP | None:
    """Return the key's TOTP with the authenticator's clock drift, or None if the code does not match."""
    totp = TOTP(unhexlify(key))
    totp.time = time.time()
    return totp if code.isdecimal() and totp.verify(int(code), TOLERATED_STEPS) else None


def _enrol_response(request: HttpRequest, key: str, totp: TOTP) -> HttpResponse:
    """Enrol, and show the recovery codes in this response only."""
    device, codes = enrol(request, key, totp)
    del request.session[_SESSION_KEY]
    _mark_verified(request, device)
    shown = [f"{code[:4]} {code[4:]}" for code in codes]
    page = _page(request, "backoffice/two_factor/codes.html", "Recovery codes", codes=shown)
    return known_devices.remember(request.user, page)


def _mark_verified(request: HttpRequest, device: TOTPDevice | StaticDevice) -> None:
    """Mark the session as verified and change its key, because it now grants more access."""
    django_otp.login(request, device)
    request.session.cycle_key()


def _page(request: HttpRequest, template: str, title: str, **context: Any) -> HttpResponse:
    """Render a page in the back office layout for verified users, otherwise in the login layout."""
    shown = {**admin.site.each_context(request), "title": title, "next": next_url(request), **context}
    layout = "backoffice/page.html" if shown["has_permission"] else "backoffice/signed_out.html"
    return render(request, template, {**shown, "layout": layout})
