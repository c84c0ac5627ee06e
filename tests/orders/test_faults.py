"""An acknowledged order survives whatever is killed, and what was cut off can be asked for again.

A live web server is under load while its processes, or the database's, are ended. Every test ends with all invariants
recomputed (see conftest.py).
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from threading import Event
from typing import Any

import httpx
import pytest
from django.db import connection, transaction

from config.local.processes import wait_until
from exchange.models import Instrument
from orders.models import Order, Trade
from orders.terms import OrderStatus, Side
from tests import live, trading
from tests.trading import in_thread

pytestmark = pytest.mark.django_db(transaction=True)

CLIENTS = 16
LOAD_SECONDS = 1.0  # before, between and after what is done to the servers
ANSWER_SECONDS = 10.0
RECOVERY_SECONDS = 2.0
HELD_SECONDS = 1.0
SYMBOLS = ["AAPL", "GOOG"]
AMPLE = 10**9


@dataclass
class Client:
    """A broker's program: it posts one order after another and keeps every answer, and every silence."""

    number: int
    url: str
    key: str
    answers: list[httpx.Response] = field(default_factory=list)
    unanswered: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(self.number)
        self.http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=ANSWER_SECONDS,
            trust_env=False,
        )

    def post_until(self, stop: Event) -> None:
        while not stop.is_set():
            self.post(self.new_order())

    def new_order(self) -> dict[str, Any]:
        return {
            "broker_id": "alice",
            "document_number": "12345678900",
            "side": self.random.choice(list(Side)),
            "symbol": self.random.choice(SYMBOLS),
            "price": f"10.{self.random.randint(0, 9)}",
            "quantity": self.random.randint(1, 100),
            "time_in_force": "gtc",
            "client_order_id": f"{self.number}-{len(self.answers) + len(self.unanswered)}",
        }

    def post(self, order: dict[str, Any]) -> None:
        try:
            answer = self.http.post("/orders", json=order)
        except httpx.TransportError:
            self.unanswered.append(order)
            time.sleep(0.02)
            return
        self.answers.append(answer)
        if answer.status_code >= 500:
            self.unanswered.append(order)

    def repeat_unanswered(self) -> list[int]:
        """Send again what has an unknown outcome, under the same client_order_ids; the new answers' status codes."""
        return [self.http.post("/orders", json=order).status_code for order in self.unanswered]


@pytest.fixture
def clients(server: live.Server) -> Iterator[list[Client]]:
    key = trading.broker("alice", cash=AMPLE, holdings=dict.fromkeys(SYMBOLS, AMPLE))
    clients = [Client(number, server.url, key) for number in range(CLIENTS)]
    yield clients
    for client in clients:
        client.http.close()
    if not server.answers():
        server.restart()


@contextmanager
def under_load(clients: list[Client]) -> Iterator[None]:
    """Every client posts from before the `with` until after it."""
    stop = Event()
    posting = [in_thread(partial(client.post_until, stop)) for client in clients]
    try:
        time.sleep(LOAD_SECONDS)
        yield
        time.sleep(LOAD_SECONDS)
    finally:
        stop.set()
    for future in posting:
        future.result(trading.PATIENCE_SECONDS)


# --- What must have survived ----------------------------------------------------------------------------------------


def acknowledged(clients: list[Client]) -> list[dict[str, Any]]:
    return [answer.json() for client in clients for answer in client.answers if answer.status_code == 201]


def assert_all_survived(clients: list[Client]) -> None:
    """Each acknowledged order is there, with all that its answer told; resting orders may have been filled since."""
    orders = {order.client_order_id: order for order in Order.objects.all()}
    trades = {str(trade_id) for (trade_id,) in Trade.objects.values_list("id")}
    for told in acknowledged(clients):
        order = orders[told["client_order_id"]]
        assert str(order.pk) == told["order_id"]
        assert order.filled_quantity >= told["filled_quantity"] == sum(trade["quantity"] for trade in told["trades"])
        assert trades >= {trade["trade_id"] for trade in told["trades"]}
        if told["status"] == OrderStatus.FILLED:
            assert order.status == OrderStatus.FILLED


def assert_each_order_once(clients: list[Client]) -> None:
    """Whatever got no answer can be sent again, and then every order that was ever sent is there exactly once."""
    again = Counter(status for client in clients for status in client.repeat_unanswered())
    assert set(again) <= {200, 201}
    sent = {f"{client.number}-{n}" for client in clients for n in range(number_sent(client))}
    assert sorted(Order.objects.values_list("client_order_id", flat=True)) == sorted(sent)


def number_sent(client: Client) -> int:
    ids = {answer.json()["client_order_id"] for answer in client.answers if answer.status_code == 201}
    return len(ids | {order["client_order_id"] for order in client.unanswered})


# --- What is done to the servers ------------------------------------------------------------------------------------


def test_acknowledged_orders_survive_kills_of_the_web_server_under_load(
    server: live.Server, clients: list[Client]
) -> None:
    with under_load(clients):
        for _ in range(2):
            before = len(acknowledged(clients))
            server.kill()
            server.start()
            time.sleep(LOAD_SECONDS / 2)
            assert len(acknowledged(clients)) > before
    assert any(client.unanswered for client in clients)
    assert {answer.status_code for client in clients for answer in client.answers} == {201}
    assert_all_survived(clients)
    assert_each_order_once(clients)


def test_a_web_server_told_to_stop_answers_what_it_has_begun(server: live.Server, clients: list[Client]) -> None:
    with transaction.atomic():
        Instrument.objects.select_for_update(no_key=True).get(pk="AAPL")
        posting = [in_thread(partial(client.post, client.new_order() | {"symbol": "AAPL"})) for client in clients]
        time.sleep(HELD_SECONDS)  # all are inside now, waiting for the lock or for those that do
        stopping = in_thread(server.stop)
        time.sleep(HELD_SECONDS)
        assert not server.answers()  # no new ones
        assert not stopping.done()
    for future in posting:
        future.result(ANSWER_SECONDS)
    stopping.result(ANSWER_SECONDS)
    assert [[answer.status_code for answer in client.answers] for client in clients] == [[201]] * CLIENTS
    assert Order.objects.count() == CLIENTS
    assert_all_survived(clients)


def test_orders_go_on_after_the_database_dropped_every_session(server: live.Server, clients: list[Client]) -> None:
    with under_load(clients):
        for _ in range(3):
            assert terminate_other_sessions() > 0
            dropped_at = len(acknowledged(clients))
            assert wait_until(lambda: len(acknowledged(clients)) > dropped_at + CLIENTS, RECOVERY_SECONDS)
    statuses = Counter(answer.status_code for client in clients for answer in client.answers)
    assert set(statuses) <= {201, 503, 504}
    assert_all_survived(clients)
    assert_each_order_once(clients)


def terminate_other_sessions() -> int:
    """End all sessions of this database but the one that asks; how many that were."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        (ended,) = cursor.fetchone()
    return int(ended)
