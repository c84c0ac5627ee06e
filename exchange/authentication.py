"""Bearer keys, as REST framework asks for them."""

from django.http import HttpRequest
from rest_framework.authentication import BaseAuthentication

from exchange.errors import Unauthenticated
from exchange.keys import Principal, principal_of_key


class ApiKeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer <key>`; the principal is both user and auth."""

    def authenticate(self, request: HttpRequest) -> tuple[Principal, Principal]:
        scheme, _, key = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated
        principal = principal_of_key(key.strip())
        return principal, principal
