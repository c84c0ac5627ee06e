"""Kills and outages under load: each event arrives at most once, and only deliveries in flight may be lost.

Brokers trade over HTTP while webhook processes and servers are ended. Then the received requests are compared with the
rows. `-s` shows the measurements.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from django.conf import settings
from django.db import connection
from pytest_django import Settings

from config.local.processes import Child, wait_until
from config.local.servers import Postgres, Valkey
from exchange.database import database_now
from orders.enums import Side, TimeInForce
from tests import celery_processes, live, trading
from tests.celery_processes import Celery, start_all
from tests.orders.test_faults import AMPLE, SYMBOLS, Client
from tests.receiver import Receiver, Request, respond
from tests.trading import start_thread
from tests.webhooks import reconciliation
from webhooks import delivery_queue, dispatcher, services
from webhooks.models import Delivery, EventType

pytestmark = pytest.mark.django_db(transaction=True)

BROKERS = {"alice": 0.0, "bob": 0.02, "carol": 0.05}  # and the response time of each one's receiver
PAUSE_SECONDS = 0.05  # between two orders of a broker
KILLS = 5
RESUME_SECONDS = 60.0
PACE_SECONDS = 2.0
OUTAGE_SECONDS = 1.0
STEP_SECONDS = 60.0
CHURN_SECONDS = 6.0
LONG, FEW = 20_000, 50  # rows
LATE_SECONDS = 3.0  # a delivery claimed just before its subscription changed may still arrive
SLOWEST_SECONDS = 5.0  # limit of an order while two cores run all processes
LATEST_SECONDS = 5.0  # delay of a delivery or an expiry without beat or Valkey
DISPATCH = "import config, django; django.setup()\nfrom webhooks import dispatcher\nwhile True: dispatcher.drain(0)"


@dataclass
class Trader(Client):
    """A broker's client with a pause between orders."""

    broker_id: str = ""
    pause_seconds: float = PAUSE_SECONDS

    def new_order(self) -> dict[str, Any]:
        own = {"broker_id": self.broker_id, "quantity": 1, "client_order_id": uuid4().hex}
        return super().new_order() | own

    def post_until(self, stop: Event) -> None:
        while not stop.wait(self.pause_seconds):
            self.post()


@pytest.fixture(autouse=True)
def _quiet_clients(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "httpx")  # it logs every request otherwise


@pytest.fixture
def keys(receiver: Receiver) -> dict[str, str]:
    """Brokers subscribed to all events, each with its own endpoint."""
    keys = {}
    for broker_id, seconds in BROKERS.items():
        keys[broker_id] = trading.broker(broker_id, cash=AMPLE, holdings=dict.fromkeys(SYMBOLS, AMPLE))
        url = receiver.on(f"/{broker_id}", respond(after_seconds=seconds))
        services.subscribe(broker_id, url=url, events=list(EventType))
    return keys


@contextmanager
def under_load(url: str, keys: dict[str, str], *, pause_seconds: float = PAUSE_SECONDS) -> Iterator[Sequence[Trader]]:
    """Let every broker post one order after another."""
    traders = [
        Trader(number, url, key, broker_id=broker_id, pause_seconds=pause_seconds)
        for number, (broker_id, key) in enumerate(keys.items())
    ]
    stop = Event()
    posting = [start_thread(partial(trader.post_until, stop)) for trader in traders]
    try:
        yield traders
    finally:
        stop.set()
        for future in posting:
            future.result(trading.TIMEOUT_SECONDS)
        for trader in traders:
            trader.http.close()


def trade(seller: str, buyer: str) -> None:
    """Make one trade in this process, whose wake-ups go to the session's Valkey."""
    trading.place(Side.ASK, 1, "10", by=seller)
    trading.place(Side.BID, 1, "10", by=buyer)


def wait_for_more(receiver: Receiver, more: int = 5) -> float:
    """Wait for `more` further requests, and return the seconds that it took."""
    started = time.monotonic()
    assert receiver.wait_for(len(receiver.requests) + more, RESUME_SECONDS)
    return time.monotonic() - started


