"""Acknowledged orders survive kills and outages, and interrupted requests can be repeated.

A live API server is under load while its processes or the database's sessions are ended. Every test ends with a check
of all invariants (see conftest.py).
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
from orders.enums import OrderStatus, Side
from orders.models import Order, Trade
from tests import live, trading
from tests.trading import start_thread

pytestmark = pytest.mark.django_db(transaction=True)

CLIENTS = 16
LOAD_SECONDS = 1.0  # before and after each fault
RESPONSE_SECONDS = 10.0
RECOVERY_SECONDS = 2.0  # after the database ended all sessions
ARRIVAL_SECONDS = 0.4
STOPPING_SECONDS = 1.2  # together with ARRIVAL_SECONDS less than the lock timeout
SYMBOLS = ["AAPL", "GOOG"]
AMPLE = 10**9
PAUSE_SECONDS = 0.02
NOT_EXECUTED = {"overloaded", "ConnectError"}
PROBLEMS = {"overloaded", "outcome_unknown", "internal_error"}


@dataclass
class Client:
    """A broker's client, which posts one order after another and repeats each until it has a response."""

    number: int
    url: str
    key: str
    timeout_seconds: float = trading.TIMEOUT_SECONDS
    sent: int = 0
    responses: list[httpx.Response] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)  # by error

    def __post_init__(self) -> None:
        self.random = Random(self.number)
        self.http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=RESPONSE_SECONDS,
            trust_env=False,
        )

    def post_until(self, stop: Event) -> None:
        while not stop.is_set():
            self.post()

    def post(self, **order: Any) -> None:
        self.responses.append(self.send(self.new_order() | order))

    def post_batch(self, **order: Any) -> None:
        orders = [self.new_order() | order for _ in range(3)]
        self.responses.append(self.http.post("/orders/batch", json={"orders": orders}))

    def new_order(self) -> dict[str, Any]:
        self.sent += 1
        return {
            "broker_id": "alice",
            "document_number": "12345678900",
            "side": self.random.choice(list(Side)),
            "symbol": self.random.choice(SYMBOLS),
            "price": f"10.{self.random.randint(0, 9)}",
            "quantity": self.random.randint(1, 100),
            "time_in_force": "gtc",
            "client_order_id": f"{self.number}-{self.sent}",
        }

    def send(self, order: dict[str, Any]) -> httpx.Response:
        """Post until there is a response, which may be a replay only if an earlier attempt may have been executed."""
        may_be_executed = False
        deadline = time.monotonic() + self.timeout_seconds
        while time.monotonic() < deadline:
            try:
                response = self.http.post("/orders", json=order)
            except httpx.TransportError as error:
                failure = type(error).__name__
            else:
                if response.status_code < 500:
                    assert response.status_code == 201 or (response.status_code == 200 and may_be_executed), (
                        response.text
                    )
                    return response
                failure = response.json()["code"]
            self.failures[failure] += 1
            may_be_executed |= failure not in NOT_EXECUTED
            time.sleep(PAUSE_SECONDS)
        raise AssertionError(f"{order['client_order_id']} had no response: {self.failures}")


@pytest.fixture
def clients(server: live.Server, caplog: pytest.LogCaptureFixture) -> Iterator[list[Client]]:
    caplog.set_level("WARNING", "httpx")  # it logs every request otherwise
    key = trading.broker("alice", cash=AMPLE, holdings=dict.fromkeys(SYMBOLS, AMPLE))
    clients = [Client(number, server.url, key) for number in range(CLIENTS)]
    yield clients
    for client in clients:
        client.http.close()
    if not server.is_up():
        server.restart()


@contextmanager
def under_load(clients: list[Client]) -> Iterator[None]:
    """Let every client post from before the `with` block until after it."""
    stop = Event()
    posting = [start_thread(partial(client.post_until, stop)) for client in clients]
    try:
        time.sleep(LOAD_SECONDS)
        yield
        time.sleep(LOAD_SECONDS)
    finally:
        stop.set()
    for future in posting:
        future.result(trading.TIMEOUT_SECONDS)


# --- Checks ---------------------------------------------------------------------------------------------------------


