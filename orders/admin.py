"""Orders and trades in the back office."""

from django.contrib import admin

from exchange.admin import ReadOnlyAdmin, Search
from orders.models import Order, Trade


@admin.register(Order)
class OrderAdmin(ReadOnlyAdmin):
    searches = (
        Search(("id",), ("pk",)),
        Search(("broker",), ("-created_at", "-pk")),
        Search(("instrument",), ("-sequence",)),
        Search(("instrument",), ("-sequence",), said=("symbol",)),
        Search(("broker", "client_order_id"), ("pk",)),
    )
    search_help_text = (
        "An order's id, a broker's id, a symbol (“symbol XP”, if XP is a broker too), "
        "or a broker's id and its client order id"
    )
    list_display = (
        "id",
        "broker_id",
        "client_order_id",
        "instrument_id",
        "side",
        "type",
        "time_in_force",
        "price",
        "quantity",
        "filled_quantity",
        "status",
        "created_at",
    )
    list_filter = ("status", "side", "type", "time_in_force", "cancel_reason")


@admin.register(Trade)
class TradeAdmin(ReadOnlyAdmin):
    # An order's trades are sorted by their time, since for the order of their ids, where there are many, the planner
    # would walk the primary key until it met them.
    searches = (
        Search(("id",), ("pk",)),
        Search(("bid_order",), ("-executed_at", "-pk")),
        Search(("ask_order",), ("-executed_at", "-pk")),
        Search(("instrument",), ("-executed_at", "-pk")),
        Search(("bid_broker",), ("-executed_at", "-pk"), said=("bid",)),
        Search(("ask_broker",), ("-executed_at", "-pk"), said=("ask",)),
    )
    search_help_text = "A trade's or an order's id, a symbol, or a broker's id with its side: “bid broker-1”"
    list_display = (
        "id",
        "instrument_id",
        "price",
        "quantity",
        "taker_side",
        "bid_broker_id",
        "bid_order_id",
        "ask_broker_id",
        "ask_order_id",
        "executed_at",
    )
    list_filter = ("taker_side",)
