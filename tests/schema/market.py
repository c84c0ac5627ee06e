"""Market for generated requests: the ids that exist in it, and valid request bodies."""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from exchange import services as exchange_services
from exchange.rules import Scope
from orders import services
from orders.enums import Side
from orders.matching import service
from orders.matching.commands import Accepted
from orders.matching.state import OrderState
from tests import api, trading
from tests.trading import BY
from webhooks import services as webhooks
from webhooks.models import EventType, Subscription

BROKERS = ("alice", "bob")
SYMBOLS = ("AAPL", "GOOG")
OPERATORS_ONLY = {
    "list_brokers",
    "create_broker",
    "suspend_broker",
    "reinstate_broker",
    "list_transfers",
    "create_transfer",
    "list_keys",
    "create_key",
    "revoke_key",
    "create_stock",
    "delete_stock",
    "halt_stock",
    "resume_stock",
}
EACH = 20  # objects that the requests of one operation may use up

BODIES: dict[str, list[dict[str, Any]]] = {
    "place_order": [
        api.limit("bid", 5, "9.50"),
        api.limit("ask", 5, "10.50", client_order_id="placed-before"),
        api.limit("bid", 5, "9.50", expires_at=api.LATER, time_in_force="gtd"),
        api.market("ask", 1),
    ],
    "place_orders": [
        {"orders": [api.limit("bid", 5, "9.50", client_order_id="placed-before"), api.market("ask", 1), 1]},
        {"orders": [api.limit("ask", 5, "10.50"), api.limit("bid", 0, "10.50", broker_id="bob")]},
    ],
    "create_broker": [{"broker_id": "carol", "initial_cash": 1000.5, "initial_holdings": []}],
    "create_stock": [{"symbol": "PETR4", "name": "Petrobras", "tick_size": "0.05", "lot_size": 100}],
    "create_transfer": [
        {"reference": "cash-1", "cash": "-0.25", "reason": "fee"},
        {"reference": "shares-1", "symbol": "AAPL", "quantity": 5, "reason": "settled elsewhere"},
    ],
    "subscribe": [{"broker_id": "alice", "url": "http://127.0.0.1:9/hook?a=1", "events": ["trade.executed"]}],
    "create_key": [{"name": "desk", "scopes": ["read"], "expires_at": api.LATER}],
}


@dataclass(frozen=True, slots=True)
class Market:
    """Two brokers with orders and trades, with the keys of alice and of an operator."""

    keys: dict[str, str]
    _numbers: "count[int]" = field(default_factory=count)

    def existing(self) -> dict[str, list[Any]]:
        """Undo the actions of operators, add objects that can be used up, and return existing values by parameter."""
        for symbol in SYMBOLS:
            exchange_services.resume(symbol, by=BY)
        for broker_id in BROKERS:
            services.reinstate(broker_id, by=BY)
        trading.place(Side.ASK, 2, "10.00", by="bob")
        trading.place(Side.BID, 1, "10.00")
        resting = self._resting()
        return {
            "broker_id": [BROKERS[0], *BROKERS],  # mostly the broker of the key
            "symbol": [*SYMBOLS, trading.instrument(f"UNUSED{next(self._numbers)}").symbol],
            "order_id": [str(order.id) for order in resting],
            "client_order_id": [order.client_order_id for order in resting],
            "webhook_id": [str(self._subscription().pk)],
            "prefix": [exchange_services.issue_key("alice", by=BY)[0].prefix for _ in range(EACH)],
        }

    def _subscription(self) -> Subscription:
        (subscription,), _ = webhooks.subscribe(
            "alice", url="http://127.0.0.1:9/hook", events=[EventType.ORDER_EXPIRED]
        )
        return subscription

    def _resting(self) -> list[OrderState]:
        """Place new orders of alice that no order in the book crosses."""
        ids = [f"resting-{next(self._numbers)}" for _ in range(EACH)]
        placed = service.execute([trading.order(Side.BID, 1, "9.00", client_order_id=each) for each in ids])
        return [outcome.order for outcome in placed if isinstance(outcome, Accepted)]


def opened() -> Market:
    """Create the market in an empty database."""
    holdings = dict.fromkeys(SYMBOLS, 1_000_000)
    alice, _ = (trading.broker(broker_id, cash=10**9, holdings=holdings) for broker_id in BROKERS)
    _, operator = exchange_services.issue_key(None, scopes=[Scope.OPERATOR], by=BY)
    return Market({"broker": alice, "operator": operator})
