"""A day of trading, with the client that openapi-python-client generates from /openapi.json and nothing else of ours.

An operator admits two brokers, which trade, read, cancel, and receive the events. Every response is checked.

    python trade.py http://127.0.0.1:8000 OPERATOR_KEY

The package `bourse_client` must be importable. Every run trades a new symbol, so it can be repeated.
"""

# mypy: disallow-any-explicit

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue
from threading import Thread
from typing import TypeVar
from uuid import uuid4

from bourse_client import AuthenticatedClient
from bourse_client.api.brokers import get_balance
from bourse_client.api.operators import create_broker
from bourse_client.api.orders import cancel_order, get_order, list_orders, place_order
from bourse_client.api.stocks import get_book
from bourse_client.api.webhooks import subscribe, unsubscribe
from bourse_client.models import (
    CancelReason,
    CreateBrokerForm,
    EventType,
    InitialHoldingForm,
    OrderBody,
    OrderCancelledEvent,
    OrderStatus,
    OrderSummary,
    PlaceOrderForm,
    Problem,
    Side,
    SubscribeForm,
    TimeInForce,
    TradeExecutedEvent,
)
from bourse_client.types import UNSET, Unset

WEBHOOK_SECONDS = 10.0

Body = TypeVar("Body")
Event = TradeExecutedEvent | OrderCancelledEvent


class RequestRejected(Exception):
    """The exchange rejected a request."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(f"{problem.code}: {problem.detail}")


def accepted(response: Body | Problem | None) -> Body:
    """Return the body of a successful response, or raise the problem."""
    if isinstance(response, Problem):
        raise RequestRejected(response)
    assert response is not None  # the client raises statuses that the document does not name
    return response


def exact(number: float) -> Decimal:
    """Return the decimal that the exchange sent: a float keeps 15 digits, as many as 9,999,999,999,999.99 has."""
    return Decimal(str(number))


# --- Webhooks -------------------------------------------------------------------------------------------------------


class Receiver(HTTPServer):
    """Receiver of events, on a port of its own."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: Queue[Event] = Queue()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def next(self) -> Event:
        return self.events.get(timeout=WEBHOOK_SECONDS)


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(HTTPStatus.NO_CONTENT)
        self.end_headers()
        self.server.events.put(parse_event(body))

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""


def parse_event(body: bytes) -> Event:
    """Parse an event with the models of the client."""
    event = json.loads(body)
    model = TradeExecutedEvent if event["event"] == EventType.TRADE_EXECUTED else OrderCancelledEvent
    return model.from_dict(event)


@contextmanager
def receiving() -> Iterator[Receiver]:
    with Receiver() as receiver:
        Thread(target=receiver.serve_forever, daemon=True).start()
        try:
            yield receiver
        finally:
            receiver.shutdown()


# --- Trading --------------------------------------------------------------------------------------------------------


class Broker:
    """A broker, with a client of its own key."""

    def __init__(self, client: AuthenticatedClient, broker_id: str) -> None:
        self.client, self.broker_id = client, broker_id

    def place(self, side: Side, quantity: int, price: str, symbol: str) -> OrderBody:
        """Place an order that is good till cancelled. A string is an exact price in every language."""
        form = PlaceOrderForm(
            broker_id=self.broker_id,
            document_number="12345678900",
            side=side,
            symbol=symbol,
            quantity=quantity,
            price=price,
            time_in_force=TimeInForce.GTC,
            client_order_id=str(uuid4()),  # with it, a request without a response can be repeated
        )
        return accepted(place_order.sync(client=self.client, body=form))

    def orders(self) -> Iterator[OrderSummary]:
        """Yield all its orders, newest first, page by page."""
        cursor: str | Unset = UNSET
        while True:
            page = accepted(list_orders.sync(self.broker_id, client=self.client, cursor=cursor, limit=1))
            yield from page.orders
            if page.next_cursor is None:
                return
            cursor = page.next_cursor


def client_with(base_url: str, key: str) -> AuthenticatedClient:
    return AuthenticatedClient(base_url=base_url, token=key, raise_on_unexpected_status=True)