def assert_reconciled(receiver: Receiver, *, kills: int, database_url: str | None = None) -> None:
    """Check that all is sent, and that only deliveries in flight at a kill have an unknown outcome."""
    database_url = database_url or session_database_url()
    assert reconciliation.wait_until_sent(database_url, RESUME_SECONDS)
    rows = reconciliation.rows(database_url)
    reconciliation.assert_each_event_has_one_delivery(rows)
    unknown = reconciliation.unknown_outcomes(rows, receiver.requests)
    show(f"{len(rows)} events, {len(receiver.requests)} arrived, {len(unknown)} unknown after {kills} kills")
    endpoints = {request.path for request in receiver.requests}
    # Twice the limit: deliveries in flight, and others that arrived without a stored outcome.
    assert len(unknown) <= kills * len(endpoints) * 2 * settings.WEBHOOK_CONCURRENCY_PER_ENDPOINT


def session_database_url() -> str:
    return celery_processes.environment()["DATABASE_URL"]


def show(text: str) -> None:
    print(text)  # noqa: T201


# --- Worker and beat ------------------------------------------------------------------------------------------------


def test_kills_of_the_worker_lose_only_deliveries_in_flight(
    server: live.Server, celery: Celery, receiver: Receiver, keys: dict[str, str]
) -> None:
    random = Random(1)
    worker, beat = celery.webhook_worker(), celery.beat()
    start_all(worker, beat)
    with under_load(server.url, keys):
        for number in range(KILLS):
            wait_for_more(receiver)
            time.sleep(random.uniform(0, 0.5))
            if number == 0:  # its main process alone, once
                assert worker.child.pid
                os.kill(worker.child.pid, signal.SIGKILL)
                assert wait_until(lambda: not worker.child.is_running(), trading.TIMEOUT_SECONDS)
            worker.kill()
            worker.launch()
    assert_reconciled(receiver, kills=KILLS)


def test_deliveries_continue_without_beat_and_wake_ups(
    celery_on_own_valkey: Celery, receiver: Receiver, keys: dict[str, str]
) -> None:
    """The wake-ups of this process go to another Valkey and are lost."""
    start_all(celery_on_own_valkey.webhook_worker())
    for number in [1, 2]:
        trade("alice", "bob")
        assert receiver.wait_for(2 * number, LATEST_SECONDS)
    assert_reconciled(receiver, kills=0)


# --- Single dispatcher ----------------------------------------------------------------------------------------------


def test_a_dispatcher_looks_again_before_it_ends(receiver: Receiver, keys: dict[str, str], settings: Settings) -> None:
    """A wake-up that was lost, or received by another worker, delays a delivery by its linger time at most."""
    settings.WEBHOOK_LINGER_SECONDS = 2.0
    trade("alice", "bob")
    draining = start_thread(partial(dispatcher.drain, 0))
    assert wait_until(lambda: Delivery.objects.exclude(completed_at=None).count() == 2, RESUME_SECONDS)
    trade("bob", "carol")
    draining.result(RESUME_SECONDS)
    assert len(receiver.requests) == 4
    assert_reconciled(receiver, kills=0)


def test_due_deliveries_are_claimed_without_reading_a_long_queue() -> None:
    """The planner's statistics show one subscription with all rows."""
    create_due("alice", LONG)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE webhooks_delivery, webhooks_event, webhooks_subscription")
    subscription_id = create_due("bob", 5)
    wanted = json.dumps([{"id": str(subscription_id), "url": "http://127.0.0.1:9/bob", "slots": 4}])
    assert 0 < count_rows_read(delivery_queue._DUE, 4) < FEW
    assert 0 < count_rows_read(delivery_queue._SAVE_OUTCOMES_AND_CLAIM, "[]", wanted) < FEW
    assert reconciliation.count_due(session_database_url()) == LONG + 1


