"""Instruments: list, and a page for each with order book, charts and recent trades."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Count, Q
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.views import ChangeList

from backoffice import charts
from backoffice.audit import latest_entries
from backoffice.charts import Span
from backoffice.instrument_actions import (
    EditInstrument,
    HaltAllInstruments,
    HaltInstruments,
    ListInstrument,
    RemoveInstrument,
    ResumeInstruments,
)
from backoffice.lists import column
from backoffice.model_admin import ConditionFilter, ExchangeModelAdmin
from backoffice.queries import market_watch
from backoffice.templatetags.formatting import age, ago, price, price_change, status_pill
from exchange.database import database_now
from exchange.models import Instrument
from exchange.rules import InstrumentStatus, price_decimals, rounded
from orders import market_data
from orders.models import Trade

LADDER_LEVELS, DEPTH_LEVELS = 15, 50  # per side
TAPE_TRADES = 30

_MINUTE, _HOUR = timedelta(minutes=1), timedelta(hours=1)
SPANS = (
    Span("1h", "1 hour", _HOUR, step=_MINUTE, mark=10 * _MINUTE),
    Span("6h", "6 hours", 6 * _HOUR, step=5 * _MINUTE, mark=_HOUR),
    Span("1d", "1 day", 24 * _HOUR, step=15 * _MINUTE, mark=4 * _HOUR),
)


class QuietFilter(ConditionFilter):
    title = f"no trades for {age(market_watch.QUIET_AFTER.total_seconds())}"
    parameter_name = "quiet"

    def conditions(self) -> dict[str, Q]:
        return {"on": market_watch.is_quiet(database_now())}


class InstrumentList(ChangeList):  # type: ignore[misc]  # unfold is not typed
    """Changelist that reads the figures of all instruments on a page in one statement."""

    result_list: list[Any]

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        figures = market_watch.figures_of([row.pk for row in self.result_list])
        self.result_list = [row for row in self.result_list if row.pk in figures]  # others were just removed
        for row in self.result_list:
            row.figures = figures[row.pk]


def _symbol_and_name(row: Instrument) -> SafeString | str:
    """Return the symbol, with the name below it if they differ."""
    if row.name == row.symbol:
        return row.symbol
    return format_html('{}<br><small class="o-name">{}</small>', row.symbol, row.name)


def _price_cell(name: str, tone: str = "") -> Callable[[Any], SafeString | str]:
    """Return a column function for a price of the figures, in the colour of its side."""

    def shown(row: Any) -> SafeString | str:
        value = getattr(row.figures, name)
        return format_html('<span class="{}">{}</span>', tone, price(value)) if tone and value else price(value)

    return shown


@admin.register(Instrument)
class InstrumentAdmin(ExchangeModelAdmin):
    list_display = (
        column("Instrument", _symbol_and_name),
        column("Status", lambda row: status_pill(row.status)),
        column("Last", _price_cell("last_price"), is_number=True),
        column(
            "Change today", lambda row: price_change(row.figures.change, row.figures.change_percent), is_number=True
        ),
        column("Bid", _price_cell("best_bid", "o-bid"), is_number=True),
        column("Ask", _price_cell("best_ask", "o-ask"), is_number=True),
        column("Spread", _price_cell("spread"), is_number=True),
        column("Volume today", lambda row: row.figures.volume, is_number=True),
        column("Open orders", lambda row: row.figures.open_orders, is_number=True),
        column("Last trade", lambda row: ago(row.figures.last_trade_at), is_number=True),
    )
    list_filter = ("status", "pricing", QuietFilter)
    search_fields = ("symbol", "name")
    search_help_text = "Symbol or name"
    ordering = ("symbol",)
    operator_actions = (
        ListInstrument(),
        EditInstrument(),
        HaltInstruments(),
        ResumeInstruments(),
        HaltAllInstruments(),
        RemoveInstrument(),
    )
    list_before_template = "backoffice/instruments.html"
    row_template = "backoffice/instrument.html"
    is_live = True

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return InstrumentList

    def list_context(self, request: HttpRequest) -> dict[str, Any]:
        counts = dict(Instrument.objects.order_by().values_list("status").annotate(Count("pk")))
        return {"counts": [(status.value, counts.get(status, 0)) for status in InstrumentStatus]}

    def row_context(self, request: HttpRequest, row: Instrument) -> dict[str, Any]:
        book = market_data.book_snapshot(row.pk, DEPTH_LEVELS)
        bids, asks = charts.ladder(book, LADDER_LEVELS)
        decimals = price_decimals(row.tick_size)
        tape = Trade.objects.filter(instrument=row).order_by("-executed_at", "-id")[:TAPE_TRADES]
        return {
            "figures": market_watch.figures_of([row.pk])[row.pk],
            "summary": market_data.price_summary(row.pk),
            "book": book,
            "bids": bids,
            "asks": asks[::-1],  # the best prices meet in the middle
            "depth": charts.depth_chart(book, row.tick_size),
            "tape": [(trade, rounded(trade.price, decimals)) for trade in tape],
            "tick_size": rounded(row.tick_size, decimals),
            "audit": latest_entries(row),
            **_price_chart(request, row, database_now()),
        }


def _price_chart(request: HttpRequest, row: Instrument, now: datetime) -> dict[str, Any]:
    """Return the candles of the requested time span, by default the shortest."""
    span = next((each for each in SPANS if each.name == request.GET.get("span")), SPANS[0])
    begin = span.begin(now)
    candles = market_watch.candles(row, begin, span.step)
    return {"spans": SPANS, "span": span, "prices": charts.price_chart(candles, span, begin, row.tick_size)}
