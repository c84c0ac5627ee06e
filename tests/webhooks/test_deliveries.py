"""Deliveries of a real worker: each event reaches its subscribers once, as the contract specifies.

Most tests share one worker. Each test ends when no delivery is in flight, so that no test sends those of another.
"""

import asyncio
import json
import os
import signal
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from statistics import median
from typing import Any

import httpx
import pytest
import redis
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.models import Count, F
from pytest_django import Settings

from config.local.processes import wait_until
from config.local.servers import Valkey
from exchange import heartbeat
from orders import expiry
from orders import services as orders_services
from orders.enums import CancelReason, Side, TimeInForce
from orders.matching import service
from orders.matching.commands import CancelOrder
from orders.models import Order, Trade
from tests import api, celery_processes, live, trading
from tests.celery_processes import Celery, CeleryProcess, start_all
from tests.receiver import Receiver, Request, hang, respond
from tests.trading import BY, order, place, start_thread
from tests.webhooks.deliveries import (
    drain,
    no_dispatcher,
    outcomes,
    subscribe,
    trade,
    wait_until_complete,
    wait_until_idle,
)
from webhooks import dispatcher, services, wakeup
from webhooks.models import Delivery, Event, EventType

pytestmark = pytest.mark.django_db(transaction=True)

ASK, BID = Side.ASK, Side.BID
TRADE, CANCELLED, EXPIRED = EventType.TRADE_EXECUTED, EventType.ORDER_CANCELLED, EventType.ORDER_EXPIRED
PATIENCE_SECONDS = trading.TIMEOUT_SECONDS
SOON_SECONDS = 0.5  # usually less than beat would take
BROKERS = [f"broker-{number}" for number in range(8)]


@pytest.fixture(scope="module")
def shared_worker(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryProcess]:
    with celery_processes.celery(tmp_path_factory.mktemp("celery"), settings.REDIS_URL) as processes:
        yield processes.webhook_worker("shared")


@pytest.fixture
def worker(transactional_db: None, shared_worker: CeleryProcess) -> Iterator[CeleryProcess]:
    """A webhook worker, which has nothing left to do when the tables are emptied."""
    if not shared_worker.child.is_running():
        shared_worker.start()
    yield shared_worker
    wait_until_complete()
    wait_until_idle()


@pytest.fixture
def no_worker(shared_worker: CeleryProcess) -> None:
    """Stop the shared worker, so that only the test and its own processes send."""
    shared_worker.child.stop()


@pytest.fixture(autouse=True)
def _brokers(transactional_db: None) -> None:
    for name in ["alice", "bob", "maker"]:
        trading.broker(name)


# --- Contents -------------------------------------------------------------------------------------------------------


def test_events_arrive_with_the_headers_and_bytes_of_the_contract(worker: CeleryProcess, receiver: Receiver) -> None:
    webhook_ids = {type_: subscribe("alice", receiver.url(f"/{type_}"), type_) for type_ in EventType}
    bid = place(BID, 5, "10.5")
    place(ASK, 3, "10.5", by="bob")
    trading.cancel(bid)
    ask = expire(place(ASK, 7, "11", **gtd_for_an_hour()))
    wait_until_complete()

    (trade,) = Trade.objects.all()
    bid.refresh_from_db()
    bodies = [
        f'{{"event":"trade.executed","timestamp":"{timestamp(trade.executed_at)}","data":{{'
        f'"trade_id":"{trade.pk}","order_id":"{bid.pk}","symbol":"AAPL","side":"bid","price":10.50,"quantity":3,'
        '"status":"partially_filled","remaining_quantity":2}}',
        f'{{"event":"order.cancelled","timestamp":"{timestamp(bid.cancelled_at)}","data":{{'
        f'"order_id":"{bid.pk}","symbol":"AAPL","side":"bid","price":10.50,"quantity":5,"filled_quantity":3,'
        '"remaining_quantity":2,"status":"cancelled"}}',
        f'{{"event":"order.expired","timestamp":"{timestamp(ask.expires_at)}","data":{{'
        f'"order_id":"{ask.pk}","symbol":"AAPL","side":"ask","price":11.00,"quantity":7,"filled_quantity":0,'
        '"remaining_quantity":7,"status":"expired"}}',
    ]
    requests = in_sequence(receiver)
    assert [request.body.decode() for request in requests] == bodies
    for sequence, (type_, request) in enumerate(zip([TRADE, CANCELLED, EXPIRED], requests, strict=True), start=1):
        assert (request.method, request.path) == ("POST", f"/{type_}")
        assert request.headers == {
            "host": f"127.0.0.1:{receiver.port}",
            "user-agent": "Bourse",
            "content-type": "application/json",
            "content-length": str(len(request.body)),
            "x-webhook-id": str(webhook_ids[type_]),
            "x-event-type": type_,
            "x-delivery-id": str(Delivery.objects.get(event__type=type_).pk),
            "x-event-sequence": str(sequence),
        }


