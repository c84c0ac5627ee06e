"""Webhook subscriptions: list, health, and the actions on them."""

from typing import Any

from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest

from backoffice import health
from backoffice.audit import latest_entries
from backoffice.deliveries import latest_deliveries
from backoffice.links import page_url
from backoffice.lists import column
from backoffice.model_admin import ConditionFilter, ExchangeModelAdmin
from backoffice.templatetags.formatting import ago, status_pills
from backoffice.webhook_actions import PauseSubscription, RedeliverFailedEvents, ResumeSubscription
from exchange.models import Broker
from webhooks.models import Subscription, SubscriptionState

DUE_ROWS = 10


class SubscriptionStateFilter(ConditionFilter):
    title = parameter_name = "state"

    def conditions(self) -> dict[str, Q]:
        return {
            SubscriptionState.ACTIVE: Q(deleted_at=None, paused_at=None),
            SubscriptionState.PAUSED: Q(deleted_at=None, paused_at__isnull=False),
            SubscriptionState.DELETED: Q(deleted_at__isnull=False),
        }


class FailingFilter(ConditionFilter):
    title = parameter_name = "failing"

    def conditions(self) -> dict[str, Q]:
        return {"on": health.FAILING & Q(deleted_at=None)}


@admin.register(Subscription)
class SubscriptionAdmin(ExchangeModelAdmin):
    list_display = (
        column("Event", "event_type"),
        column("Broker", "broker_id", link=lambda row: page_url(Broker, row.broker_id)),
        column("State", lambda row: status_pills(row.state, health.health_of(row))),
        column("URL", "url", is_text=True),
        column("Last success", lambda row: ago(row.last_success_at)),
        column("Last failure", lambda row: ago(row.last_failure_at)),
        column("Failed (1 h)", lambda row: health.failed_share(row.completed_hour, row.failed_hour), is_number=True),
        column("Failed (24 h)", lambda row: health.failed_share(row.completed_day, row.failed_day), is_number=True),
        column("Pending", health.due_count, is_number=True),
        column("Oldest pending", health.oldest_due, is_number=True),
    )
    list_filter = ("event_type", SubscriptionStateFilter, FailingFilter)
    search_fields = ("=id", "url", "=broker__id")
    search_help_text = "Webhook ID, part of the URL or broker ID"
    ordering = ("-id",)
    operator_actions = (PauseSubscription(), ResumeSubscription(), RedeliverFailedEvents())
    list_after_template = "backoffice/subscriptions.html"
    row_template = "backoffice/subscription.html"
    is_live = True

    def get_queryset(self, request: HttpRequest | None) -> Any:
        return health.with_health(Subscription.objects.all())

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {
            "title": f"{row.event_type} of {row.broker_id}",
            "health": health.health_of(row),
            "failed_hour": health.failed_share(row.completed_hour, row.failed_hour),
            "failed_day": health.failed_share(row.completed_day, row.failed_day),
            "due_count": health.due_count(row),
            "oldest_due": health.oldest_due(row),
            "chart": health.delivery_chart(row),
            "due": list(health.due_to(row.pk).select_related("event").defer("event__body")[:DUE_ROWS]),
            "latest": latest_deliveries(row, failed=False),
            "latest_failed": latest_deliveries(row, failed=True),
            "audit": latest_entries(row),
        }
