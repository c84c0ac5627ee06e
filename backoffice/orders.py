"""Orders: search, filters, the page of an order with its history, and cancellation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin
from django.db import connection
from django.db.models import F, Q, Value
from django.db.models.lookups import GreaterThan
from django.http import HttpRequest

from backoffice import form_fields
from backoffice.audit import latest_entries
from backoffice.exports import columns_of
from backoffice.links import list_url, page_url
from backoffice.lists import KeysetQuery, Rows, column
from backoffice.model_admin import KeysetModelAdmin
from backoffice.operator_actions import MAX_SUBJECTS, ActionResult, Impact, OperatorAction
from backoffice.periods import PeriodFilterForm, in_period, in_period_by_id, period_condition
from backoffice.queries import order_history
from backoffice.queries.order_history import EventLookup, OrderFill
from backoffice.templatetags.formatting import money, readable, short_id, side_label, status_pill
from exchange.audit import Action, Actor
from exchange.errors import ExchangeError
from exchange.http.paging import NEWEST_FIRST, Keyset
from exchange.models import AuditEntry, Broker, Instrument
from exchange.rules import CLIENT_ORDER_ID, DOCUMENT_NUMBER, mean, price_decimals
from orders.enums import WORKING, CancelReason, OrderStatus, OrderType, Side
from orders.matching import sequencer
from orders.matching.commands import CancelOrder
from orders.models import Order, Trade

WORKING_FILTER = "working"  # filter value for all statuses in which an order can still trade
REFUSALS_IN_MESSAGE = 5  # in the message of a bulk cancellation

_BY_ID = Keyset(("-id", UUID))


class CancelWorkingOrders(OperatorAction):
    name = "cancel"
    label = "Cancel"
    label_format = "Cancel order"
    back_label = "Keep orders"
    explanation = "Cancels the unfilled quantity and releases its reservation. Trades stand."
    permission = "orders.cancel_order"
    max_subjects = MAX_SUBJECTS
    is_dangerous = True

    def applies_to(self, row: Order) -> bool:
        return row.status in WORKING

    def impact(self, rows: Sequence[Order]) -> Impact:
        """Return the unfilled quantities by side: bids release their value in cash, asks their shares."""
        cells = []
        for side in Side:
            open_orders = [row for row in rows if row.side == side and self.applies_to(row)]
            quantity = sum(order.remaining_quantity for order in open_orders)
            values = (order.price * order.remaining_quantity for order in open_orders if order.price is not None)
            cells.append((readable(side), len(open_orders), quantity, sum(values, Decimal(0))))
        return Impact("Released by the cancellation", ("Side", "Orders", "Quantity", "Value"), cells)

    def describe(self, row: Order) -> str:
        return f"{row.pk} · {_summary(row)}"

    def perform(self, by: Actor, subjects: Sequence[Order], **fields: Any) -> ActionResult:
        reason: str = fields["reason"]
        outcomes = sequencer.submit_all(
            [CancelOrder(order.pk, None, CancelReason.BY_OPERATOR, by=by, audit_reason=reason) for order in subjects]
        )
        refusals = [
            (order, outcome)
            for order, outcome in zip(subjects, outcomes, strict=True)
            if isinstance(outcome, ExchangeError)
        ]
        if len(subjects) == 1 and refusals:
            raise refusals[0][1]
        return ActionResult(_cancel_message(len(subjects), refusals), is_warning=bool(refusals))


def _summary(row: Order) -> str:
    price = "at market" if row.price is None else f"at {money(row.price)}"
    terms = f"{row.side} {row.remaining_quantity:,} of {row.quantity:,} {row.symbol} {price}"
    return f"{row.broker_id} · {terms} · {readable(row.status)}"


def _cancel_message(count: int, refusals: Sequence[tuple[Order, ExchangeError]]) -> str:
    if not refusals:
        return "Order cancelled." if count == 1 else f"{count} orders cancelled."
    named = [f"{order.pk}: {refusal.detail}" for order, refusal in refusals[:REFUSALS_IN_MESSAGE]]
    more = [f"and {len(refusals) - REFUSALS_IN_MESSAGE} more."] if len(refusals) > REFUSALS_IN_MESSAGE else []
    return " ".join([f"{count - len(refusals)} of {count} orders cancelled. Not cancelled:", *named, *more])


# --- The list -------------------------------------------------------------------------------------------------------


class OrderFilterForm(PeriodFilterForm):
    q = forms.CharField(max_length=64, required=False, label="Order ID, client order ID or document number")
    status = form_fields.FilterChoiceField(OrderStatus, WORKING_FILTER)
    symbol = form_fields.symbol(required=False, read=str.upper)
    side = form_fields.FilterChoiceField(Side)
    type = form_fields.FilterChoiceField(OrderType)
    broker = form_fields.broker_id(required=False)
    off_tick = form_fields.tick_size(required=False, label="Off tick size", widget=forms.HiddenInput)
    off_lot = form_fields.shares(required=False, label="Off lot size", widget=forms.HiddenInput)
    field_order = ["q", "status", "symbol", "side", "type", "broker", "since", "until"]


@admin.register(Order)
class OrderAdmin(KeysetModelAdmin):
    list_display = (
        column("Symbol", "symbol", link=lambda order: page_url(Instrument, order.symbol)),
        column("Side", lambda order: side_label(order.side)),
        column("Price", "price", is_number=True),
        column("Quantity", "quantity", is_number=True),
        column("Order", lambda order: short_id(order.pk), link=lambda order: page_url(Order, order.pk)),
        column("Filled", "filled_quantity", is_number=True),
        column("Status", lambda order: status_pill(order.status)),
        column("Placed", "created_at"),
        column("Type", "type"),
        column("TIF", "time_in_force"),
        column("Broker", "broker_id", link=lambda order: page_url(Broker, order.broker_id)),
        column("Document number", "document_number"),
        column("Client order ID", "client_order_id"),
    )
    export_columns = columns_of(Order, without=("sequence", "rank"), id="order_id")
    form_class = OrderFilterForm
    operator_actions = (CancelWorkingOrders(),)
    row_template = "backoffice/order.html"
    is_live = True

    def keyset_query(self, filters: dict[str, Any]) -> KeysetQuery:
        """Read along the most selective index: search term, working orders, broker, time or symbol."""
        query = _indexed_query(filters)
        for name in _MULTIPLES:
            if filters[name]:
                query = replace(query, unindexed=query.unindexed & _is_off(name, filters[name]))
        return query

    def summary(self, row: Order) -> str:
        return f"order · {_summary(row)}"

    def row_context(self, request: HttpRequest, row: Order) -> dict[str, Any]:
        fills, has_more_fills = order_history.latest_fills(row)
        fill_events, end_event = order_history.look_up_events(row, fills)
        entries = latest_entries(row)
        return {
            "fills": fills,
            "has_more_fills": has_more_fills,
            "history": order_history_of(row, fills, fill_events, end_event, entries, has_more_fills=has_more_fills),
            "queue_position": order_history.queue_position_of(row),
            "max_ahead": order_history.MAX_AHEAD,
            "max_events": order_history.MAX_SCANNED_EVENTS,
            "average_price": _average_price(row),
            "audit": entries,
        }


_WORKING_STATUSES = {WORKING_FILTER, *(status.value for status in WORKING)}
_FILTER_FIELDS = {"status": "status", "symbol": "instrument", "side": "side", "type": "type", "broker": "broker"}

# The values that must be multiples of the tick size and of the lot size.
_MULTIPLES: dict[str, Any] = {"off_tick": F("price"), "off_lot": F("quantity") - F("filled_quantity")}


def off_url(symbol: str, name: str, size: Any) -> str:
    """Return the list of a book's open orders off a tick size or a lot size, or "" if there are none."""
    orders = Order.objects.working().filter(_is_off(name, size), instrument=symbol)
    return list_url(Order, symbol=symbol, status=WORKING_FILTER, **{name: size}) if orders.exists() else ""