@pytest.mark.parametrize(("tick", "price", "shown"), [("0.0001", "10", "10.0000"), ("0.5", "10.5", "10.50")])
def test_prices_have_the_decimals_of_their_instrument(
    worker: CeleryProcess, receiver: Receiver, tick: str, price: str, shown: str
) -> None:
    trading.instrument("PETR4", tick=tick)
    subscribe("alice", receiver.url(), *EventType)
    trading.cancel(place(BID, 5, price, symbol="PETR4"))
    wait_until_complete()

    (request,) = receiver.requests
    assert f'"price":{shown},'.encode() in request.body


def test_both_sides_of_a_trade_get_an_event_for_their_order(worker: CeleryProcess, receiver: Receiver) -> None:
    subscribe("alice", receiver.url("/alice"))
    subscribe("bob", receiver.url("/bob"))
    ask = place(ASK, 3, "10", by="bob")
    bid = place(BID, 5, "12", by="alice")
    wait_until_complete()

    (trade,) = Trade.objects.all()
    both = {"trade_id": str(trade.pk), "symbol": "AAPL", "price": Decimal("10.00"), "quantity": 3}
    (to_alice,), (to_bob,) = receiver.requests_to("/alice"), receiver.requests_to("/bob")
    assert data(to_alice) == both | {
        "order_id": str(bid.pk),
        "side": "bid",
        "status": "partially_filled",
        "remaining_quantity": 2,
    }
    assert data(to_bob) == both | {"order_id": str(ask.pk), "side": "ask", "status": "filled", "remaining_quantity": 0}


def test_each_trade_event_has_the_remaining_quantity_after_it(worker: CeleryProcess, receiver: Receiver) -> None:
    """A taker fills three makers, and a maker is filled by three takers."""
    subscribe("alice", receiver.url())
    for quantity, price in [(2, "10"), (3, "11"), (4, "12")]:
        place(ASK, quantity, price, by="bob")
    place(BID, 10, "12")
    place(ASK, 9, "20")
    for quantity in [2, 3, 4]:
        place(BID, quantity, "20", by="bob")
    wait_until_complete()

    fields = ("side", "price", "quantity", "status", "remaining_quantity")
    assert [tuple(data(request)[field] for field in fields) for request in in_sequence(receiver)] == [
        ("bid", 10, 2, "partially_filled", 8),
        ("bid", 11, 3, "partially_filled", 5),
        ("bid", 12, 4, "partially_filled", 1),
        ("ask", 20, 2, "partially_filled", 7),
        ("ask", 20, 3, "partially_filled", 4),
        ("ask", 20, 4, "filled", 0),
    ]


def test_immediate_cancels_send_no_event(worker: CeleryProcess, receiver: Receiver) -> None:
    subscribe("alice", receiver.url(), *EventType)
    place(ASK, 3, "10", by="bob")
    place(BID, 5, "10", time_in_force=TimeInForce.IOC)
    place(BID, 5, "10", time_in_force=TimeInForce.FOK)
    place(ASK, 1, "12", by="bob")
    place(BID, 5, None)
    place(BID, 5, None)
    place(BID, 5, None, time_in_force=TimeInForce.FOK)
    wait_until_complete()

    assert Order.objects.filter(broker="alice", status="cancelled").count() == 5
    assert [(request.headers["x-event-type"], data(request)["quantity"]) for request in in_sequence(receiver)] == [
        ("trade.executed", 3),
        ("trade.executed", 1),
    ]


