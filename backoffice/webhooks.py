"""Webhooks: who is told what and how well that goes, every delivery with its outcome, and the events themselves."""

from typing import Any
from uuid import UUID

from django.contrib import admin

from backoffice.lists import Column, Way
from backoffice.pages import Pages
from exchange.paging import Keyset
from webhooks.models import Delivery, Event, Subscription


@admin.register(Subscription)
class SubscriptionPages(Pages):
    columns = (
        Column("Subscription", "id"),
        Column("Broker", "broker_id"),
    )

    def way(self, asked: dict[str, Any]) -> Way:
        return Way(Subscription.objects.all(), Keyset(("-id", UUID)))


@admin.register(Delivery)
class DeliveryPages(Pages):
    columns = (Column("Delivery", "id"),)

    def way(self, asked: dict[str, Any]) -> Way:
        return Way(Delivery.objects.all(), Keyset(("-id", UUID)))


@admin.register(Event)
class EventPages(Pages):
    columns = (Column("Event", "id"),)

    def way(self, asked: dict[str, Any]) -> Way:
        return Way(Event.objects.all(), Keyset(("-id", UUID)))
