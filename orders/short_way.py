"""The two requests that are made all day, by the short way: place an order, cancel an order."""

import re
import time
from functools import partial
from typing import Any
from uuid import UUID

from exchange import limits
from exchange.errors import MalformedRequest
from exchange.rules import Scope
from exchange.short_way import Errand, body_of, principal_of
from exchange.wire import decoded
from orders import quick_form
from orders.commands import PlaceOrder
from orders.views import cancel, place

_ORDER = re.compile(r"/orders/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def errand_of(environ: dict[str, Any]) -> Errand | None:
    """What a request asks for, if it is one of the two, and in a form that is beyond doubt."""
    match environ["REQUEST_METHOD"], environ["PATH_INFO"]:
        case "POST", "/orders":
            return None if environ["QUERY_STRING"] else _placing(environ)
        case "DELETE", path:
            order = _ORDER.fullmatch(path)
            return _cancelling(environ, UUID(order[1])) if order and not environ["QUERY_STRING"] else None
    return None


def _placing(environ: dict[str, Any]) -> Errand | None:
    body = body_of(environ)
    principal = principal_of(environ)  # not before: a client may be slow to send, and its key be revoked meanwhile
    if body is None or principal is None or Scope.TRADE not in principal.scopes:
        return None
    limit = limits.requests()
    if limit.is_used_up(principal.key_prefix, time.monotonic_ns()):  # refused before its body is looked at
        return None
    try:
        values = quick_form.values_of(decoded(body))
    except MalformedRequest:
        return None
    if values is None or values["broker_id"] != principal.broker_id:
        return None
    return Errand(principal, limit, partial(place, PlaceOrder(**values)))


def _cancelling(environ: dict[str, Any], order_id: UUID) -> Errand | None:
    principal = principal_of(environ)
    if principal is None or not {Scope.TRADE, Scope.OPERATOR} & principal.scopes:
        return None
    return Errand(principal, limits.cancels(), partial(cancel, order_id, principal))