def test_every_cancel_of_a_resting_order_sends_an_event(worker: CeleryProcess, receiver: Receiver) -> None:
    subscribe("alice", receiver.url(), *EventType)
    by_broker, by_operator, by_suspension = (place(BID, 5, "10") for _ in range(3))
    trading.cancel(by_broker)
    trading.execute_one(CancelOrder(by_operator.pk, None, CancelReason.BY_OPERATOR))
    orders_services.suspend("alice", cancel_orders=True, by=BY)
    wait_until_complete()

    assert [(request.headers["x-event-type"], data(request)["order_id"]) for request in in_sequence(receiver)] == [
        ("order.cancelled", str(each.pk)) for each in (by_broker, by_operator, by_suspension)
    ]


# --- Subscribers ----------------------------------------------------------------------------------------------------


def test_only_subscribed_events_are_sent(worker: CeleryProcess, receiver: Receiver) -> None:
    subscribe("alice", receiver.url("/alice"), CANCELLED)
    subscribe("bob", receiver.url("/bob"), EXPIRED)
    bid = place(BID, 5, "10")
    place(ASK, 3, "10", by="bob")
    trading.cancel(bid)
    wait_until_complete()

    assert [(request.path, request.headers["x-event-type"]) for request in receiver.requests] == [
        ("/alice", "order.cancelled")
    ]
    assert receiver.requests[0].headers["x-event-sequence"] == "2"
    assert Event.objects.count() == 3
    assert outcomes("bob") == []


def test_a_broker_on_both_sides_of_a_trade_gets_two_events(worker: CeleryProcess, receiver: Receiver) -> None:
    subscribe("alice", receiver.url())
    ask, bid = place(ASK, 5, "10"), place(BID, 5, "10")
    wait_until_complete()

    assert {data(request)["order_id"] for request in receiver.requests} == {str(ask.pk), str(bid.pk)}
    assert len(receiver.requests) == 2
    assert len({data(request)["trade_id"] for request in receiver.requests}) == 1


def test_two_brokers_may_share_a_url(worker: CeleryProcess, receiver: Receiver) -> None:
    webhook_ids = [subscribe(name, receiver.url()) for name in ("alice", "bob")]
    place(ASK, 5, "10", by="bob")
    place(BID, 5, "10")
    wait_until_complete()

    sides = {request.headers["x-webhook-id"]: data(request)["side"] for request in receiver.requests}
    assert sides == dict(zip(map(str, webhook_ids), ["bid", "ask"], strict=True))
    assert len(receiver.requests) == 2


def test_sequences_of_a_broker_have_no_gap(worker: CeleryProcess, receiver: Receiver) -> None:
    for name in ("alice", "bob"):
        subscribe(name, receiver.url(f"/{name}"), *EventType)
    place(ASK, 20, "10", by="bob")
    service.execute([order(BID, 1, "10") for _ in range(10)])
    for bid in [place(BID, 1, "9") for _ in range(5)]:
        trading.cancel(bid)
    expire(place(BID, 1, "9", **gtd_for_an_hour()))
    orders_services.suspend("bob", cancel_orders=True, by=BY)
    wait_until_complete()

    for name, count in [("alice", 10 + 5 + 1), ("bob", 10 + 1)]:
        numbers = [int(request.headers["x-event-sequence"]) for request in receiver.requests_to(f"/{name}")]
        assert sorted(numbers) == list(range(1, count + 1))


def test_nothing_is_sent_after_a_delete(worker: CeleryProcess, receiver: Receiver) -> None:
    """Neither due deliveries nor later events are sent."""
    webhook_id = subscribe("alice", receiver.url())
    with no_dispatcher():
        trade(3)
        services.unsubscribe("alice", webhook_id)
    wait_until_complete()
    trade()

    assert outcomes() == [(None, "subscription_deleted")] * 3
    assert receiver.requests == []


