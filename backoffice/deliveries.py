"""Deliveries of events to subscriptions: their outcomes and redelivery."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django import forms
from django.conf import settings
from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone

from backoffice import form_fields, lists
from backoffice.audit import latest_entries
from backoffice.events import event_context, events_of_order
from backoffice.health import due_to
from backoffice.links import page_url
from backoffice.lists import KeysetQuery, Rows, column
from backoffice.model_admin import KeysetModelAdmin
from backoffice.periods import PeriodFilterForm, id_period_condition
from backoffice.queries import delivery_attempts
from backoffice.templatetags.formatting import outcome, short_id, status_pill
from backoffice.webhook_actions import OUTCOME_TIME_TOLERANCE, RedeliverEvents, is_lost
from exchange.http.paging import Keyset
from exchange.ids import first_id_at, time_of_id
from exchange.models import Broker
from webhooks.models import IS_FAILED, Answer, Delivery, DeliveryError, DeliveryState, Event, EventType, Subscription

LATEST_DELIVERIES = 10  # on the page of a subscription
SUBSCRIPTION_LIMIT = 1_000  # the latest subscriptions of a broker, which identify its deliveries

_BY_ID, _BY_SUBSCRIPTION = Keyset(("-id", UUID)), Keyset(("subscription_id", UUID), ("id", UUID))

_STATES = {
    DeliveryState.DUE: Q(claimed_at=None),
    DeliveryState.IN_FLIGHT: Q(claimed_at__isnull=False, completed_at=None),
    DeliveryState.DELIVERED: Q(completed_at__isnull=False, error="", status_code__gte=200, status_code__lt=300),
    DeliveryState.FAILED: IS_FAILED,
    DeliveryState.DISCARDED: Q(error=DeliveryError.SUBSCRIPTION_DELETED),
}

# Explanations of the errors, for operators who inform the broker.
ERROR_TEXTS = {
    DeliveryError.TIMEOUT: "No complete response within the timeout.",
    DeliveryError.BLOCKED_ADDRESS: "The URL or the address of its host is blocked for webhooks.",
    DeliveryError.NAME_NOT_RESOLVED: "The host name could not be resolved.",
    DeliveryError.NOT_CONNECTED: "The receiver refused the connection or could not be reached.",
    DeliveryError.TLS_FAILED: "The TLS handshake failed, most often because of an invalid certificate.",
    DeliveryError.DISCONNECTED: "The receiver closed the connection before it responded.",
    DeliveryError.INVALID_ANSWER: "The response was not valid HTTP or was too long.",
    DeliveryError.SUBSCRIPTION_DELETED: "The broker deleted the subscription before the event was sent.",
    DeliveryError.FAILED: "Unexpected error. See the log.",
}


class DeliveryFilterForm(PeriodFilterForm):
    q = forms.CharField(max_length=64, required=False, label="Delivery, event or order ID")
    state = form_fields.FilterChoiceField(DeliveryState)
    broker = form_fields.broker_id(required=False)
    event = form_fields.FilterChoiceField(EventType)
    error = form_fields.FilterChoiceField(DeliveryError)
    status_code = forms.IntegerField(min_value=100, max_value=999, required=False, label="Response status")
    subscription = forms.UUIDField(required=False, label="Subscription ID")
    field_order = ["q", "state", "broker", "event", "error", "status_code", "subscription", "since", "until"]


@admin.register(Delivery)
class DeliveryAdmin(KeysetModelAdmin):
    list_display = (
        column("Delivery", lambda row: short_id(row.pk), link=lambda row: page_url(Delivery, row.pk)),
        column("Created", lambda row: time_of_id(row.pk)),
        column("Broker", lambda row: row.subscription.broker_id, link=lambda row: page_url(Broker, _broker_id(row))),
        column("Event", lambda row: row.subscription.event_type, link=lambda row: page_url(Event, row.event_id)),
        column("Sequence", lambda row: row.event.sequence, is_number=True),
        column("State", lambda row: status_pill(row.state)),
        column("Outcome", outcome),
        column("Response time (ms)", "duration_ms", is_number=True),
        column("Completed", "completed_at"),
        column(
            "Redelivery of",
            lambda row: short_id(row.redelivery_of_id) if row.redelivery_of_id else "",
            link=lambda row: page_url(Delivery, row.redelivery_of_id) if row.redelivery_of_id else "",
        ),
    )
    form_class = DeliveryFilterForm
    operator_actions = (RedeliverEvents(),)
    row_template = "backoffice/delivery.html"
    is_live = True

    def get_queryset(self, request: HttpRequest | None) -> Any:
        return Delivery.objects.select_related("subscription", "event")

    def keyset_query(self, filters: dict[str, Any]) -> KeysetQuery:
        """Read along the index of pending deliveries, of failed deliveries, or of the IDs, which ascend with time."""
        rows = self._lean(Delivery.objects.all())
        if filters["q"]:
            return KeysetQuery(
                rows.filter(pk__in=_search(filters["q"])),
                _BY_ID,
                _unindexed_condition(filters) & id_period_condition(filters),
            )
        if filters["state"] == DeliveryState.DUE:
            due, covered = _due(filters)
            return KeysetQuery(
                self._lean(due),
                _BY_SUBSCRIPTION,
                _unindexed_condition(filters | covered) & id_period_condition(filters),
            )
        rows = rows.filter(id_period_condition(filters))
        if _are_failed_only(filters):
            covered = {"state": ""} if filters["state"] == DeliveryState.FAILED else {}
            return KeysetQuery(rows.filter(IS_FAILED), _BY_ID, _unindexed_condition(filters | covered))
        return KeysetQuery(rows, _BY_ID, _unindexed_condition(filters))

    def _lean(self, rows: Rows) -> Rows:
        return rows.select_related("subscription", "event").defer("event__body")

    def row_context(self, request: HttpRequest, row: Delivery) -> dict[str, Any]:
        answer = Answer.objects.filter(pk=row.pk).first()
        kept_since = timezone.now() - settings.WEBHOOK_RESPONSE_RETENTION
        return {
            "error_text": ERROR_TEXTS[DeliveryError(row.error)] if row.error else "",
            "is_lost": is_lost(row),
            "written_at": time_of_id(row.pk),
            "answer": answer,
            "is_answer_dropped": time_of_id(row.pk) < kept_since,
            "kept_days": settings.WEBHOOK_RESPONSE_RETENTION.days,
            "kept_bytes": settings.WEBHOOK_RESPONSE_BYTES_STORED,
            "event_deliveries": delivery_attempts.related_deliveries(row),
            "audit": latest_entries(row),
            **event_context(row.event),
        }


def _broker_id(row: Delivery) -> str:
    return row.subscription.broker_id


def _due(filters: dict[str, Any]) -> tuple[Rows, dict[str, Any]]:
    """Return the pending deliveries by subscription, and the filters that this query already covers."""
    if filters["subscription"]:
        return due_to(filters["subscription"]), {"state": "", "subscription": None}
    due = Delivery.objects.filter(claimed_at=None)
    if filters["broker"]:
        return due.filter(subscription__in=_subscriptions_of(filters["broker"])), {"state": "", "broker": ""}
    return due, {"state": ""}


def _are_failed_only(filters: dict[str, Any]) -> bool:
    """True if the filters match failed deliveries only, so that the index of failures can be used."""
    code, error = filters["status_code"], filters["error"]
    is_bad_code = code is not None and code // 100 != 2
    return (
        filters["state"] == DeliveryState.FAILED or is_bad_code or error not in ("", DeliveryError.SUBSCRIPTION_DELETED)
    )


def _unindexed_condition(filters: dict[str, Any]) -> Q:
    found = _STATES[DeliveryState(filters["state"])] if filters["state"] else Q()
    for name, path in {"event": "subscription__event_type", "error": "error", "status_code": "status_code"}.items():
        if filters[name]:
            found &= Q(**{path: filters[name]})
    if filters["broker"]:
        found &= Q(subscription__in=_subscriptions_of(filters["broker"]))
    if filters["subscription"]:
        found &= Q(subscription=filters["subscription"])
    return found


def _subscriptions_of(broker_id: str) -> list[UUID]:
    """Return a broker's subscription IDs. With a join, the planner would read all deliveries of each subscription."""
    return list(
        Subscription.objects.filter(broker=broker_id).order_by("-pk").values_list("pk", flat=True)[:SUBSCRIPTION_LIMIT]
    )


def _search(term: str) -> list[UUID]:
    """Find deliveries by the ID of the delivery, of its event, or of the order it is about."""
    try:
        id_ = UUID(term)
    except ValueError:
        return []
    return [id_, *(each.pk for each in delivery_attempts.deliveries_of_events([id_, *events_of_order(id_)]))]


# --- For other pages ------------------------------------------------------------------------------------------------


def latest_deliveries(subscription: Subscription, *, failed: bool) -> Sequence[Delivery]:
    """Return the latest completed deliveries of a subscription, searched backwards from its last outcome."""
    times = [subscription.last_failure_at] if failed else [subscription.last_success_at, subscription.last_failure_at]
    known = [each for each in times if each]
    if not known:
        return []
    rows = Delivery.objects.filter(pk__lt=first_id_at(max(known) + OUTCOME_TIME_TOLERANCE)).select_related("event")
    if failed:
        rows = rows.filter(IS_FAILED)
    unindexed = Q(subscription=subscription, completed_at__isnull=False)
    return lists.read_page(KeysetQuery(rows.defer("event__body"), _BY_ID, unindexed), {}).rows[:LATEST_DELIVERIES]
