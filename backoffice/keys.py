"""API keys: list, page and revocation. Secrets and their hashes are never read."""

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone

from backoffice.audit import latest_entries
from backoffice.links import page_url
from backoffice.lists import column
from backoffice.model_admin import ConditionFilter, ExchangeModelAdmin
from backoffice.operator_actions import MAX_SUBJECTS, ActionResult, OperatorAction
from backoffice.templatetags.formatting import DASH, status_pill
from exchange import services
from exchange.audit import Actor
from exchange.models import ApiKey, Broker
from exchange.rules import ChoicesEnum


class KeyState(ChoicesEnum):
    LIVE = "live"
    EXPIRED = "expired"
    REVOKED = "revoked"


def key_state(key: ApiKey) -> KeyState:
    """Return the current state of a key."""
    if key.revoked_at is not None:
        return KeyState.REVOKED
    return KeyState.EXPIRED if key.expires_at is not None and key.expires_at <= timezone.now() else KeyState.LIVE


class RevokeKeys(OperatorAction):
    name = "revoke"
    label = "Revoke"
    label_format = "Revoke key {}"
    explanation = "The key stops working within five seconds and cannot be restored. Orders placed with it stay."
    permission = "exchange.revoke_key"
    max_subjects = MAX_SUBJECTS
    is_dangerous = True

    def applies_to(self, row: ApiKey) -> bool:
        return row.revoked_at is None

    def describe(self, row: ApiKey) -> str:
        return " · ".join(filter(None, [row.pk, row.broker_id or "operator", row.name, key_state(row)]))

    def perform(self, by: Actor, subjects: Sequence[ApiKey], **fields: Any) -> ActionResult:
        revocable = [key for key in subjects if self.applies_to(key)]
        for key in revocable:
            services.revoke_key(key.broker_id, key.pk, **fields, by=by)
        if not revocable:
            return ActionResult("The selected keys were already revoked.", is_warning=True)
        return ActionResult(
            f"Key {revocable[0]} revoked." if len(revocable) == 1 else f"{len(revocable)} keys revoked."
        )


class KeyStateFilter(ConditionFilter):
    title = parameter_name = "state"

    def conditions(self) -> dict[str, Q]:
        expired = Q(expires_at__isnull=False, expires_at__lte=timezone.now())
        return {
            KeyState.LIVE: Q(revoked_at=None) & ~expired,
            KeyState.EXPIRED: Q(revoked_at=None) & expired,
            KeyState.REVOKED: Q(revoked_at__isnull=False),
        }


@admin.register(ApiKey)
class ApiKeyAdmin(ExchangeModelAdmin):
    list_display = (
        column("Key", "prefix"),
        column("State", lambda key: status_pill(key_state(key))),
        column(
            "Broker",
            lambda key: key.broker_id or "operator",
            link=lambda key: page_url(Broker, key.broker_id) if key.broker_id else "",
        ),
        column("Name", "name", is_text=True),
        column("Scopes", lambda key: ", ".join(key.scopes)),
        column("Issued", "created_at"),
        column("Last used", "last_used_at"),
        column("Expires", "expires_at"),
        column("Revoked", "revoked_at"),
    )
    list_filter = (KeyStateFilter,)
    search_fields = ("=prefix", "name", "=broker__id")
    search_help_text = "Prefix, name or broker ID"
    ordering = ("-created_at", "-prefix")
    operator_actions = (RevokeKeys(),)
    row_template = "backoffice/key.html"

    def get_queryset(self, request: HttpRequest | None) -> Any:
        return ApiKey.objects.defer("secret_hash")

    def row_context(self, request: HttpRequest, row: ApiKey) -> dict[str, Any]:
        return {
            "state": key_state(row),
            "scopes": ", ".join(row.scopes) or DASH,
            "audit": latest_entries(row),
        }
