"""Events of the brokers' streams, and their deliveries."""

from typing import Any
from uuid import UUID

import msgspec
from django import forms
from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest

from backoffice import form_fields
from backoffice.links import page_url
from backoffice.lists import KeysetQuery, Rows, column
from backoffice.model_admin import KeysetModelAdmin
from backoffice.periods import PeriodFilterForm, in_period_by_id
from backoffice.queries import delivery_attempts, order_history
from backoffice.templatetags.formatting import readable, short_id
from exchange.http.paging import Keyset
from exchange.models import Broker
from orders.models import Order, Trade
from webhooks.models import Event, EventType


class EventFilterForm(PeriodFilterForm):
    q = forms.CharField(max_length=64, required=False, label="Event ID or order ID")
    broker = form_fields.broker_id(required=False)
    type = form_fields.FilterChoiceField(EventType)
    field_order = ["q", "broker", "type", "since", "until"]


@admin.register(Event)
class EventAdmin(KeysetModelAdmin):
    list_display = (
        column("Event", lambda event: short_id(event.pk), link=lambda event: page_url(Event, event.pk)),
        column("Time", "occurred_at"),
        column("Broker", "broker_id", link=lambda event: page_url(Broker, event.broker_id)),
        column("Sequence", "sequence", is_number=True),
        column("Type", "type"),
        column(
            "Order", lambda event: short_id(event_data(event).get("order_id")), link=lambda event: _order_url(event)
        ),
        column("Symbol", lambda event: event_data(event).get("symbol")),
        column("Side", lambda event: event_data(event).get("side")),
        column("Status", lambda event: readable(event_data(event).get("status", ""))),
    )
    form_class = EventFilterForm
    row_template = "backoffice/event.html"
    is_live = True

    def keyset_query(self, filters: dict[str, Any]) -> KeysetQuery:
        """Read along a broker's stream, or all events by ID, which ascends with time."""
        rows: Rows = Event.objects.all()
        unindexed = Q(type=filters["type"]) if filters["type"] else Q()
        of_broker = Q(broker=filters["broker"]) if filters["broker"] else Q()
        if filters["q"]:
            matching = rows.filter(pk__in=_search(filters["q"]))
            return KeysetQuery(in_period_by_id(matching, "occurred_at", filters), _BY_ID, unindexed & of_broker)
        if filters["broker"] and not (filters["since"] or filters["until"]):
            return KeysetQuery(rows.filter(of_broker), Keyset(("-sequence", int)), unindexed)
        return KeysetQuery(in_period_by_id(rows, "occurred_at", filters), _BY_ID, unindexed & of_broker)

    def row_context(self, request: HttpRequest, row: Event) -> dict[str, Any]:
        return {
            "title": f"Event {row.sequence:,} of {row.broker_id}",
            "event_deliveries": delivery_attempts.deliveries_of_events([row.pk]),
            **event_context(row),
        }


_BY_ID = Keyset(("-id", UUID))


def event_data(event: Event) -> dict[str, Any]:
    """Return the data of an event."""
    found: dict[str, Any] = msgspec.json.decode(event.body)["data"]
    return found


def event_context(event: Event) -> dict[str, Any]:
    """Return the template context of an event: its indented payload, and links to its order and trade."""
    data = event_data(event)
    return {
        "body": msgspec.json.format(event.body, indent=2),
        "order_id": data["order_id"],
        "order_url": page_url(Order, data["order_id"]),
        "trade_id": data.get("trade_id"),
        "trade_url": page_url(Trade, data["trade_id"]) if "trade_id" in data else "",
    }


def events_of_order(order_id: UUID) -> list[UUID]:
    """Return the IDs of the events about an order's latest fills and its end."""
    order = Order.objects.filter(pk=order_id).first()
    if order is None:
        return []
    fills, _ = order_history.latest_fills(order)
    fill_events, end_event = order_history.look_up_events(order, fills)
    return [each.event.event_id for each in [*fill_events.values(), end_event] if each and each.event]


def _search(term: str) -> list[UUID]:
    """Find an event by its ID, or the events of an order by the order's ID."""
    try:
        return [UUID(term), *events_of_order(UUID(term))]
    except ValueError:
        return []


def _order_url(event: Event) -> str:
    return page_url(Order, event_data(event)["order_id"])