def test_due_deliveries_go_to_the_current_url(worker: CeleryProcess, receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url("/old"))
    with no_dispatcher():
        trade(3)
        assert subscribe("alice", receiver.url("/new")) == webhook_id
    wait_until_complete()

    assert [request.path for request in receiver.requests] == ["/new"] * 3
    assert {request.headers["x-webhook-id"] for request in receiver.requests} == {str(webhook_id)}


# --- Outcomes -------------------------------------------------------------------------------------------------------


def test_each_attempt_is_stored_and_made_once(worker: CeleryProcess, receiver: Receiver) -> None:
    subscribe("alice", receiver.on("/failing", respond(500, after_seconds=0.3)))
    subscribe("bob", receiver.on("/good", respond(204)))
    place(ASK, 5, "10", by="bob")
    place(BID, 5, "10")
    wait_until_complete()
    trade(of="bob")  # the dispatcher looks for due deliveries again
    wait_until_complete()

    assert outcomes() == [(500, "")]
    assert outcomes("bob") == [(204, "")] * 2
    assert len(receiver.requests_to("/failing")) == 1
    for each in Delivery.objects.select_related("event"):
        assert each.claimed_at is not None
        assert each.completed_at is not None
        assert each.duration_ms is not None
        assert each.event.occurred_at < each.claimed_at < each.completed_at
        milliseconds = (each.completed_at - each.claimed_at) / timedelta(milliseconds=1)
        assert 300 * (each.status_code == 500) <= each.duration_ms <= milliseconds


def test_orders_over_http_and_in_a_batch_send_events(
    worker: CeleryProcess, server: live.Server, receiver: Receiver
) -> None:
    key = trading.broker("carol")
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as carol:
        body = {"broker_id": "carol", "url": receiver.url(), "events": [TRADE, CANCELLED]}
        ids = {each["webhook_id"] for each in carol.post("/webhooks", json=body).json()["webhooks"]}
        bid = carol.post("/orders", json=api.limit("bid", 5, "10", broker_id="carol")).json()
        service.execute([order(ASK, 1, "10"), order(ASK, 2, "10", by="bob"), order(BID, 1, "9", by="carol")])
        cancelled = carol.delete(f"/orders/{bid['order_id']}").json()
        wait_until_complete()
        for webhook_id in ids:
            assert carol.delete(f"/webhooks/{webhook_id}").status_code == 204
        trade(of="carol")
        wait_until_complete()

    requests = in_sequence(receiver)
    assert {request.headers["x-webhook-id"] for request in requests} == ids
    assert [(request.headers["x-event-type"], data(request)["remaining_quantity"]) for request in requests] == [
        ("trade.executed", 4),
        ("trade.executed", 2),
        ("order.cancelled", 2),
    ]
    assert json.loads(requests[-1].body)["timestamp"] == cancelled["cancelled_at"]


# --- Timing ---------------------------------------------------------------------------------------------------------


def test_an_event_is_sent_soon_without_beat(worker: CeleryProcess, receiver: Receiver) -> None:
    """This includes the moments when the dispatcher is about to end, 0.3 s after its last delivery."""
    subscribe("alice", receiver.url())
    place(ASK, 100, "10", by="bob")
    delays = []
    for number in range(10):
        time.sleep(0.28 + number * 0.03)
        placed = time.monotonic()
        place(BID, 1, "10")
        assert receiver.wait_for(number + 1, PATIENCE_SECONDS)
        delays.append(receiver.requests[-1].received_at - placed)
    assert median(delays) < SOON_SECONDS, delays


def test_a_rolled_back_event_is_not_sent(worker: CeleryProcess, receiver: Receiver) -> None:
    subscribe("alice", receiver.url(), *EventType)

    resting = place(BID, 1, "1.00", by="bob")
    cancel, taken = CancelOrder(place(BID, 1, "1.00").pk, "alice"), order(BID, 1, "1.00", order_id=resting.pk)
    with pytest.raises(IntegrityError):
        service.execute([cancel, taken])
    trade()
    wait_until_complete()

    assert [request.headers["x-event-type"] for request in receiver.requests] == [TRADE]


