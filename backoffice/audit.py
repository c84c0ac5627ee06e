"""The audit log: list, filters, entry page and CSV export."""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin
from django.db.models import Model, Q
from django.http import HttpRequest

from backoffice import form_fields
from backoffice.exports import columns_of
from backoffice.links import list_url, page_url
from backoffice.lists import KeysetQuery, column
from backoffice.model_admin import KeysetModelAdmin
from backoffice.periods import PeriodFilterForm, in_period_by_id
from exchange.audit import Action, ActorKind
from exchange.http.paging import Keyset
from exchange.models import ApiKey, AuditEntry, Broker, Instrument
from orders.models import Order, ReconcileRun
from webhooks.models import Delivery, Subscription

LATEST_ENTRIES = 10  # on the page of their subject

# The subject's model by the part of the action before the dot. The subject is its primary key.
SUBJECT_MODELS: dict[str, type[Model]] = {
    "instrument": Instrument,
    "broker": Broker,
    "key": ApiKey,
    "order": Order,
    "webhook": Subscription,
    "delivery": Delivery,
    "reconcile": ReconcileRun,
}


def subject_url(entry: AuditEntry) -> str:
    """Return the URL of the subject's page, or ""."""
    model = SUBJECT_MODELS.get(entry.action.partition(".")[0])
    return page_url(model, entry.subject) if model and entry.subject else ""


def actor_url(entry: AuditEntry) -> str:
    """Return the page of the acting key, or the entries of the acting user or command."""
    if entry.actor_kind == ActorKind.KEY:
        return page_url(ApiKey, entry.actor)
    return list_url(AuditEntry, actor=entry.actor, kind=entry.actor_kind)


def latest_entries(*rows: Model) -> list[AuditEntry]:
    """Return the latest entries about any of these rows, newest first, with one index lookup per row."""
    kinds = {model: kind for kind, model in SUBJECT_MODELS.items()}
    each = [
        AuditEntry.objects.filter(subject=str(row.pk), action__startswith=f"{kinds[type(row)]}.").order_by("-id")[
            :LATEST_ENTRIES
        ]
        for row in rows
    ]
    return list(each[0].union(*each[1:], all=True).order_by("-id")[:LATEST_ENTRIES] if len(each) > 1 else each[0])


class AuditFilterForm(PeriodFilterForm):
    q = forms.CharField(max_length=150, required=False, label="Subject")
    actor = forms.CharField(max_length=150, required=False, label="Actor")
    kind = form_fields.FilterChoiceField(ActorKind, label="Actor kind")
    action = form_fields.FilterChoiceField(Action, label="Action")
    field_order = ["q", "actor", "kind", "action", "since", "until"]


@admin.register(AuditEntry)
class AuditEntryAdmin(KeysetModelAdmin):
    list_display = (
        column("Time", "at", link=lambda entry: page_url(AuditEntry, entry.pk)),
        column("Actor", lambda entry: f"{entry.actor_kind} {entry.actor}", link=actor_url),
        column("Address", "address"),
        column("Action", "action"),
        column("Subject", "subject", link=subject_url),
        column("Reason", "reason", is_text=True),
    )
    export_columns = columns_of(AuditEntry)
    form_class = AuditFilterForm
    row_template = "backoffice/audit_entry.html"
    is_live = True

    def keyset_query(self, filters: dict[str, Any]) -> KeysetQuery:
        rows = in_period_by_id(AuditEntry.objects.all(), "at", filters)
        unindexed = Q(**{name: filters[field] for name, field in _UNINDEXED_FIELDS.items() if filters[field]})
        if filters["q"]:
            rows, unindexed = rows.filter(subject=filters["q"]), unindexed & _actor_condition(filters)
        elif filters["actor"]:
            rows = rows.filter(_actor_condition(filters))
        return KeysetQuery(rows, Keyset(("-id", UUID)), unindexed)

    def row_context(self, request: HttpRequest, row: AuditEntry) -> dict[str, Any]:
        return {
            "changes": changes(row.before, row.after),
            "hash": bytes(row.hash).hex(),
            "actor_url": actor_url(row),
            "subject_url": subject_url(row),
        }


_UNINDEXED_FIELDS = {"actor_kind": "kind", "action": "action"}


def _actor_condition(filters: dict[str, Any]) -> Q:
    return Q(actor=filters["actor"]) if filters["actor"] else Q()


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field of the subject before and after an action. None means that it was not recorded."""

    name: str
    before: str | None
    after: str | None

    @property
    def is_changed(self) -> bool:
        return self.before != self.after


def changes(before: Any, after: Any) -> list[FieldChange]:
    """Return the fields before and after an action, in the order in which they were recorded."""
    old, new = before or {}, after or {}
    names = [*old, *(name for name in new if name not in old)]
    return [FieldChange(name, _value_text(old, name), _value_text(new, name)) for name in names]


def _value_text(fields: dict[str, Any], name: str) -> str | None:
    if name not in fields:
        return None
    value = fields[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
