"""Secrets that are shown once, on the page after a redirect, so that reloading it does not repeat the action.

A one-time pad encrypts the secret. The session stores the result, and a cookie the pad, so no table, backup or log can
reveal the secret. The first display removes both.
"""

import secrets

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

PARAMETER = "shown"  # its value is the number of the secret


def redirect_to_secret(request: HttpRequest, secret: str, **texts: str) -> HttpResponseRedirect:
    """Keep the secret and the texts of its page, and redirect to the same path, which takes them."""
    number, pad = secrets.token_hex(8), secrets.token_bytes(len(secret))
    request.session[_name(number)] = {**texts, "secret": _xor(secret.encode(), pad).hex()}
    query = request.GET.copy()
    query[PARAMETER] = number
    response = HttpResponseRedirect(f"{request.path}?{query.urlencode()}")
    response.set_cookie(
        _name(number),
        pad.hex(),
        max_age=settings.ONE_TIME_SECRET_AGE,
        path=request.path,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Strict",
    )
    return response


def take_secret(request: HttpRequest) -> dict[str, str] | None:
    """Remove the secret from the session. Return it with its texts, or None if it was shown before."""
    name = _name(request.GET[PARAMETER])
    try:
        pad = bytes.fromhex(request.COOKIES[name])
        kept: dict[str, str] = request.session.pop(name)
        return kept | {"secret": _xor(bytes.fromhex(kept["secret"]), pad).decode()}
    except (KeyError, ValueError):  # shown before, or no cookie of this secret
        return None


def forget_secret(request: HttpRequest, response: HttpResponse) -> None:
    """Remove the cookie."""
    response.delete_cookie(_name(request.GET[PARAMETER]), path=request.path, samesite="Strict")


def _name(number: str) -> str:
    return f"secret_{number}"


def _xor(text: bytes, pad: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(text, pad, strict=True))
