"""Instruments: the list of the market, a page for each with its book, and what can be done to them."""

from typing import Any

from django.contrib import admin

from backoffice.lists import Column, Way
from backoffice.pages import Pages
from exchange.models import Instrument
from exchange.paging import Keyset


@admin.register(Instrument)
class InstrumentPages(Pages):
    columns = (
        Column("Symbol", "symbol"),
        Column("Name", "name"),
        Column("Status", "status"),
    )

    def way(self, asked: dict[str, Any]) -> Way:
        return Way(Instrument.objects.all(), Keyset(("symbol", str)))
