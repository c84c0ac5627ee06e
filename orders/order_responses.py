"""Responses to placing and cancelling an order, shared by the fast path and the views."""

from http import HTTPStatus
from uuid import UUID

from exchange.http.middleware import Environ, actor_of
from exchange.http.responses import RenderedResponse, json_response
from exchange.keys import Principal
from orders import order_queries
from orders.enums import CancelReason
from orders.matching.commands import Accepted, Cancelled, CancelOrder, Replayed
from orders.response_bodies import OrderBody

REPLAY_HEADERS = {"Idempotent-Replayed": "true"}


def place_response(outcome: Accepted | Replayed) -> RenderedResponse:
    """The order after matching, or the earlier order in its current state for a replay."""
    if isinstance(outcome, Replayed):
        return json_response(order_queries.read_order(outcome.order_id, owner=None), headers=REPLAY_HEADERS)
    return json_response(order_body(outcome), HTTPStatus.CREATED)


def order_body(outcome: Accepted) -> OrderBody:
    return OrderBody.with_trades(outcome.order, outcome.trades, outcome.price_decimals)


def cancel_command(order_id: UUID, principal: Principal, environ: Environ) -> CancelOrder:
    """The command to cancel an order with a key; an operator's is recorded in the audit log."""
    by = actor_of(principal, environ) if principal.is_operator else None
    return CancelOrder(order_id, principal.broker_id, cancel_reason(principal), by)


def cancel_reason(principal: Principal) -> CancelReason:
    return CancelReason.BY_OPERATOR if principal.is_operator else CancelReason.BY_BROKER


def cancel_response(outcome: Cancelled) -> RenderedResponse:
    """The cancelled order, with all its trades."""
    return json_response(OrderBody.with_trades(outcome.order, outcome.trades, outcome.price_decimals))