def test_beat_starts_a_dispatcher_regularly(
    no_worker: None, celery_on_own_valkey: Celery, valkey: Valkey, receiver: Receiver
) -> None:
    """Its messages are the heartbeats of the worker, whose own timer leaves none."""
    start_all(celery_on_own_valkey.webhook_worker(), celery_on_own_valkey.beat())
    with redis.Redis.from_url(valkey.url) as client:
        assert wait_until(lambda: bool(client.exists(heartbeat.WEBHOOKS)), PATIENCE_SECONDS)
        client.delete(heartbeat.WEBHOOKS)
        assert wait_until(lambda: bool(client.exists(heartbeat.WEBHOOKS)), PATIENCE_SECONDS)


# --- Dispatchers ----------------------------------------------------------------------------------------------------


def test_any_process_can_send_due_deliveries(no_worker: None, receiver: Receiver) -> None:
    subscribe("alice", receiver.url())
    trade(9)
    drain()

    assert outcomes() == [(200, "")] * 9
    assert len(receiver.requests) == 9


def test_a_second_drain_makes_the_first_one_look_again(no_worker: None, receiver: Receiver) -> None:
    subscribe("alice", receiver.on("/alice", respond(after_seconds=3)))
    subscribe("bob", receiver.url("/bob"))
    trade()
    draining = start_thread(partial(dispatcher.drain, 0))
    assert receiver.wait_for(1, PATIENCE_SECONDS)
    trade(of="bob")
    drain()

    assert not draining.done()  # the second drain did not wait
    draining.result(PATIENCE_SECONDS)
    assert [request.path for request in receiver.requests] == ["/alice", "/bob"]


def test_several_dispatchers_send_each_delivery_once(no_worker: None, celery: Celery, receiver: Receiver) -> None:
    """Dispatchers in two workers and in this process; one of them works at a time."""
    start_all(celery.webhook_worker("first"), celery.webhook_worker("second"))
    due = create_due_deliveries(receiver, 100)
    own = start_thread(partial(dispatcher.drain, 0))
    while len(receiver.requests) < due / 2:
        wakeup.request()
        time.sleep(settings.WEBHOOK_WAKE_UP_INTERVAL_SECONDS)
    wait_until_complete()
    own.result(PATIENCE_SECONDS)

    assert_sent_once(receiver, due)
    assert set(receiver.max_in_flight.values()) == {settings.WEBHOOK_CONCURRENCY_PER_ENDPOINT}


def test_a_clean_stop_under_load_loses_no_delivery(no_worker: None, celery: Celery, receiver: Receiver) -> None:
    due = create_due_deliveries(receiver, 100)
    first, second = celery.webhook_worker("first"), celery.webhook_worker("second")
    first.start()
    wakeup.request()
    assert receiver.wait_for(100, PATIENCE_SECONDS)
    first.stop()
    assert 100 <= len(receiver.requests) < due
    claimed = Delivery.objects.exclude(claimed_at=None)
    assert list(claimed.values_list("status_code").annotate(Count("pk"))) == [(200, len(receiver.requests))]
    second.start()
    wait_until_complete()

    assert_sent_once(receiver, due)


def test_a_stopping_dispatcher_releases_its_claims(no_worker: None, receiver: Receiver) -> None:
    subscribe("alice", receiver.url())
    trade(5)
    ours = dispatcher.Dispatcher(0)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK webhooks_delivery")
        running = start_thread(lambda: asyncio.run(ours.run()))
        assert wait_until(is_any_lock_awaited, PATIENCE_SECONDS)  # about to claim
        ours.stop()
    running.result(PATIENCE_SECONDS)
    assert receiver.requests == []
    assert not Delivery.objects.exclude(claimed_at=None).exists()

    drain()
    assert outcomes() == [(200, "")] * 5


