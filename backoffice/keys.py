"""Keys: which there are, whose, when they were last used; and how they are ended. Of a secret nothing is ever read."""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone

from backoffice import fields
from backoffice.acts import MAX_SUBJECTS, Act, Done
from backoffice.audit import latest_about
from backoffice.links import list_url, page_url
from backoffice.lists import Column, FilterForm, Way
from backoffice.pages import Pages
from backoffice.templatetags.office import NOTHING, state
from exchange import services
from exchange.audit import Actor, ActorKind
from exchange.http.paging import Keyset
from exchange.models import ApiKey, AuditEntry, Broker
from exchange.rules import KEY_PREFIX, Words
from exchange.wire import Instant

NEWEST_KEYS_FIRST = Keyset(("-created_at", Instant), ("-prefix", str))


class KeyState(Words):
    LIVE = "live"
    EXPIRED = "expired"
    REVOKED = "revoked"


def key_state(key: ApiKey) -> KeyState:
    """What a key is good for, now."""
    if key.revoked_at is not None:
        return KeyState.REVOKED
    return KeyState.EXPIRED if key.expires_at is not None and key.expires_at <= timezone.now() else KeyState.LIVE


def _in_state(wanted: str) -> Q:
    expired = Q(expires_at__isnull=False, expires_at__lte=timezone.now())
    return {
        KeyState.LIVE: Q(revoked_at=None) & ~expired,
        KeyState.EXPIRED: Q(revoked_at=None) & expired,
        KeyState.REVOKED: Q(revoked_at__isnull=False),
    }[KeyState(wanted)]


class RevokeKey(Act):
    name = "revoke"
    label = "Revoke"
    explanation = "The key is dead within five seconds, for good. Orders that were placed with it stay."
    permission = "exchange.revoke_key"
    subjects_max = MAX_SUBJECTS
    is_dangerous = True

    def applies_to(self, row: ApiKey) -> bool:
        return row.revoked_at is None

    def named(self, row: ApiKey) -> str:
        return " · ".join(filter(None, [row.pk, row.broker_id or "an operator's", row.name, key_state(row)]))

    def perform(self, by: Actor, subjects: Sequence[ApiKey], **fields: Any) -> Done:
        wanted = [key for key in subjects if self.applies_to(key)]
        for key in wanted:
            services.revoke_key(key.broker_id, key.pk, **fields, by=by)
        if not wanted:
            return Done("Nothing was left to revoke.", is_warning=True)
        return Done(f"{wanted[0]} is revoked." if len(wanted) == 1 else f"{len(wanted)} keys are revoked.")


class KeyFilter(FilterForm):
    q = forms.CharField(max_length=100, required=False, label="Prefix or name")
    broker = fields.broker_id(required=False)
    state = fields.WordField(KeyState)


@admin.register(ApiKey)
class KeyPages(Pages):
    columns = (
        Column("Key", "prefix", link=lambda key: page_url(ApiKey, key.pk)),
        Column("State", lambda key: state(key_state(key))),
        Column(
            "Broker",
            lambda key: key.broker_id or "an operator's",
            link=lambda key: page_url(Broker, key.broker_id) if key.broker_id else "",
        ),
        Column("Name", "name", is_text=True),
        Column("Scopes", lambda key: ", ".join(key.scopes)),
        Column("Issued", "created_at"),
        Column("Last used", "last_used_at"),
        Column("Expires", "expires_at"),
        Column("Revoked", "revoked_at"),
    )
    form_class = KeyFilter
    acts = (RevokeKey(),)
    row_template = "backoffice/key.html"

    def get_queryset(self, request: HttpRequest | None) -> Any:
        return ApiKey.objects.defer("secret_hash")

    def way(self, asked: dict[str, Any]) -> Way:
        rows, among = self.get_queryset(None), Q()
        if asked["q"] and KEY_PREFIX.fullmatch(asked["q"]):
            rows = rows.filter(pk=asked["q"])
        elif asked["q"]:
            among &= Q(name__icontains=asked["q"])
        if asked["broker"]:
            rows = rows.filter(broker=asked["broker"])
        if asked["state"]:
            among &= _in_state(asked["state"])
        return Way(rows, NEWEST_KEYS_FIRST, among)

    def row_context(self, request: HttpRequest, row: ApiKey) -> dict[str, Any]:
        return {
            "state": key_state(row),
            "broker_url": page_url(Broker, row.broker_id) if row.broker_id else "",
            "scopes": ", ".join(row.scopes) or NOTHING,
            "acted_url": "" if row.broker_id else list_url(AuditEntry, actor=row.pk, kind=ActorKind.KEY),
            "audit": latest_about(row),
        }