def create_due(broker_id: str, count: int) -> UUID:
    """Create due deliveries of one broker, and return its webhook_id."""
    trading.broker(broker_id)
    (subscription,), _ = services.subscribe(
        broker_id, url=f"http://127.0.0.1:9/{broker_id}", events=[EventType.TRADE_EXECUTED]
    )
    with connection.cursor() as cursor:
        cursor.execute(_INSERT_DUE, [broker_id, count, subscription.pk])
    return UUID(str(subscription.pk))


_INSERT_DUE = """
WITH event AS (
  INSERT INTO webhooks_event (id, broker_id, sequence, type, occurred_at, body)
  SELECT uuidv7(), %s, number, 'trade.executed', now(), repeat('x', 300) FROM generate_series(1, %s) number RETURNING id
)
INSERT INTO webhooks_delivery (id, event_id, subscription_id) SELECT uuidv7(), id, %s FROM event
"""


def count_rows_read(statement: str, *parameters: int | str) -> int:
    """Execute a statement, and count the events and deliveries that it reads."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        (plans,) = cursor.fetchone()
    plan: list[dict[str, Any]] = json.loads(plans) if isinstance(plans, str) else plans
    reads = [node for node in nodes(plan[0]["Plan"]) if node["Node Type"].endswith("Scan")]
    nodes_read = [node for node in reads if node.get("Relation Name") in ("webhooks_event", "webhooks_delivery")]
    rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in nodes_read)
    read: float = sum(count * node["Actual Loops"] for count, node in zip(rows, nodes_read, strict=True))
    return round(read)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


# --- Two dispatchers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["workers", "processes"])
def test_one_of_two_dispatchers_sends_and_the_other_takes_over(
    kind: str, server: live.Server, celery: Celery, receiver: Receiver, keys: dict[str, str], tmp_path: Path
) -> None:
    """Two workers on one queue, or two processes that only drain."""
    if kind == "workers":
        celery.beat().launch()
    both = {
        name: celery.webhook_worker(name).child if kind == "workers" else dispatch_process(name, tmp_path)
        for name in ["first", "second"]
    }
    try:
        for name, child in both.items():
            child.env = {**child.env, "PGAPPNAME": name}  # the name of its sessions
            child.start()
        with under_load(server.url, keys):
            wait_for_more(receiver, 100)
            killed = wait_for_dispatcher(*both)
            (other,) = set(both) - {killed}
            both[killed].kill()
            killed_at = time.monotonic()
            wait_for_dispatcher(other)
            show(f"of two {kind} the other took over after {time.monotonic() - killed_at:.2f} s")
            wait_for_more(receiver, 100)
        assert_reconciled(receiver, kills=1)
    finally:
        for child in both.values():
            child.kill()


def dispatch_process(name: str, folder: Path) -> Child:
    argv = [sys.executable, "-c", DISPATCH]
    return Child(name, argv, log=folder / f"{name}.log", env=celery_processes.environment(), cwd=live.ROOT)


def wait_for_dispatcher(*names: str) -> str:
    """Wait until one of these dispatches, and return its name."""
    found: list[str | None] = []

    def dispatches() -> bool:
        found.append(reconciliation.dispatcher_name(session_database_url()))
        return found[-1] in names

    assert wait_until(dispatches, RESUME_SECONDS)
    return str(found[-1])


# --- Servers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server_apart(valkey: Valkey, tmp_path: Path) -> Iterator[live.Server]:
    """An API server on the test's own Valkey, started by the test."""
    apart = live.server(tmp_path / "web.log")
    apart.child.env = {**apart.child.env, "REDIS_URL": valkey.url}
    yield apart
    apart.stop()