def test_a_frozen_worker_loses_its_shard_to_another(worker: CeleryProcess, receiver: Receiver) -> None:
    subscribe("alice", receiver.on("/hang", hang))
    subscribe("bob", receiver.url("/bob"))
    trade()
    assert receiver.wait_for(1, PATIENCE_SECONDS)
    assert worker.child.pid

    def is_sent_from_here() -> bool:
        drain()
        return bool(receiver.requests_to("/bob"))

    os.kill(worker.child.pid, signal.SIGSTOP)
    try:
        trade(of="bob")
        assert not is_sent_from_here()
        assert wait_until(is_sent_from_here, settings.IDLE_LOCK_TIMEOUT_MS / 1000 + SOON_SECONDS)
    finally:
        os.kill(worker.child.pid, signal.SIGCONT)
    wait_until_complete()

    assert outcomes("alice") == [(None, "timeout")]
    assert outcomes("bob") == [(200, "")]
    assert len(receiver.requests) == 2


def test_deliveries_in_flight_at_a_kill_are_never_sent_again(
    no_worker: None, celery: Celery, receiver: Receiver
) -> None:
    subscribe("alice", receiver.on("/alice", hang))
    trade(6)
    first, second = celery.webhook_worker("first"), celery.webhook_worker("second")
    first.start()
    wakeup.request()
    assert receiver.wait_for(4, PATIENCE_SECONDS)
    first.kill()
    receiver.on("/alice", respond())
    second.start()
    wakeup.request()

    assert wait_until(lambda: Delivery.objects.filter(completed_at=None).count() == 4, PATIENCE_SECONDS)
    second.stop()
    assert outcomes() == [(None, "")] * 4 + [(200, "")] * 2
    assert Counter(request.headers["x-event-sequence"] for request in receiver.requests) == Counter("123456")


def test_each_endpoint_is_served_by_one_shard(no_worker: None, settings: Settings, receiver: Receiver) -> None:
    settings.WEBHOOK_SHARDS = 3
    due = create_due_deliveries(receiver, 2)
    served: list[set[str]] = []
    for shard in range(settings.WEBHOOK_SHARDS):
        before = len(receiver.requests)
        drain(shard)
        served.append({request.path for request in receiver.requests[before:]})

    assert_sent_once(receiver, due)
    paths = {request.path for request in receiver.requests}
    assert len(paths) == len(BROKERS)
    shards = {path: zlib.crc32(receiver.url(path).encode()) % settings.WEBHOOK_SHARDS for path in paths}
    assert served == [{path for path in paths if shards[path] == shard} for shard in range(settings.WEBHOOK_SHARDS)]


# --- Helpers --------------------------------------------------------------------------------------------------------


def create_due_deliveries(receiver: Receiver, per_broker: int) -> int:
    """Create due deliveries of several brokers with slow receivers, and return their number."""
    for name in BROKERS:
        trading.broker(name)
        subscribe(name, receiver.on(f"/{name}", respond(after_seconds=0.05)))
    with no_dispatcher():
        trade(per_broker, of=BROKERS)
    return per_broker * len(BROKERS)


def assert_sent_once(receiver: Receiver, due: int) -> None:
    """Check that each of the due deliveries was sent once and succeeded."""
    assert list(Delivery.objects.values_list("status_code", "error").distinct()) == [(200, "")]
    sent = Counter(request.headers["x-delivery-id"] for request in receiver.requests)
    assert sent == Counter(map(str, Delivery.objects.values_list("pk", flat=True)))
    assert sent.total() == due


def is_any_lock_awaited() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'relation')")
        (waits,) = cursor.fetchone()
    return bool(waits)


def gtd_for_an_hour() -> dict[str, Any]:
    return {"time_in_force": TimeInForce.GTD, "expires_at": datetime.now(UTC) + timedelta(hours=1)}


def expire(resting: Order) -> Order:
    """Let an order expire in a sweep, and return it."""
    Order.objects.filter(pk=resting.pk).update(expires_at=F("created_at"))
    expiry.expire_due_orders()
    resting.refresh_from_db()
    assert resting.status == "expired"
    return resting


def in_sequence(receiver: Receiver) -> list[Request]:
    """The requests of one broker's events, in sequence."""
    return sorted(receiver.requests, key=lambda request: int(request.headers["x-event-sequence"]))


def data(request: Request) -> dict[str, Any]:
    return dict(json.loads(request.body, parse_float=Decimal)["data"])


def timestamp(moment: datetime | None) -> str:
    assert moment is not None
    return moment.isoformat().replace("+00:00", "Z")
