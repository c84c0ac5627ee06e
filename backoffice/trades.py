"""Trades: read-only, both sides, and all of them as a file."""

from typing import Any
from uuid import UUID

from django.contrib import admin

from backoffice.lists import Column, Way
from backoffice.pages import Pages
from exchange.paging import Keyset
from orders.models import Trade


@admin.register(Trade)
class TradePages(Pages):
    columns = (
        Column("Trade", "id"),
        Column("Symbol", "instrument_id"),
        Column("Price", "price", is_number=True),
        Column("Quantity", "quantity", is_number=True),
    )

    def way(self, asked: dict[str, Any]) -> Way:
        return Way(Trade.objects.all(), Keyset(("-id", UUID)))