def acknowledged_orders(clients: list[Client]) -> list[dict[str, Any]]:
    """Every order of the responses."""
    bodies = [response.json() for client in clients for response in list(client.responses)]
    return [result["order"] for body in bodies for result in body.get("results", [{"order": body}])]


def failures(clients: list[Client]) -> set[str]:
    return {failure for client in clients for failure in client.failures}


def assert_all_survived(clients: list[Client]) -> None:
    """Check that each acknowledged order exists once with its trades; it may have been filled further since."""
    assert Order.objects.count() == sum(client.sent for client in clients)
    orders = {order.client_order_id: order for order in Order.objects.all()}
    trades = {str(trade_id) for trade_id in Trade.objects.values_list("id", flat=True)}
    for body in acknowledged_orders(clients):
        order = orders[body["client_order_id"]]
        assert str(order.pk) == body["order_id"]
        assert order.filled_quantity >= body["filled_quantity"] == sum(trade["quantity"] for trade in body["trades"])
        assert trades >= {trade["trade_id"] for trade in body["trades"]}
        if body["status"] == OrderStatus.FILLED:
            assert order.status == OrderStatus.FILLED


def have_new_responses(before: int, clients: list[Client]) -> bool:
    """True if there are more new responses than clients."""
    return sum(len(client.responses) for client in clients) > before + CLIENTS


# --- Faults ---------------------------------------------------------------------------------------------------------


def test_acknowledged_orders_survive_kills_of_the_api_server(server: live.Server, clients: list[Client]) -> None:
    with under_load(clients):
        for _ in range(2):
            server.kill()
            before = sum(len(client.responses) for client in clients)
            server.start()
            assert wait_until(partial(have_new_responses, before, clients), trading.TIMEOUT_SECONDS)
    assert failures(clients) >= {"ConnectError"}
    assert failures(clients).isdisjoint(PROBLEMS)
    assert_all_survived(clients)


def test_a_stopping_server_completes_the_requests_in_progress(server: live.Server, clients: list[Client]) -> None:
    """Single orders wait on the event loop, batches in threads."""
    clients[0].http.get("/stocks")  # caches the key, as the fast path requires
    with transaction.atomic():
        Instrument.objects.select_for_update(no_key=True).get(pk="AAPL")
        posting = [start_thread(partial(client.post, symbol="AAPL")) for client in clients[::2]]
        posting += [start_thread(partial(client.post_batch, symbol="AAPL")) for client in clients[1::2]]
        assert wait_until(is_any_lock_awaited, RESPONSE_SECONDS)
        time.sleep(ARRIVAL_SECONDS)  # all requests have arrived
        stopping = start_thread(server.stop)
        time.sleep(STOPPING_SECONDS)
        assert not server.is_up()  # no new requests are accepted
        assert not any(future.done() for future in [*posting, stopping])
    for future in posting:
        future.result(RESPONSE_SECONDS)
    stopping.result(RESPONSE_SECONDS)
    assert failures(clients) == set()
    assert_all_survived(clients)


def is_any_lock_awaited() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_locks WHERE NOT granted")
        return cursor.fetchone() is not None


def test_orders_continue_after_the_database_ended_all_sessions(server: live.Server, clients: list[Client]) -> None:
    with under_load(clients):
        for _ in range(3):
            before = sum(len(client.responses) for client in clients)
            assert wait_until(lambda: end_other_sessions() > 0, RECOVERY_SECONDS)  # opened on demand
            assert wait_until(partial(have_new_responses, before, clients), RECOVERY_SECONDS)
    assert failures(clients) <= {"overloaded", "outcome_unknown"}
    assert_all_survived(clients)


def test_an_idle_server_accepts_orders_soon_after_the_database_ended_all_sessions(
    server: live.Server, clients: list[Client]
) -> None:
    with under_load(clients):
        pass  # fill the server's connection pool
    assert end_other_sessions() > 1
    clients[0].timeout_seconds = RECOVERY_SECONDS
    clients[0].post()
    assert failures(clients) <= {"overloaded", "outcome_unknown"}
    assert_all_survived(clients)


def end_other_sessions() -> int:
    """End all other sessions of this database and return their number."""
    close_own_sessions()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        (ended,) = cursor.fetchone()
    close_own_sessions()  # the pool's second session was ended too
    return int(ended)


def close_own_sessions() -> None:
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]  # only PostgreSQL's has a pool
