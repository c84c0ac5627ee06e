"""Trades: read-only list, page with both sides, and CSV export."""

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest

from backoffice import form_fields
from backoffice.links import page_url
from backoffice.lists import KeysetQuery, Rows, column
from backoffice.model_admin import KeysetModelAdmin
from backoffice.periods import PeriodFilterForm, in_period, in_period_by_id, period_condition
from backoffice.templatetags.formatting import short_id, side_label
from exchange.http.paging import Keyset
from exchange.json_codec import Instant
from exchange.models import Broker, Instrument
from orders.enums import Side
from orders.models import Order, Trade

_BY_ID = Keyset(("-id", UUID))
_NEWEST_FIRST = Keyset(("-executed_at", Instant), ("-id", UUID))


class TradeFilterForm(PeriodFilterForm):
    q = forms.CharField(max_length=64, required=False, label="Trade ID or order ID")
    symbol = form_fields.symbol(required=False, read=str.upper)
    broker = form_fields.broker_id(required=False)
    side = form_fields.FilterChoiceField(Side, label="Broker's side")
    field_order = ["q", "symbol", "broker", "side", "since", "until"]


@admin.register(Trade)
class TradeAdmin(KeysetModelAdmin):
    list_display = (
        column("Symbol", "instrument_id", link=lambda trade: page_url(Instrument, trade.instrument_id)),
        column("Price", "price", is_number=True),
        column("Quantity", "quantity", is_number=True),
        column("Trade", lambda trade: short_id(trade.pk), link=lambda trade: page_url(Trade, trade.pk)),
        column("Executed", "executed_at"),
        column("Value", lambda trade: trade.price * trade.quantity, is_number=True),
        column("Bid broker", "bid_broker_id", link=lambda trade: page_url(Broker, trade.bid_broker_id)),
        column(
            "Bid order",
            lambda trade: short_id(trade.bid_order_id),
            link=lambda trade: page_url(Order, trade.bid_order_id),
        ),
        column("Ask broker", "ask_broker_id", link=lambda trade: page_url(Broker, trade.ask_broker_id)),
        column(
            "Ask order",
            lambda trade: short_id(trade.ask_order_id),
            link=lambda trade: page_url(Order, trade.ask_order_id),
        ),
        column("Taker", lambda trade: side_label(trade.taker_side)),
    )
    export_columns = {
        "trade_id": "id",
        "executed_at": "executed_at",
        "symbol": "instrument_id",
        "price": "price",
        "quantity": "quantity",
        "taker_side": "taker_side",
        "bid_broker_id": "bid_broker_id",
        "bid_order_id": "bid_order_id",
        "ask_broker_id": "ask_broker_id",
        "ask_order_id": "ask_order_id",
    }
    form_class = TradeFilterForm
    row_template = "backoffice/trade.html"
    is_live = True

    def keyset_query(self, filters: dict[str, Any]) -> KeysetQuery:
        """Read along the index of the search term, of the broker's side or sides, of the symbol, or of the time."""
        rows = Trade.objects.all()
        of_symbol = Q(instrument=filters["symbol"]) if filters["symbol"] else Q()
        if filters["q"]:
            parts = _search(filters["q"])
            unindexed = of_symbol & _broker_condition(filters) & period_condition("executed_at", filters)
            return KeysetQuery(parts[0] if parts else rows.none(), _NEWEST_FIRST, unindexed, parts[1:])
        if filters["broker"]:
            parts = [in_period(rows.filter(each), "executed_at", filters) for each in _side_conditions(filters)]
            return KeysetQuery(parts[0], _NEWEST_FIRST, of_symbol, parts[1:])
        if filters["symbol"]:
            return KeysetQuery(in_period(rows.filter(of_symbol), "executed_at", filters), _NEWEST_FIRST)
        return KeysetQuery(in_period_by_id(rows, "executed_at", filters), _BY_ID)

    def row_context(self, request: HttpRequest, row: Trade) -> dict[str, Any]:
        return {
            "value": row.price * row.quantity,
            "sides": [
                {"side": Side.BID, "broker": row.bid_broker_id, "order": row.bid_order},
                {"side": Side.ASK, "broker": row.ask_broker_id, "order": row.ask_order},
            ],
        }


def _search(term: str) -> list[Rows]:
    """Find a trade by its ID, or all trades of an order by the order's ID."""
    try:
        key = UUID(term)
    except ValueError:
        return []
    return [Trade.objects.filter(each) for each in (Q(pk=key), Q(bid_order=key), Q(ask_order=key))]


def _side_conditions(filters: dict[str, Any]) -> list[Q]:
    """Return the condition for the broker on each requested side. Each has an index."""
    sides = [filters["side"]] if filters["side"] else list(Side)
    return [Q(**{f"{side}_broker": filters["broker"]}) for side in sides]


def _broker_condition(filters: dict[str, Any]) -> Q:
    found = Q()
    for each in _side_conditions(filters) if filters["broker"] else []:
        found |= each
    return found
