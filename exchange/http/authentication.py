"""DRF authentication with bearer keys."""

from collections.abc import Mapping
from typing import Any

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from exchange.errors import Unauthenticated
from exchange.keys import Principal, authenticate_key


class ApiKeyAuthentication(BaseAuthentication):
    """Authentication by `Authorization: Bearer <key>`. The principal is both `user` and `auth`."""

    def authenticate(self, request: Request) -> tuple[Principal, Principal]:
        key = bearer_key(request.META)
        if key is None:
            raise Unauthenticated
        principal = authenticate_key(key)
        return principal, principal


def bearer_key(environ: Mapping[str, Any]) -> str | None:
    """Return the bearer key of a request, if any."""
    scheme, _, key = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
