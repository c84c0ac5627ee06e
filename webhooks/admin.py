"""Events, subscriptions and deliveries in the back office."""

from django.contrib import admin

from exchange.admin import ReadOnlyAdmin, Search
from webhooks.models import Delivery, Event, Subscription


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    searches = (
        Search(("id",), ("pk",)),
        Search(("broker",), ("-sequence",)),
        Search(("broker", "sequence"), ("pk",)),
    )
    search_help_text = "An event's id, a broker's id, or a broker's id and a sequence"
    list_display = ("id", "broker_id", "sequence", "type", "occurred_at")
    list_filter = ("type",)


@admin.register(Subscription)
class SubscriptionAdmin(ReadOnlyAdmin):
    searches = (
        Search(("id",), ("pk",)),
        Search(("broker",), ("event_type",), among={"deleted_at": None}),
    )
    search_help_text = "A subscription's id, or a broker's id for those that are not deleted"
    list_display = ("id", "broker_id", "event_type", "url", "created_at", "deleted_at")
    list_filter = ("event_type", ("deleted_at", admin.EmptyFieldListFilter))


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    searches = (Search(("id",), ("pk",)),)
    search_help_text = "A delivery's id"
    list_display = (
        "id",
        "event_id",
        "subscription_id",
        "claimed_at",
        "completed_at",
        "status_code",
        "error",
        "duration_ms",
    )
    list_filter = (
        ("claimed_at", admin.EmptyFieldListFilter),
        ("completed_at", admin.EmptyFieldListFilter),
        "error",
    )
