"""DRF permissions by the scopes and broker of a key."""

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from exchange.errors import BrokerMismatch, ScopeMissing


class HasScope(BasePermission):
    """Requires one of the scopes that the view set declares for the action."""

    def has_permission(self, request: Request, view: Any) -> bool:
        accepted = view.scopes[view.action]
        if not any(view.principal.may(scope) for scope in accepted):
            raise ScopeMissing(f"This request needs a key with the scope {' or '.join(accepted)}.")
        return True


class IsOwnBroker(BasePermission):
    """Requires that any broker in the path, query or body is the key's own."""

    def has_permission(self, request: Request, view: Any) -> bool:
        own = view.principal.broker_id
        named = [view.kwargs.get("broker_id"), *view.parameters.getlist("broker_id"), view.data.get("broker_id")]
        # Values of other types are rejected by the validation of the field.
        if own is not None and any(isinstance(broker_id, str) and broker_id != own for broker_id in named):
            raise BrokerMismatch(f"This key acts for {own} only.")
        return True
