"""The second step of a login: a code of the user's authenticator, or one of the recovery codes written down once.

Who has enrolled takes it at every login; where `TWO_FACTOR_REQUIRED`, who has not enrols before anything else. A
session remembers by which device it was verified, and is asked again when another takes its place; a reset ends all.
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

CODE_DIGITS = 6  # of the authenticator; a recovery code is longer
TOLERATED_STEPS = 1  # of 30 seconds, that the authenticator's clock may be off
_SESSION_KEY = "two_factor_key"  # in the session that enrols: nobody else has seen it

_log = structlog.get_logger(__name__)


# --- Who needs it ---------------------------------------------------------------------------------------------------


def needs_verification(request: HttpRequest) -> bool:
    """Whether the second step is still to be taken."""
    user: Any = request.user
    return not user.is_verified() and is_required_for(user)


def is_required_for(user: Any) -> bool:
    """Whether a login of the user has a second step."""
    return bool(settings.TWO_FACTOR_REQUIRED or has_device(user))


def has_device(user: Any) -> bool:
    """Whether the user has enrolled; asked once for a request's user."""
    if not hasattr(user, "has_second_factor"):
        user.has_second_factor = TOTPDevice.objects.filter(user=user, confirmed=True).exists()
    return bool(user.has_second_factor)


def redirect_to_second_step(request: HttpRequest) -> HttpResponseRedirect:
    """To the second step, and from there to where the request wanted to go."""
    name = "admin:two_factor" if has_device(request.user) else "admin:two_factor_setup"
    return HttpResponseRedirect(f"{reverse(name)}?{urlencode({'next': next_url(request)})}")


def next_url(request: HttpRequest) -> str:
    """Where to go afterwards: a page of ours, whatever was asked for."""
    wanted = request.POST.get("next", request.GET.get("next", ""))
    is_ours = url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure())
    return wanted if is_ours else reverse("admin:index")


# --- What is done ---------------------------------------------------------------------------------------------------


def enrol(request: HttpRequest, key: str, totp: TOTP) -> tuple[TOTPDevice, list[str]]:
    """Give the user this authenticator, in place of whatever they had; it and its recovery codes."""
    user: Any = request.user
    with transaction.atomic():
        User.objects.select_for_update().get(pk=user.pk)  # two tabs at once leave one device
        if not request.session.exists(request.session.session_key or ""):  # a reset came first
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
    """Take the user's second factor away, and every session with it; False when there was none."""
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
    """The device of the user's whose code this is, which it then has used up; wrong ones make the next wait."""
    model = TOTPDevice if len(code) == CODE_DIGITS else StaticDevice
    with transaction.atomic():
        for device in model.objects.select_for_update().filter(user=user, confirmed=True):
            if device.verify_token(code):
                return device
    return None


# --- Pages ----------------------------------------------------------------------------------------------------------


class CodeForm(forms.Form):
    """A code, with or without the spaces it is shown with."""

    code = forms.CharField(
        max_length=20,
        widget=forms.TextInput({"autocomplete": "one-time-code", "autocapitalize": "off", "spellcheck": "false"}),
    )

    def clean_code(self) -> str:
        return "".join(str(self.cleaned_data["code"]).split()).lower()


def verify(request: HttpRequest) -> HttpResponse:
    """The page that asks for a code."""
    if not needs_verification(request):
        return HttpResponseRedirect(next_url(request))
    if not has_device(request.user):
        return redirect_to_second_step(request)
    form = CodeForm(request.POST or None)
    form.fields["code"].help_text = "Six digits of your authenticator, or a recovery code."
    form.fields["code"].widget.attrs["autofocus"] = True
    if form.is_valid():
        if device := verify_code(request.user, form.cleaned_data["code"]):
            _mark_verified(request, device)
            return known_devices.remember(request.user, HttpResponseRedirect(next_url(request)))
        _log.warning("second_factor_refused", user=request.user.get_username(), address=actor_of(request).address)
        form.add_error("code", "This code is not valid, was used before, or came too soon after a wrong one.")
    return _page(request, "backoffice/two_factor/verify.html", "Second step", form=form)


def setup(request: HttpRequest) -> HttpResponse:
    """The page on which a user enrols, or moves to another authenticator."""
    if needs_verification(request) and has_device(request.user):
        return redirect_to_second_step(request)
    key = request.session.setdefault(_SESSION_KEY, default_key())
    form = CodeForm(request.POST or None)
    form.fields["code"].help_text = "Six digits that the authenticator shows now."
    if form.is_valid():
        totp = _matching_totp(key, form.cleaned_data["code"])
        if totp is not None:
            return _enrol_response(request, key, totp)
        form.add_error("code", "This is not what the authenticator should show. Is the clock of your phone right?")
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
    """The key's clock, set to the authenticator's, if that shows this code."""
    totp = TOTP(unhexlify(key))
    totp.time = time.time()
    return totp if code.isdecimal() and totp.verify(int(code), TOLERATED_STEPS) else None


def _enrol_response(request: HttpRequest, key: str, totp: TOTP) -> HttpResponse:
    """The recovery codes, in this answer alone."""
    device, codes = enrol(request, key, totp)
    del request.session[_SESSION_KEY]
    _mark_verified(request, device)
    shown = [f"{code[:4]} {code[4:]}" for code in codes]
    page = _page(request, "backoffice/two_factor/codes.html", "Recovery codes", codes=shown)
    return known_devices.remember(request.user, page)


def _mark_verified(request: HttpRequest, device: TOTPDevice | StaticDevice) -> None:
    """From here on the session is worth more: its key is a new one."""
    django_otp.login(request, device)
    request.session.cycle_key()


def _page(request: HttpRequest, template: str, title: str, **context: Any) -> HttpResponse:
    """In the back office for who is in, else as the login looks."""
    shown = {**admin.site.each_context(request), "title": title, "next": next_url(request), **context}
    layout = "backoffice/page.html" if shown["has_permission"] else "backoffice/signed_out.html"
    return render(request, template, {**shown, "layout": layout})