def trade(base_url: str, operator_key: str) -> None:
    run = uuid4().hex[:8].upper()
    symbol = f"DAY.{run}"
    shares = [InitialHoldingForm(symbol=symbol, quantity=1_000)]
    selling = CreateBrokerForm(broker_id=f"seller-{run}", initial_cash="0", initial_holdings=shares)
    buying = CreateBrokerForm(broker_id=f"buyer-{run}", initial_cash="100000.25")

    with client_with(base_url, operator_key) as operator:
        seller_key, buyer_key = (  # shown only here
            accepted(create_broker.sync(client=operator, body=form)).api_key for form in (selling, buying)
        )
    with client_with(base_url, seller_key) as of_seller, client_with(base_url, buyer_key) as of_buyer:
        seller, buyer = Broker(of_seller, selling.broker_id), Broker(of_buyer, buying.broker_id)
        with receiving() as receiver:
            trade_and_receive(seller, buyer, symbol, receiver)


def trade_and_receive(seller: Broker, buyer: Broker, symbol: str, receiver: Receiver) -> None:
    events = [EventType.TRADE_EXECUTED, EventType.ORDER_CANCELLED]
    subscription = SubscribeForm(broker_id=seller.broker_id, url=receiver.url, events=events)
    webhooks = accepted(subscribe.sync(client=seller.client, body=subscription)).webhooks
    assert [webhook.event for webhook in webhooks] == events

    ask = seller.place(Side.ASK, 500, "148.00", symbol)
    bid = buyer.place(Side.BID, 300, "150.00", symbol)  # trades at the seller's price
    assert (ask.status, bid.status, bid.filled_quantity) == (OrderStatus.PENDING, OrderStatus.FILLED, 300)
    assert [(exact(fill.price), fill.quantity) for fill in bid.trades] == [(Decimal("148.00"), 300)]

    event = receiver.next()
    assert isinstance(event, TradeExecutedEvent)
    assert (event.data.trade_id, event.data.order_id) == (bid.trades[0].trade_id, ask.order_id)
    assert (exact(event.data.price), event.data.quantity) == (Decimal("148.00"), 300)
    assert (event.data.status, event.data.remaining_quantity) == (OrderStatus.PARTIALLY_FILLED, 200)

    read_back(seller, buyer, ask, symbol)

    resting = seller.place(Side.ASK, 100, "155.10", symbol)
    cancelled = cancel(seller, resting)

    event = receiver.next()
    assert isinstance(event, OrderCancelledEvent)
    assert (event.data.order_id, event.timestamp) == (resting.order_id, cancelled.cancelled_at)
    assert (exact(event.data.price), event.data.remaining_quantity) == (Decimal("155.10"), 100)

    for webhook in webhooks:
        deleted = unsubscribe.sync_detailed(webhook.webhook_id, client=seller.client)
        assert deleted.status_code == HTTPStatus.NO_CONTENT
    assert [order.order_id for order in seller.orders()] == [resting.order_id, ask.order_id]


def read_back(seller: Broker, buyer: Broker, ask: OrderBody, symbol: str) -> None:
    """Read the order, the book and the balance after the first trade."""
    order = accepted(get_order.sync(ask.order_id, client=seller.client))
    assert (order.status, order.filled_quantity, order.remaining_quantity) == (OrderStatus.PARTIALLY_FILLED, 300, 200)

    book = accepted(get_book.sync(symbol, client=buyer.client))
    assert [(exact(level.price), level.total_quantity) for level in book.asks] == [(Decimal("148.00"), 200)]
    assert book.bids == []

    balance = accepted(get_balance.sync(buyer.broker_id, client=buyer.client))
    assert exact(balance.cash_balance) == Decimal("100000.25") - 300 * Decimal("148.00")
    assert [(holding.symbol, holding.quantity) for holding in balance.holdings] == [(symbol, 300)]


def cancel(broker: Broker, order: OrderBody) -> OrderBody:
    """Cancel the order. A repeated cancel is rejected."""
    cancelled = accepted(cancel_order.sync(order.order_id, client=broker.client))
    assert (cancelled.status, cancelled.cancel_reason) == (OrderStatus.CANCELLED, CancelReason.BY_BROKER)

    again = cancel_order.sync(order.order_id, client=broker.client)
    assert isinstance(again, Problem)
    assert again.code == "order_not_cancellable"
    return cancelled


if __name__ == "__main__":
    trade(*sys.argv[1:])
