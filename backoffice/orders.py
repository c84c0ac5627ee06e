"""Orders: found by what they are known by, looked at from their arrival to their end, and cancelled."""

from typing import Any
from uuid import UUID

from django.contrib import admin

from backoffice.lists import Column, Way
from backoffice.pages import Pages
from exchange.paging import Keyset
from orders.models import Order


@admin.register(Order)
class OrderPages(Pages):
    columns = (
        Column("Order", "id"),
        Column("Broker", "broker_id"),
        Column("Symbol", "instrument_id"),
    )

    def way(self, asked: dict[str, Any]) -> Way:
        return Way(Order.objects.all(), Keyset(("-id", UUID)))
