"""Brokers: balances, activity of the day, transfers, keys, and the actions on them."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from django.contrib import admin
from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import Count, DecimalField, ExpressionWrapper, F, Func, IntegerField, OuterRef, Q, Subquery, Sum
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.utils import timezone

from backoffice.audit import latest_entries
from backoffice.broker_actions import (
    HOLDING_ROWS,
    AdmitBroker,
    IssueKey,
    ReinstateBroker,
    StopBroker,
    SuspendBroker,
    TransferCash,
    TransferShares,
)
from backoffice.keys import RevokeKeys, key_state
from backoffice.links import list_url, page_url
from backoffice.lists import column
from backoffice.model_admin import ExchangeModelAdmin
from backoffice.operator_actions import action_url, is_permitted
from backoffice.templatetags.formatting import status_pill
from exchange.models import CASH_DIGITS, DECIMALS, ApiKey, Broker, Holding, Instrument, Transfer
from orders.activity import start_of_day
from orders.enums import Side
from orders.models import Order, Trade
from webhooks.models import Subscription

TRADE_COUNT_LIMIT = 200  # in the list, per side
TRADE_SUM_LIMIT = 5_000  # on a broker's page, per side
TABLE_ROWS = 10  # rows of a table that links to the full list
KEY_ROWS = 20

_VALUE = ExpressionWrapper(F("price") * F("quantity"), DecimalField(max_digits=CASH_DIGITS, decimal_places=DECIMALS))


@admin.register(Broker)
class BrokerAdmin(ExchangeModelAdmin):
    list_display = (
        column("Broker", "id"),
        column("Status", lambda broker: status_pill(broker.status)),
        column("Cash", "cash", is_number=True),
        column("Reserved", "reserved_cash", is_number=True),
        column("Available", lambda broker: broker.cash - broker.reserved_cash, is_number=True),
        column("Open orders", lambda broker: int(broker.open_orders), is_number=True),
        column("Trades today", lambda broker: _count_text(broker.bids_today, broker.asks_today), is_number=True),
        column("Admitted", "created_at"),
    )
    list_filter = ("status",)
    search_fields = ("id",)
    search_help_text = "Broker ID"
    ordering = ("id",)
    operator_actions = (
        AdmitBroker(),
        TransferCash(),
        TransferShares(),
        IssueKey(),
        SuspendBroker(),
        ReinstateBroker(),
        StopBroker(),
    )
    row_template = "backoffice/broker.html"
    is_live = True

    def get_queryset(self, request: HttpRequest | None) -> Any:
        held = Holding.objects.filter(broker=OuterRef("pk")).values("broker")
        open_orders = Subquery(held.annotate(total=Sum("open_orders")).values("total"))
        return Broker.objects.annotate(
            open_orders=Coalesce(open_orders, 0),
            bids_today=_bounded_count(Trade.objects.filter(bid_broker=OuterRef("pk"), executed_at__gte=today())),
            asks_today=_bounded_count(Trade.objects.filter(ask_broker=OuterRef("pk"), executed_at__gte=today())),
        )

    def row_context(self, request: HttpRequest, row: Broker) -> dict[str, Any]:
        holdings = _holdings_of(row)
        keys = list(
            ApiKey.objects.filter(broker=row).defer("secret_hash").order_by("-created_at", "-prefix")[:KEY_ROWS]
        )
        return {
            "available": row.cash - row.reserved_cash,
            "open_orders": int(row.open_orders),  # type: ignore[attr-defined]  # annotated
            "sides": [_trades_today(row, side) for side in Side],
            "holdings": holdings[:HOLDING_ROWS],
            "more_holdings": len(holdings) > HOLDING_ROWS,
            "orders": _latest_open_orders(row),
            "transfers": Transfer.objects.filter(broker=row).order_by("-created_at", "-id")[:TABLE_ROWS],
            "keys": [(key, key_state(key), _revoke_url(request, key)) for key in keys],
            "subscriptions": list(Subscription.objects.alive().filter(broker=row).order_by("event_type")),
            "audit": latest_entries(row, *keys),
        }


def today() -> datetime:
    """Return the start of the current day in UTC."""
    return start_of_day(timezone.now())


# --- Trades today ---------------------------------------------------------------------------------------------------


def _bounded_count(trades: Any) -> Func:
    """Return an expression that counts trades, up to one more than `TRADE_COUNT_LIMIT`."""
    ids = ArraySubquery(trades.values("pk")[: TRADE_COUNT_LIMIT + 1])
    return Func(ids, function="CARDINALITY", output_field=IntegerField())


def _count_text(*counts: int) -> str:
    """Return the sum, with a "+" if one of the counts reached its limit."""
    more = "+" if max(counts) > TRADE_COUNT_LIMIT else ""
    return f"{sum(min(count, TRADE_COUNT_LIMIT) for count in counts):,}{more}"


def _trades_today(broker: Broker, side: Side) -> dict[str, Any]:
    """Return the number and value of today's latest trades on one side of the broker."""
    of_today = Trade.objects.fills_of(broker.pk, side).select_related(None).filter(executed_at__gte=today())
    latest = of_today.annotate(value_of_trade=_VALUE).order_by("-executed_at", "-id")[: TRADE_SUM_LIMIT + 1]
    found = latest.aggregate(count=Count("pk"), value=Coalesce(Sum("value_of_trade"), Decimal(0)))
    url = list_url(Trade, broker=broker.pk, side=side, since=f"{today():%Y-%m-%dT%H:%M:%S}")
    return {
        "side": side,
        **found,
        "is_more": found["count"] > TRADE_SUM_LIMIT,
        "limit": TRADE_SUM_LIMIT,
        "url": url,
    }


# --- Holdings and open orders ---------------------------------------------------------------------------------------


def _holdings_of(broker: Broker) -> list[dict[str, Any]]:
    """Return a broker's holdings, with one row more than is shown."""
    is_held = Q(quantity__gt=0) | Q(open_orders__gt=0)
    held = Holding.objects.filter(is_held, broker=broker).order_by("instrument")[: HOLDING_ROWS + 1]
    return [
        {
            "symbol": holding.instrument_id,
            "url": page_url(Instrument, holding.instrument_id),
            "quantity": int(holding.quantity),
            "reserved": int(holding.reserved),
            "available": int(holding.quantity - holding.reserved),
            "open_orders": holding.open_orders,
        }
        for holding in held
    ]


def _latest_open_orders(broker: Broker) -> list[Order]:
    """Return a broker's latest open orders. An index returns the latest of each book."""
    of_book = Order.objects.working().filter(broker=OuterRef("broker"), instrument=OuterRef("instrument"))
    latest = ArraySubquery(of_book.order_by("-sequence").values("pk")[:TABLE_ROWS])
    books = Holding.objects.filter(broker=broker, open_orders__gt=0).annotate(latest=latest)
    ids = [pk for each in books.values_list("latest", flat=True) for pk in each]
    newest = sorted(ids, reverse=True)[:TABLE_ROWS]  # version 7 IDs sort by time
    return list(Order.objects.filter(pk__in=newest).order_by("-created_at", "-id"))


def _revoke_url(request: HttpRequest, key: ApiKey) -> str:
    """Return the URL that revokes the key, or "" if the user may not or it is already revoked."""
    action = RevokeKeys()
    return action_url(ApiKey, action, key) if action.applies_to(key) and is_permitted(request, action) else ""
