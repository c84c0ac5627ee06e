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
from orders.enums import OrderStatus, Side
from orders.models import Order, Trade
from tests import live, trading
from tests.trading import in_thread

pytestmark = pytest.mark.django_db(transaction=True)

CLIENTS = 16
LOAD_SECONDS = 1.0  # before, between and after what is done to the servers
ANSWER_SECONDS = 10.0
RECOVERY_SECONDS = 2.0  # after the database dropped everybody
INSIDE_SECONDS = 0.4
STOPPING_SECONDS = 1.2  # with what came before, less than a lock is waited for
SYMBOLS = ["AAPL", "GOOG"]
AMPLE = 10**9
PAUSE_SECONDS = 0.02
NOT_DONE = {"overloaded", "ConnectError"}
PROBLEMS = {"overloaded", "outcome_unknown", "internal_error"}


@dataclass
class Client:
    """A broker's program: it posts one order after another, each again and again until it knows what became of it."""

    number: int
    url: str
    key: str
    patience: float = trading.PATIENCE_SECONDS
    sent: int = 0
    answers: list[httpx.Response] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)  # what came instead of an answer, how often

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
            self.post()

    def post(self, **order: Any) -> None:
        self.answers.append(self.answer_to(self.new_order() | order))

    def post_batch(self, **order: Any) -> None:
        orders = [self.new_order() | order for _ in range(3)]
        self.answers.append(self.http.post("/orders/batch", json={"orders": orders}))

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

    def answer_to(self, order: dict[str, Any]) -> httpx.Response:
        """Post until there is an answer; a replay only where an earlier attempt may have been done."""
        may_be_done = False
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            try:
                answer = self.http.post("/orders", json=order)
            except httpx.TransportError as error:
                failure = type(error).__name__
            else:
                if answer.status_code < 500:
                    assert answer.status_code == 201 or (answer.status_code == 200 and may_be_done), answer.text
                    return answer
                failure = answer.json()["code"]
            self.failures[failure] += 1
            may_be_done |= failure not in NOT_DONE
            time.sleep(PAUSE_SECONDS)
        raise AssertionError(f"{order['client_order_id']} was never answered: {self.failures}")


@pytest.fixture
def clients(server: live.Server, caplog: pytest.LogCaptureFixture) -> Iterator[list[Client]]:
    caplog.set_level("WARNING", "httpx")  # which would tell of every request
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


def told(clients: list[Client]) -> list[dict[str, Any]]:
    """Every acknowledged order, as its answer told it."""
    bodies = [answer.json() for client in clients for answer in list(client.answers)]
    return [result["order"] for body in bodies for result in body.get("results", [{"order": body}])]


def failures(clients: list[Client]) -> set[str]:
    return {failure for client in clients for failure in client.failures}


def assert_all_survived(clients: list[Client]) -> None:
    """Each acknowledged order is there once, with all that its answer told; it may have been filled further since."""
    assert Order.objects.count() == sum(client.sent for client in clients)
    orders = {order.client_order_id: order for order in Order.objects.all()}
    trades = {str(trade_id) for trade_id in Trade.objects.values_list("id", flat=True)}
    for body in told(clients):
        order = orders[body["client_order_id"]]
        assert str(order.pk) == body["order_id"]
        assert order.filled_quantity >= body["filled_quantity"] == sum(trade["quantity"] for trade in body["trades"])
        assert trades >= {trade["trade_id"] for trade in body["trades"]}
        if body["status"] == OrderStatus.FILLED:
            assert order.status == OrderStatus.FILLED


def has_answered_more_than(before: int, clients: list[Client]) -> bool:
    """Every client has had a chance to be answered since."""
    return sum(len(client.answers) for client in clients) > before + CLIENTS


# --- What is done to the servers ------------------------------------------------------------------------------------


def test_acknowledged_orders_survive_kills_of_the_web_server_under_load(
    server: live.Server, clients: list[Client]
) -> None:
    with under_load(clients):
        for _ in range(2):
            server.kill()
            before = sum(len(client.answers) for client in clients)
            server.start()
            assert wait_until(partial(has_answered_more_than, before, clients), trading.PATIENCE_SECONDS)
    assert failures(clients) >= {"ConnectError"}
    assert failures(clients).isdisjoint(PROBLEMS)
    assert_all_survived(clients)


def test_a_web_server_told_to_stop_answers_what_it_has_begun(server: live.Server, clients: list[Client]) -> None:
    """Orders wait on the event loop, batches in threads."""
    clients[0].http.get("/stocks")  # now the key is known: the usual order goes the short way
    with transaction.atomic():
        Instrument.objects.select_for_update(no_key=True).get(pk="AAPL")
        posting = [in_thread(partial(client.post, symbol="AAPL")) for client in clients[::2]]
        posting += [in_thread(partial(client.post_batch, symbol="AAPL")) for client in clients[1::2]]
        assert wait_until(somebody_waits_for_a_lock, ANSWER_SECONDS)
        time.sleep(INSIDE_SECONDS)  # all are inside now, waiting for the lock or for those that do
        stopping = in_thread(server.stop)
        time.sleep(STOPPING_SECONDS)
        assert not server.answers()  # nothing new is accepted
        assert not any(future.done() for future in [*posting, stopping])
    for future in posting:
        future.result(ANSWER_SECONDS)
    stopping.result(ANSWER_SECONDS)
    assert failures(clients) == set()
    assert_all_survived(clients)


def somebody_waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_locks WHERE NOT granted")
        return cursor.fetchone() is not None


def test_orders_go_on_after_the_database_dropped_every_session(server: live.Server, clients: list[Client]) -> None:
    with under_load(clients):
        for _ in range(3):
            before = sum(len(client.answers) for client in clients)
            assert wait_until(
                lambda: terminate_other_sessions() > 0, RECOVERY_SECONDS
            )  # it opens them when it needs them
            assert wait_until(partial(has_answered_more_than, before, clients), RECOVERY_SECONDS)
    assert failures(clients) <= {"overloaded", "outcome_unknown"}
    assert_all_survived(clients)


def test_a_quiet_server_takes_orders_soon_after_the_database_dropped_every_session(
    server: live.Server, clients: list[Client]
) -> None:
    with under_load(clients):
        pass  # leaves the server with many idle sessions
    assert terminate_other_sessions() > 1
    clients[0].patience = RECOVERY_SECONDS
    clients[0].post()
    assert failures(clients) <= {"overloaded", "outcome_unknown"}
    assert_all_survived(clients)


def terminate_other_sessions() -> int:
    """End all sessions of this database but the one that asks; how many that were."""
    forget_our_sessions()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        (ended,) = cursor.fetchone()
    forget_our_sessions()  # the new pool's other one was ended too
    return int(ended)


def forget_our_sessions() -> None:
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]  # PostgreSQL's has one
