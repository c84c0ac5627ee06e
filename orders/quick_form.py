"""The usual order at a glance: the very values of `PlaceOrderForm`, in a fraction of its time.

It never refuses. Whatever it is not sure of is None, and then the form decides, and names every field that is bad.
"""

from datetime import datetime
from decimal import Decimal
from typing import Any

from rest_framework.serializers import ValidationError

from exchange.http.fields import Amount, Timestamp
from exchange.rules import BROKER_ID, CLIENT_ORDER_ID, DOCUMENT_NUMBER, MAX_NOTIONAL, MAX_QUANTITY, SYMBOL
from orders.terms import OrderType, Side, TimeInForce

MARKET_TIMES_IN_FORCE = (TimeInForce.IOC, TimeInForce.FOK)

_REQUIRED = {"broker_id", "document_number", "side", "symbol", "quantity"}
_NAMES = _REQUIRED | {"type", "price", "expires_at", "time_in_force", "client_order_id"}
_SIDES = {side.value: side for side in Side}
_TYPES = {type_.value: type_ for type_ in OrderType}
_TIMES_IN_FORCE = {word.value: word for word in TimeInForce}
_amount, _timestamp = Amount().to_internal_value, Timestamp().to_internal_value


def values_of(body: Any) -> dict[str, Any] | None:
    """The fields of a `PlaceOrder` if this JSON value is certainly one; None if it may not be."""
    if type(body) is not dict or not _REQUIRED <= body.keys() <= _NAMES:
        return None
    try:
        return _values(body)
    except (KeyError, TypeError, ValidationError):  # none of the words; no string; no amount or time
        return None


def _values(body: dict[str, Any]) -> dict[str, Any] | None:
    broker_id, document_number, symbol = body["broker_id"], body["document_number"], body["symbol"]
    if not (BROKER_ID.fullmatch(broker_id) and DOCUMENT_NUMBER.fullmatch(document_number) and SYMBOL.fullmatch(symbol)):
        return None
    client_order_id = body.get("client_order_id")
    if client_order_id is not None and not CLIENT_ORDER_ID.fullmatch(client_order_id):
        return None
    quantity = body["quantity"]
    if type(quantity) is not int or not 1 <= quantity <= MAX_QUANTITY:  # a bool is an int to Python
        return None
    type_ = _TYPES[body.get("type", OrderType.LIMIT)]
    terms = _market_terms(body) if type_ is OrderType.MARKET else _limit_terms(body, quantity)
    if terms is None:
        return None
    price, time_in_force, expires_at = terms
    return {
        "type": type_,
        "broker_id": broker_id,
        "document_number": document_number,
        "side": _SIDES[body["side"]],
        "symbol": symbol,
        "price": price,
        "quantity": quantity,
        "expires_at": expires_at,
        "time_in_force": time_in_force,
        "client_order_id": client_order_id,
    }


_Terms = tuple[Decimal | None, TimeInForce, datetime | None]


def _limit_terms(body: dict[str, Any], quantity: int) -> _Terms | None:
    time_in_force = _TIMES_IN_FORCE[body.get("time_in_force", TimeInForce.GTD)]
    expires_at = body.get("expires_at")
    if (expires_at is not None) != (time_in_force is TimeInForce.GTD):
        return None
    price = _amount(body.get("price"))
    if price * quantity > MAX_NOTIONAL:
        return None
    return price, time_in_force, None if expires_at is None else _timestamp(expires_at)


def _market_terms(body: dict[str, Any]) -> _Terms | None:
    time_in_force = _TIMES_IN_FORCE[body.get("time_in_force", TimeInForce.IOC)]
    if time_in_force not in MARKET_TIMES_IN_FORCE:
        return None
    if body.get("price") is not None or body.get("expires_at") is not None:
        return None
    return None, time_in_force, None
