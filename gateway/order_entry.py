"""The two requests of the fast path: place an order, cancel an order."""

import re
import time
from functools import partial
from uuid import UUID

from exchange.errors import MalformedRequest
from exchange.http import rate_limits
from exchange.http.middleware import Environ
from exchange.http.responses import RenderedResponse
from exchange.http.threads import run_in_thread
from exchange.json_codec import decode_json_object
from exchange.rules import Scope
from gateway.fast_path import FastRequest, body_of, principal_of
from orders.matching import sequencer
from orders.matching.commands import CancelOrder, PlaceOrder, Replayed
from orders.order_responses import cancel_command, cancel_response, place_response
from orders.serializers import PlaceOrderSerializer

MAX_TRADES_ON_LOOP = 100  # rendering more would delay the other requests on the event loop

_ORDER = re.compile(r"/orders/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def parse_fast_request(environ: Environ) -> FastRequest | None:
    """The request for the fast path, or None if it takes the full path."""
    match environ["REQUEST_METHOD"], environ["PATH_INFO"]:
        case "POST", "/orders":
            return None if environ["QUERY_STRING"] else _parse_place(environ)
        case "DELETE", path:
            order = _ORDER.fullmatch(path)
            return _parse_cancel(environ, UUID(order[1])) if order and not environ["QUERY_STRING"] else None
    return None


def _parse_place(environ: Environ) -> FastRequest | None:
    body = body_of(environ)
    principal = principal_of(environ)  # after the body, which may be slow to arrive while the key is revoked
    if body is None or principal is None or Scope.TRADE not in principal.scopes:
        return None
    limit = rate_limits.requests()
    if limit.is_exhausted(principal.key_prefix, time.monotonic_ns()):  # rejected before the body is parsed
        return None
    try:
        values = PlaceOrderSerializer.run_fast_validation(decode_json_object(body))
    except MalformedRequest:
        return None
    if values is None or values["broker_id"] != principal.broker_id:
        return None
    return FastRequest(principal, limit, partial(_place, PlaceOrder(**values)))


async def _place(command: PlaceOrder) -> RenderedResponse:
    outcome = await sequencer.submit_async(command)
    if isinstance(outcome, Replayed) or len(outcome.trades) > MAX_TRADES_ON_LOOP:
        return await run_in_thread(place_response, outcome)
    return place_response(outcome)


def _parse_cancel(environ: Environ, order_id: UUID) -> FastRequest | None:
    principal = principal_of(environ)
    if principal is None or not {Scope.TRADE, Scope.OPERATOR} & principal.scopes:
        return None
    return FastRequest(principal, rate_limits.cancels(), partial(_cancel, cancel_command(order_id, principal, environ)))


async def _cancel(command: CancelOrder) -> RenderedResponse:
    outcome = await sequencer.submit_async(command)
    if len(outcome.trades) > MAX_TRADES_ON_LOOP:
        return await run_in_thread(cancel_response, outcome)
    return cancel_response(outcome)
