"""Serializers of requests about orders, and of order rows into Structs.

They check the shape only. The rules of the market are checked under the locks.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from django.conf import settings
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail

from exchange import rules
from exchange.http import fields
from exchange.http.fields import CrossFieldError, StrictSerializer
from exchange.serializers import ReasonSerializer
from orders.enums import OrderType, Side, TimeInForce
from orders.models import Order
from orders.response_bodies import OrderSummary

MARKET_TIMES_IN_FORCE = (TimeInForce.IOC, TimeInForce.FOK)

_price, _quantity = fields.Amount(), fields.Quantity()


class PlaceOrderSerializer(StrictSerializer):
    """A new order."""

    type = fields.Choice(OrderType, default=OrderType.LIMIT)
    broker_id = fields.Text(rules.BROKER_ID)
    document_number = fields.Text(rules.DOCUMENT_NUMBER)
    side = fields.Choice(Side)
    symbol = fields.Text(rules.SYMBOL)
    price = fields.Amount(default=None, allow_null=True)
    quantity = fields.Quantity()
    expires_at = fields.Timestamp(default=None, allow_null=True)
    time_in_force = fields.Choice(TimeInForce, required=False)
    client_order_id = fields.Text(rules.CLIENT_ORDER_ID, default=None, allow_null=True)

    @classmethod
    def with_derived_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Add the default time in force of the order's type."""
        if "time_in_force" not in values:
            values["time_in_force"] = TimeInForce.IOC if values["type"] is OrderType.MARKET else TimeInForce.GTD
        return values

    @classmethod
    def cross_field_errors(cls, data: Mapping[str, Any]) -> list[CrossFieldError]:
        if data.get("type", OrderType.LIMIT) == OrderType.MARKET:
            return _market_order_errors(data)
        return _limit_order_errors(data) + _excessive_notional(data)


def _excessive_notional(data: Mapping[str, Any]) -> list[CrossFieldError]:
    try:
        price = _price.to_internal_value(data.get("price"))
        quantity = _quantity.to_internal_value(data.get("quantity"))
    except serializers.ValidationError:
        return []  # already an error of that field
    if price * quantity <= rules.MAX_NOTIONAL:
        return []
    return [("quantity", ErrorDetail("price times quantity may be at most 10^15.", "notional_too_large"))]


def _limit_order_errors(data: Mapping[str, Any]) -> list[CrossFieldError]:
    found = []
    if data.get("price") is None:
        found.append(("price", ErrorDetail("A limit order needs a price.", "required")))
    time_in_force, expires_at = data.get("time_in_force"), data.get("expires_at")
    if expires_at is None and time_in_force in (None, TimeInForce.GTD):
        detail = "Say until when the order is valid: send expires_at, or another time_in_force."
        found.append(("expires_at", ErrorDetail(detail, "required")))
    if expires_at is not None and time_in_force not in (None, TimeInForce.GTD):
        found.append(("expires_at", ErrorDetail("Only a gtd order has an expires_at.", "not_allowed")))
    return found


def _market_order_errors(data: Mapping[str, Any]) -> list[CrossFieldError]:
    found = [
        (name, ErrorDetail(f"A market order has no {name}.", "not_allowed"))
        for name in ("price", "expires_at")
        if data.get(name) is not None
    ]
    if data.get("time_in_force") not in (None, *MARKET_TIMES_IN_FORCE):
        found.append(("time_in_force", ErrorDetail("A market order is ioc or fok.", "not_allowed")))
    return found


class OrderBodies(fields.StrictList):
    """List of orders that are validated one by one later: an invalid order is its own error, not the list's."""

    child = PlaceOrderSerializer()

    def run_child_validation(self, data: Iterable[Any]) -> list[Any]:
        return list(data)


class PlaceOrdersSerializer(StrictSerializer):
    """A batch of orders."""

    orders = OrderBodies(min_length=1, max_length=settings.MAX_BATCH_ORDERS)


class OrderLookupSerializer(StrictSerializer):
    """Query of an order by its `client_order_id`."""

    client_order_id = fields.Text(rules.CLIENT_ORDER_ID)
    broker_id = fields.Text(rules.BROKER_ID, required=False)


class CancelOrdersQuerySerializer(StrictSerializer):
    """Query of the working orders to cancel: by symbol, by side, by both, or all."""

    symbol = fields.Text(rules.SYMBOL, required=False)
    side = fields.Choice(Side, required=False)
    all = fields.Text(re.compile("true"), required=False)
    broker_id = fields.Text(rules.BROKER_ID, required=False)

    @classmethod
    def cross_field_errors(cls, data: Mapping[str, Any]) -> list[CrossFieldError]:
        """Require either a filter or `all`, so that a missing filter never cancels everything."""
        has_filter = "symbol" in data or "side" in data
        if has_filter and "all" in data:
            return [("all", ErrorDetail("Send either all=true, or a symbol or side, not both.", "not_allowed"))]
        if not has_filter and "all" not in data:
            return [("symbol", ErrorDetail("Name the orders: send symbol, side or both, or all=true.", "required"))]
        return []


class SuspendSerializer(ReasonSerializer):
    """The reason of a suspension, and whether to cancel the broker's orders."""

    cancel_orders = fields.Boolean(default=False)


class BookQuerySerializer(StrictSerializer):
    """Query of a book."""

    depth = fields.QueryInteger(1, settings.BOOK_DEPTH_MAX, default=settings.BOOK_DEPTH_DEFAULT)


class QuoteQuerySerializer(StrictSerializer):
    """Query of a quote: the market order."""

    side = fields.Choice(Side)
    quantity = fields.QueryInteger(1, rules.MAX_QUANTITY)


class OrderSummarySerializer(serializers.BaseSerializer[Order]):
    def to_representation(self, order: Order) -> OrderSummary:
        return OrderSummary.of(order, rules.price_decimals(order.instrument.tick_size))