def _is_off(name: str, size: Any) -> Q:
    return Q(GreaterThan(_MULTIPLES[name] % Value(size), Value(0)))


def _indexed_query(filters: dict[str, Any]) -> KeysetQuery:
    if filters["q"]:
        return _search(
            filters["q"], _unindexed_condition(filters, *_FILTER_FIELDS) & period_condition("created_at", filters)
        )
    if filters["status"] in _WORKING_STATUSES:
        return _working_orders_query(filters)
    rows: Rows = Order.objects.all()
    if filters["broker"]:
        rows = in_period(rows.filter(broker=filters["broker"]), "created_at", filters)
        return KeysetQuery(rows, NEWEST_FIRST, _unindexed_condition(filters, "status", "symbol", "side", "type"))
    if filters["symbol"] and not (filters["since"] or filters["until"]):
        arrivals = rows.filter(instrument=filters["symbol"])
        return KeysetQuery(
            arrivals, Keyset(("-sequence", int)), _unindexed_condition(filters, "status", "side", "type")
        )
    return KeysetQuery(
        in_period_by_id(rows, "created_at", filters),
        _BY_ID,
        _unindexed_condition(filters, "status", "symbol", "side", "type"),
    )


def _unindexed_condition(filters: dict[str, Any], *names: str) -> Q:
    """Return the condition for these filters, which the chosen index does not cover."""
    found = Q()
    for name in names:
        if name == "status" and filters[name] == WORKING_FILTER:
            found &= Q(status__in=[status.value for status in WORKING])
        elif filters[name]:
            found &= Q(**{_FILTER_FIELDS[name]: filters[name]})
    return found


