"""A day at the exchange, with the client that openapi-python-client makes of /openapi.json and nothing else of ours.

Two brokers are admitted, trade, look around, cancel, and one is told about it; each answer is what it must be.

    python trade.py http://127.0.0.1:8000 OPERATOR_KEY

The package `bourse_client` must be importable. Every run trades a symbol of its own, so it can be run again.
"""

# mypy: disallow-any-explicit

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue
from threading import Thread
from typing import TypeVar
from uuid import UUID, uuid4

import msgspec
from bourse_client import AuthenticatedClient
from bourse_client.api.brokers import create_broker, get_balance
from bourse_client.api.orders import cancel_order, get_order, list_orders, place_order
from bourse_client.api.stocks import get_book
from bourse_client.api.webhooks import subscribe, unsubscribe
from bourse_client.models import (
    CancelReason,
    CreateBrokerForm,
    EventType,
    InitialHoldingForm,
    OrderBody,
    OrderStatus,
    OrderSummary,
    PlaceOrderForm,
    Problem,
    Side,
    SubscribeForm,
    TimeInForce,
)
from bourse_client.types import UNSET, Unset

WEBHOOK_SECONDS = 10.0

Body = TypeVar("Body")


class Refused(Exception):
    """The exchange said no: the problem says why."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(f"{problem.code}: {problem.detail}")


def answered(answer: Body | Problem | None) -> Body:
    """What was asked for; a refusal is raised."""
    if isinstance(answer, Problem):
        raise Refused(answer)
    assert answer is not None  # a status that the document does not name is raised by the client
    return answer


def exact(number: float) -> Decimal:
    """The decimal that the exchange wrote: a float keeps 15 digits, as many as 9,999,999,999,999.99 has."""
    return Decimal(str(number))


# --- Being told -----------------------------------------------------------------------------------------------------


class Fill(msgspec.Struct):
    """One side of a trade, with its order's state right after it."""

    trade_id: UUID
    order_id: UUID
    symbol: str
    side: Side
    price: Decimal
    quantity: int
    status: OrderStatus
    remaining_quantity: int


class Closed(msgspec.Struct):
    """A resting order that was cancelled."""

    order_id: UUID
    symbol: str
    side: Side
    price: Decimal
    quantity: int
    filled_quantity: int
    remaining_quantity: int
    status: OrderStatus


class TradeExecuted(msgspec.Struct, tag_field="event", tag=EventType.TRADE_EXECUTED.value):
    timestamp: datetime
    data: Fill


class OrderCancelled(msgspec.Struct, tag_field="event", tag=EventType.ORDER_CANCELLED.value):
    timestamp: datetime
    data: Closed


class Receiver(HTTPServer):
    """Takes in what the exchange tells, on a port of its own."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Telling)
        self.told: Queue[TradeExecuted | OrderCancelled] = Queue()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def next(self) -> TradeExecuted | OrderCancelled:
        return self.told.get(timeout=WEBHOOK_SECONDS)


class _Telling(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.told.put(msgspec.json.decode(body, type=TradeExecuted | OrderCancelled))
        self.send_response(HTTPStatus.NO_CONTENT)
        self.end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing: what was told is looked at."""


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
    """What one broker does, with its own key."""

    def __init__(self, client: AuthenticatedClient, broker_id: str) -> None:
        self.client, self.broker_id = client, broker_id

    def place(self, side: Side, quantity: int, price: str, symbol: str) -> OrderBody:
        """Place an order that lives until it is cancelled. The price is a string: exact, however it is written."""
        form = PlaceOrderForm(
            broker_id=self.broker_id,
            document_number="12345678900",
            side=side,
            symbol=symbol,
            quantity=quantity,
            price=price,
            time_in_force=TimeInForce.GTC,
            client_order_id=str(uuid4()),  # with it, a request whose answer was lost can be sent again
        )
        return answered(place_order.sync(client=self.client, body=form))

    def orders(self) -> Iterator[OrderSummary]:
        """All its orders, newest first, one page after the other."""
        cursor: str | Unset = UNSET
        while True:
            page = answered(list_orders.sync(self.broker_id, client=self.client, cursor=cursor, limit=1))
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
        seller_key, buyer_key = (  # each is shown this once
            answered(create_broker.sync(client=operator, body=form)).api_key for form in (selling, buying)
        )
    with client_with(base_url, seller_key) as of_seller, client_with(base_url, buyer_key) as of_buyer:
        seller, buyer = Broker(of_seller, selling.broker_id), Broker(of_buyer, buying.broker_id)
        with receiving() as receiver:
            trade_and_be_told(seller, buyer, symbol, receiver)


