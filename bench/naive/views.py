"""The exchange as two views: lock the instrument, loop over the opposite orders, save each row."""

import json
from collections.abc import Callable
from decimal import Decimal
from functools import wraps
from hashlib import sha256
from typing import Any
from uuid import UUID

from django.http import HttpRequest, JsonResponse

from bench.naive.matcher import Rejected, cancel, place
from exchange.models import ApiKey
from orders.models import Order

View = Callable[..., JsonResponse]


def authenticated(view: View) -> View:
    """Authenticate the request by its key, and convert `Rejected` to a response."""

    @wraps(view)
    def wrapper(request: HttpRequest, **arguments: Any) -> JsonResponse:
        _, prefix, secret = request.headers["Authorization"].split("_")
        key = ApiKey.objects.filter(prefix=prefix, revoked_at=None).first()
        if key is None or bytes(key.secret_hash) != sha256(secret.encode()).digest():
            return JsonResponse({}, status=401)
        try:
            return view(request, key.broker_id, **arguments)
        except Rejected as rejection:
            return JsonResponse({"code": rejection.code}, status=rejection.status)

    return wrapper


@authenticated
def orders(request: HttpRequest, broker_id: str) -> JsonResponse:
    order, trades = place(broker_id, json.loads(request.body, parse_float=Decimal))
    trades_shown = [{"trade_id": each.pk, "price": each.price, "quantity": each.quantity} for each in trades]
    return JsonResponse(_body(order) | {"trades": trades_shown}, status=201)


@authenticated
def order(request: HttpRequest, broker_id: str, order_id: UUID) -> JsonResponse:
    return JsonResponse(_body(cancel(broker_id, order_id)))


def _body(order: Order) -> dict[str, Any]:
    names = ["client_order_id", "broker_id", "document_number", "side", "price", "quantity", "filled_quantity"]
    names += ["status", "time_in_force", "remaining_quantity", "expires_at", "created_at", "cancelled_at", "symbol"]
    return {"order_id": order.pk} | {name: getattr(order, name) for name in names}
