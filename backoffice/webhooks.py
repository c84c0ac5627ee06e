"""Subscriptions: who is told what, how well that goes, and how it is paused."""

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest

from backoffice import fields, health
from backoffice.audit import latest_about
from backoffice.deliveries import latest_of
from backoffice.links import list_url, page_url
from backoffice.lists import Column, FilterForm, Way
from backoffice.pages import Pages
from backoffice.templatetags.office import ago, states
from backoffice.webhook_acts import Pause, RedeliverFailed, Resume
from exchange.http.paging import Keyset
from exchange.models import Broker
from webhooks.models import MAX_URL_LENGTH, Delivery, DeliveryState, EventType, Subscription, SubscriptionState

DUE_SHOWN = 10

_STATES = {
    SubscriptionState.ACTIVE: Q(deleted_at=None, paused_at=None),
    SubscriptionState.PAUSED: Q(deleted_at=None, paused_at__isnull=False),
    SubscriptionState.DELETED: Q(deleted_at__isnull=False),
}


class SubscriptionFilter(FilterForm):
    q = forms.CharField(max_length=MAX_URL_LENGTH, required=False, label="Id, or part of the URL")
    broker = fields.broker_id(required=False)
    event = fields.WordField(EventType)
    state = fields.WordField(SubscriptionState)
    failing = forms.BooleanField(required=False, label="Failing only")


@admin.register(Subscription)
class SubscriptionPages(Pages):
    columns = (
        Column("Event", "event_type", link=lambda row: page_url(Subscription, row.pk)),
        Column("Broker", "broker_id", link=lambda row: page_url(Broker, row.broker_id)),
        Column("State", lambda row: states(row.state, health.health_of(row))),
        Column("URL", "url", is_text=True),
        Column("Succeeded", lambda row: ago(row.last_success_at)),
        Column("Failed", lambda row: ago(row.last_failure_at)),
        Column("Hour", lambda row: health.failed_share(row.completed_hour, row.failed_hour), is_number=True),
        Column("Day", lambda row: health.failed_share(row.completed_day, row.failed_day), is_number=True),
        Column("Due", health.due_count, is_number=True),
        Column("Oldest", health.oldest_due, is_number=True),
    )
    form_class = SubscriptionFilter
    acts = (Pause(), Resume(), RedeliverFailed())
    list_template = "backoffice/subscriptions.html"
    row_template = "backoffice/subscription.html"
    is_live = True

    def get_queryset(self, request: HttpRequest | None) -> Any:
        return health.with_health(Subscription.objects.all())

    def way(self, asked: dict[str, Any]) -> Way:
        return Way(self.get_queryset(None), Keyset(("-id", UUID)), _among(asked))

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {
            "title": f"{row.event_type} of {row.broker_id}",
            "health": health.health_of(row),
            "failed_hour": health.failed_share(row.completed_hour, row.failed_hour),
            "failed_day": health.failed_share(row.completed_day, row.failed_day),
            "due_count": health.due_count(row),
            "oldest_due": health.oldest_due(row),
            "chart": health.chart_of(row),
            "due": list(health.due_to(row.pk).select_related("event").defer("event__body")[:DUE_SHOWN]),
            "latest": latest_of(row, failed=False),
            "latest_failed": latest_of(row, failed=True),
            "broker_url": page_url(Broker, row.broker_id),
            "due_url": list_url(Delivery, subscription=row.pk, state=DeliveryState.DUE),
            "deliveries_url": list_url(Delivery, subscription=row.pk),
            "failed_url": list_url(Delivery, subscription=row.pk, state=DeliveryState.FAILED),
            "audit": latest_about(row),
        }


def _among(asked: dict[str, Any]) -> Q:
    found = _known_by(asked["q"]) if asked["q"] else Q()
    if asked["broker"]:
        found &= Q(broker=asked["broker"])
    if asked["event"]:
        found &= Q(event_type=asked["event"])
    if asked["state"]:
        found &= _STATES[SubscriptionState(asked["state"])]
    if asked["failing"]:
        found &= health.FAILING & Q(deleted_at=None)
    return found


def _known_by(term: str) -> Q:
    try:
        return Q(pk=UUID(term))
    except ValueError:
        return Q(url__icontains=term)
