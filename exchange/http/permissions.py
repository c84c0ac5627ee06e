"""The permissions of a key, by its scopes and its broker."""

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from exchange.errors import BrokerMismatch, ScopeMissing


class HasScope(BasePermission):
    """The key has one of the scopes that its view set declares for the action."""

    def has_permission(self, request: Request, view: Any) -> bool:
        accepted = view.scopes[view.action]
        if not any(view.principal.may(scope) for scope in accepted):
            raise ScopeMissing(f"This needs a key with the scope {' or '.join(accepted)}.")
        return True


class IsOwnBroker(BasePermission):
    """The request names no broker but the key's own: not in the path, the query or the body."""

    def has_permission(self, request: Request, view: Any) -> bool:
        own = view.principal.broker_id
        named = [view.kwargs.get("broker_id"), *view.parameters.getlist("broker_id"), view.data.get("broker_id")]
        # A value that is not a string is left to the validation of its field.
        if own is not None and any(isinstance(broker_id, str) and broker_id != own for broker_id in named):
            raise BrokerMismatch(f"This key acts for {own} only.")
        return True