@pytest.mark.parametrize("outage", ["killed", "frozen"])
def test_orders_keep_their_pace_and_deliveries_continue_without_valkey(
    outage: str,
    server_apart: live.Server,
    celery_on_own_valkey: Celery,
    valkey: Valkey,
    receiver: Receiver,
    keys: dict[str, str],
) -> None:
    server_apart.start()
    start_all(celery_on_own_valkey.webhook_worker(), celery_on_own_valkey.beat())
    with under_load(server_apart.url, keys, pause_seconds=0) as traders:
        wait_for_more(receiver)
        before = measure_pace(traders)
        (valkey.child.kill if outage == "killed" else partial(send, valkey, signal.SIGSTOP))()
        without = measure_pace(traders)
    assert reconciliation.wait_until_sent(session_database_url(), RESUME_SECONDS)
    trade("alice", "bob")  # its wake-up goes to the session's Valkey
    traded_at = time.monotonic()
    assert wait_until(lambda: reconciliation.count_due(session_database_url()) == 0, LATEST_SECONDS)
    delay = time.monotonic() - traded_at
    if outage == "killed":
        assert valkey.restart()
    else:
        send(valkey, signal.SIGCONT)
    with under_load(server_apart.url, keys, pause_seconds=0) as traders:
        after = measure_pace(traders)
    show(f"Valkey {outage}: {before} before, {without} without it, {after} after; a delivery took {delay:.2f} s")
    # The duration of an order that waits for Valkey.
    assert without.median_seconds < settings.WEBHOOK_WAKE_UP_TIMEOUT_SECONDS
    assert without.slowest_seconds < SLOWEST_SECONDS
    assert_reconciled(receiver, kills=0)


@pytest.mark.processes
def test_expiries_and_deliveries_start_without_valkey(receiver: Receiver, keys: dict[str, str], tmp_path: Path) -> None:
    """The workers have a wrong password. A stop waits for the deliveries in flight."""
    receiver.on("/alice", respond(after_seconds=3))
    redis_url = re.sub(r":[^:@]*@", ":wrong@", settings.REDIS_URL)
    expiry_worker = celery_processes.worker(tmp_path / "worker.log", redis_url=redis_url)
    webhook_worker = celery_processes.webhook_worker(tmp_path / "webhooks.log", redis_url=redis_url)
    expiry_worker.ready_text = webhook_worker.ready_text = b"Cannot connect to redis"
    try:
        start_all(expiry_worker, webhook_worker)
        expires_at = database_now() + timedelta(seconds=0.5)
        trading.place(Side.BID, 1, "10", by="alice", time_in_force=TimeInForce.GTD, expires_at=expires_at)
        assert wait_until(Delivery.objects.exists, 0.5 + LATEST_SECONDS), expiry_worker.end_of_log()
        assert receiver.wait_for(1, LATEST_SECONDS), webhook_worker.end_of_log()
        webhook_worker.stop()
    finally:
        expiry_worker.kill()
        webhook_worker.kill()
    assert_reconciled(receiver, kills=0)


def send(valkey: Valkey, signal_number: signal.Signals) -> None:
    assert valkey.child.pid
    os.kill(valkey.child.pid, signal_number)


@dataclass(frozen=True, slots=True)
class Pace:
    """Rate and durations of orders."""

    per_second: float
    median_seconds: float
    slowest_seconds: float

    def __str__(self) -> str:
        return f"{self.per_second:.0f}/s (median {self.median_seconds:.3f} s, at most {self.slowest_seconds:.2f} s)"


def measure_pace(traders: Sequence[Trader]) -> Pace:
    """Measure the orders of the next `PACE_SECONDS`."""
    before = [len(trader.responses) for trader in traders]
    time.sleep(PACE_SECONDS)
    responses = [response for trader, old in zip(traders, before, strict=True) for response in trader.responses[old:]]
    seconds = [response.elapsed.total_seconds() for response in responses]
    return Pace(len(responses) / PACE_SECONDS, median(seconds), max(seconds))