def trade_and_be_told(seller: Broker, buyer: Broker, symbol: str, receiver: Receiver) -> None:
    events = [EventType.TRADE_EXECUTED, EventType.ORDER_CANCELLED]
    wanted = SubscribeForm(broker_id=seller.broker_id, url=receiver.url, events=events)
    webhooks = answered(subscribe.sync(client=seller.client, body=wanted)).webhooks
    assert [webhook.event for webhook in webhooks] == events

    ask = seller.place(Side.ASK, 500, "148.00", symbol)
    bid = buyer.place(Side.BID, 300, "150.00", symbol)  # trades at the seller's price
    assert (ask.status, bid.status, bid.filled_quantity) == (OrderStatus.PENDING, OrderStatus.FILLED, 300)
    assert [(exact(fill.price), fill.quantity) for fill in bid.trades] == [(Decimal("148.00"), 300)]

    told = receiver.next()
    assert isinstance(told, TradeExecuted)
    assert (told.data.trade_id, told.data.order_id) == (bid.trades[0].trade_id, ask.order_id)
    assert (told.data.price, told.data.quantity) == (Decimal("148.00"), 300)
    assert (told.data.status, told.data.remaining_quantity) == (OrderStatus.PARTIALLY_FILLED, 200)

    look_around(seller, buyer, ask, symbol)

    resting = seller.place(Side.ASK, 100, "155.10", symbol)
    cancelled = cancel(seller, resting)

    told = receiver.next()
    assert isinstance(told, OrderCancelled)
    assert (told.data.order_id, told.timestamp) == (resting.order_id, cancelled.cancelled_at)
    assert (told.data.price, told.data.remaining_quantity) == (Decimal("155.10"), 100)

    for webhook in webhooks:
        gone = unsubscribe.sync_detailed(webhook.webhook_id, client=seller.client)
        assert gone.status_code == HTTPStatus.NO_CONTENT
    assert [order.order_id for order in seller.orders()] == [resting.order_id, ask.order_id]


def look_around(seller: Broker, buyer: Broker, ask: OrderBody, symbol: str) -> None:
    """Read the order, the book and the balance after the first trade."""
    order = answered(get_order.sync(ask.order_id, client=seller.client))
    assert (order.status, order.filled_quantity, order.remaining_quantity) == (OrderStatus.PARTIALLY_FILLED, 300, 200)

    book = answered(get_book.sync(symbol, client=buyer.client))
    assert [(exact(level.price), level.total_quantity) for level in book.asks] == [(Decimal("148.00"), 200)]
    assert book.bids == []

    balance = answered(get_balance.sync(buyer.broker_id, client=buyer.client))
    assert exact(balance.cash_balance) == Decimal("100000.25") - 300 * Decimal("148.00")
    assert [(holding.symbol, holding.quantity) for holding in balance.holdings] == [(symbol, 300)]


def cancel(broker: Broker, order: OrderBody) -> OrderBody:
    """Cancel the order; a second time that is refused."""
    cancelled = answered(cancel_order.sync(order.order_id, client=broker.client))
    assert (cancelled.status, cancelled.cancel_reason) == (OrderStatus.CANCELLED, CancelReason.BY_BROKER)

    again = cancel_order.sync(order.order_id, client=broker.client)
    assert isinstance(again, Problem)
    assert again.code == "order_not_cancellable"
    return cancelled


if __name__ == "__main__":
    trade(*sys.argv[1:])