def _working_orders_query(filters: dict[str, Any]) -> KeysetQuery:
    """Read all working orders: those of a broker by arrival, those of a book by priority."""
    rows: Rows = Order.objects.working()
    names = ("type",) if filters["status"] == WORKING_FILTER else ("status", "type")
    if filters["broker"]:
        unindexed = _unindexed_condition(filters, "side", *names) & period_condition("created_at", filters)
        rows = rows.filter(broker=filters["broker"])
        if filters["symbol"]:
            return KeysetQuery(rows.filter(instrument=filters["symbol"]), Keyset(("-sequence", int)), unindexed)
        return KeysetQuery(rows, Keyset(("instrument_id", str), ("sequence", int)), unindexed)
    unindexed = _unindexed_condition(filters, *names) & period_condition("created_at", filters)
    priority = (("rank", Decimal), ("sequence", int))
    if filters["symbol"] and filters["side"]:
        return KeysetQuery(
            rows.filter(instrument=filters["symbol"], side=filters["side"]), Keyset(*priority), unindexed
        )
    unindexed &= _unindexed_condition(filters, "side")
    if filters["symbol"]:
        return KeysetQuery(rows.filter(instrument=filters["symbol"]), Keyset(("side", str), *priority), unindexed)
    return KeysetQuery(rows, Keyset(("instrument_id", str), ("side", str), *priority), unindexed)


def _search(term: str, unindexed: Q) -> KeysetQuery:
    """Find orders by order ID, client order ID or document number, newest first."""
    try:
        return KeysetQuery(Order.objects.filter(pk=UUID(term)), _BY_ID, unindexed)
    except ValueError:
        pass
    parts: list[Rows] = []
    if DOCUMENT_NUMBER.fullmatch(term):
        parts.append(Order.objects.filter(document_number=term))
    if CLIENT_ORDER_ID.fullmatch(term) and (ids := _orders_with_client_id(term)):
        parts.append(Order.objects.filter(pk__in=ids))
    return KeysetQuery(parts[0] if parts else Order.objects.none(), _BY_ID, unindexed, parts[1:])


def _orders_with_client_id(client_order_id: str) -> list[UUID]:
    """Return the orders of all brokers with this client order ID: one index lookup per broker."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT named.id FROM exchange_broker broker CROSS JOIN LATERAL (
              SELECT id FROM orders_order WHERE broker_id = broker.id AND client_order_id = %s
            ) named
            """,
            [client_order_id],
        )
        return [found for (found,) in cursor.fetchall()]


# --- The page of an order -------------------------------------------------------------------------------------------


def _average_price(order: Order) -> Decimal | None:
    if not order.filled_quantity:
        return None
    return mean(order.filled_value, order.filled_quantity, price_decimals(order.instrument.tick_size))


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """An entry of an order's history: time, event, details, and the broker's notification."""

    at: datetime
    title: str
    detail: str = ""
    event_lookup: EventLookup | None = None
    url: str = ""
    tone: str = "plain"


def order_history_of(
    order: Order,
    fills: Sequence[OrderFill],
    fill_events: dict[UUID, EventLookup],
    end_event: EventLookup | None,
    entries: Sequence[AuditEntry],
    *,
    has_more_fills: bool,
) -> list[HistoryEntry]:
    """Return the history of an order, oldest entry first."""
    price = "at market" if order.price is None else f"at {money(order.price)}"
    terms = f"{order.side} {order.quantity:,} {price}, {order.time_in_force}, book sequence {order.sequence:,}"
    history = [HistoryEntry(order.created_at, "Accepted", terms)]
    if has_more_fills:
        history.append(HistoryEntry(fills[-1].trade.executed_at, "Earlier fills", "not shown; view all trades"))
    history += [_fill_entry(fill, fill_events.get(fill.trade.pk)) for fill in reversed(fills)]
    if order.cancelled_at:
        history.append(
            HistoryEntry(order.cancelled_at, "Cancelled", _cancel_detail(order, entries), end_event, tone="bad")
        )
    if order.expired_at:
        detail = f"{order.remaining_quantity:,} unfilled"
        history.append(HistoryEntry(order.expired_at, "Expired", detail, end_event, tone="bad"))
    return history


def _fill_entry(fill: OrderFill, event_lookup: EventLookup | None) -> HistoryEntry:
    trade, role = fill.trade, "taker" if fill.is_taker else "maker"
    detail = f"{trade.quantity:,} at {money(trade.price)} as {role}, {fill.remaining:,} remaining"
    return HistoryEntry(trade.executed_at, "Filled", detail, event_lookup, page_url(Trade, trade.pk), tone="good")


def _cancel_detail(order: Order, entries: Sequence[AuditEntry]) -> str:
    """Return the reason of a cancellation, and the operator if it was one."""
    reason = readable(order.cancel_reason)
    by = next((entry for entry in entries if entry.action == Action.ORDER_CANCEL), None)
    detail = f"{reason}, {order.remaining_quantity:,} unfilled"
    return f"{detail}: {by.actor_kind} {by.actor}, “{by.reason}”" if by else detail