def test_restarts_of_postgresql_lose_only_deliveries_in_flight(
    postgres: Postgres, celery_on_own_valkey: Celery, server_apart: live.Server, receiver: Receiver, tmp_path: Path
) -> None:
    worker, beat = celery_on_own_valkey.webhook_worker(), celery_on_own_valkey.beat()
    env = {**worker.child.env, "DATABASE_URL": postgres.url("bourse")}
    server_apart.child.env = worker.child.env = beat.child.env = env
    manage(env, "migrate")
    manage(env, "demo", "--credentials", str(tmp_path / "keys.json"), "--base-url", server_apart.url)
    keys = json.loads((tmp_path / "keys.json").read_text())["brokers"]
    server_apart.start()
    start_all(worker, beat)
    for broker_id, key in keys.items():
        body = {"broker_id": broker_id, "url": receiver.url(f"/{broker_id}"), "events": list(EventType)}
        with http(server_apart, key) as client:
            client.post("/webhooks", json=body).raise_for_status()
    with under_load(server_apart.url, keys):
        for end in [postgres.child.stop, postgres.child.kill]:
            wait_for_more(receiver, 20)
            end()
            time.sleep(OUTAGE_SECONDS)
            postgres.start("bourse")
            show(f"PostgreSQL is back; five more arrive within {wait_for_more(receiver):.2f} s")
            wait_for_more(receiver, 20)
    assert_reconciled(receiver, kills=2, database_url=env["DATABASE_URL"])
    manage(env, "reconcile")


def manage(env: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "manage.py", *arguments]
    subprocess.run(command, env=env, cwd=live.ROOT, check=True, capture_output=True, timeout=STEP_SECONDS)  # noqa: S603


def http(server: live.Server, key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=trading.TIMEOUT_SECONDS, trust_env=False)


# --- Subscriptions --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Period:
    """A path of one subscription, from the request for it to the response to its end."""

    webhook_id: str
    requested_at: float
    ended_at: float = 0.0

    def overrun(self, request: Request) -> float:
        """Seconds from its end to a request for it."""
        assert request.headers["x-webhook-id"] == self.webhook_id
        assert request.received_at > self.requested_at
        return request.received_at - self.ended_at


def test_subscriptions_may_change_under_load(
    server: live.Server, celery: Celery, receiver: Receiver, keys: dict[str, str]
) -> None:
    """One broker keeps changing its URL, unsubscribing and subscribing again, each time with another path."""
    start_all(celery.webhook_worker(), celery.beat())
    services.subscribe("alice", url=receiver.url("/0"), events=[EventType.TRADE_EXECUTED])
    stop = Event()
    with under_load(server.url, keys) as traders:
        changes = start_thread(partial(change_until, stop, server, keys["alice"], receiver))
        time.sleep(CHURN_SECONDS)
        stop.set()
        periods = changes.result(RESUME_SECONDS)
    assert reconciliation.wait_until_sent(session_database_url(), RESUME_SECONDS)
    rows = reconciliation.rows(session_database_url())
    reconciliation.assert_each_event_has_one_delivery([row for row in rows if row.broker_id != "alice"])
    assert reconciliation.unknown_outcomes(rows, receiver.requests) == []
    to_alice = [request for request in receiver.requests if request.path in periods]
    overruns = [periods[request.path].overrun(request) for request in to_alice]
    slowest = max(response.elapsed.total_seconds() for trader in traders for response in trader.responses)
    show(f"{len(periods)} periods, {len(to_alice)} requests, up to {max(overruns):.3f} s late; slowest {slowest:.2f} s")
    assert max(overruns) < LATE_SECONDS
    assert slowest < SLOWEST_SECONDS
    assert [trader.failures for trader in traders] == [{}, {}, {}]


def change_until(stop: Event, server: live.Server, key: str, receiver: Receiver) -> dict[str, Period]:
    """Subscribe alice with one path after another, every third time with a new subscription."""
    periods: dict[str, Period] = {}
    with http(server, key) as client:
        last = Period("", 0)
        for number in count(1):
            body = {"broker_id": "alice", "url": receiver.url(f"/{number}"), "events": [EventType.TRADE_EXECUTED]}
            requested_at = time.monotonic()
            response = client.post("/webhooks", json=body).raise_for_status()
            last.ended_at = last.ended_at or time.monotonic()
            (webhook,) = response.json()["webhooks"]
            last = periods[f"/{number}"] = Period(webhook["webhook_id"], requested_at)
            time.sleep(PAUSE_SECONDS)
            if number % 3 == 0:
                client.delete(f"/webhooks/{last.webhook_id}").raise_for_status()
                last.ended_at = time.monotonic()
                time.sleep(PAUSE_SECONDS)
                if stop.is_set():
                    return periods
    raise AssertionError
