"""A dispatcher in this process: its concurrency limits, stored outcomes and stop."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest
import redis
from django.conf import settings
from django.db import connection
from pytest_django.fixtures import Settings

from config.local.servers import Valkey
from orders import services as orders
from orders.enums import CancelReason, Side
from orders.matching import service
from tests import trading
from tests.receiver import Receiver, hang, respond
from tests.trading import start_thread
from webhooks import dispatcher, services, wakeup
from webhooks.delivery_queue import DeliveryQueue, DueSubscription
from webhooks.models import Delivery, EventType

pytestmark = pytest.mark.django_db(transaction=True)

DEADLINE_SECONDS = 2.0
ALLOWED_SECONDS = 10.0  # for a busy machine
NEVER_SECONDS = 60.0


@pytest.fixture(autouse=True)
def _reset_stop() -> Iterator[None]:
    yield
    dispatcher._stopping.clear()


def create_events(broker_id: str, count: int) -> None:
    """Create `count` events of one broker, by cancels."""
    outcomes = service.execute([trading.order(Side.BID, 1, "5", by=broker_id) for _ in range(count)])
    assert len(outcomes) == count
    assert orders.cancel_all(broker_id, reason=CancelReason.BY_BROKER) == count


def subscribe(broker_id: str, url: str) -> None:
    services.subscribe(broker_id, url=url, events=[EventType.ORDER_CANCELLED])


@pytest.fixture
def endpoint_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of endpoints with due deliveries, at each query of a dispatcher."""
    counts: list[int] = []
    due = DeliveryQueue.find_due

    async def count_due(queue: DeliveryQueue, max_count: int) -> list[DueSubscription]:
        endpoints = await due(queue, max_count)
        counts.append(len(endpoints))
        return endpoints

    monkeypatch.setattr(DeliveryQueue, "find_due", count_due)
    return counts


def test_changing_the_url_does_not_raise_a_brokers_concurrency_limit(receiver: Receiver) -> None:
    trading.broker("mover")
    urls = [receiver.on(f"/{number}", hang) for number in range(20)]
    subscribe("mover", urls[0])
    create_events("mover", 40)
    draining = start_thread(partial(dispatcher.drain, 0))
    for url in urls:
        subscribe("mover", url)
        dispatcher.drain(0)  # wake the dispatcher
        time.sleep(0.1)

    assert len(receiver.requests) == 4
    dispatcher.stop()
    draining.result(trading.TIMEOUT_SECONDS)


def test_hanging_endpoints_delay_a_new_one_by_at_most_one_timeout(receiver: Receiver, settings: Settings) -> None:
    settings.WEBHOOK_TIMEOUT_SECONDS = DEADLINE_SECONDS
    settings.WEBHOOK_CONCURRENCY = 4  # the hanging endpoints take all of them
    for number in range(4):
        trading.broker(f"bad-{number}")
        subscribe(f"bad-{number}", receiver.on(f"/bad-{number}", hang))
        create_events(f"bad-{number}", 12)
    trading.broker("good")
    subscribe("good", receiver.url("/good"))
    draining = start_thread(partial(dispatcher.drain, 0))
    assert receiver.wait_for(4, ALLOWED_SECONDS)
    create_events("good", 1)

    assert receiver.wait_for(1, DEADLINE_SECONDS + ALLOWED_SECONDS, path="/good")
    dispatcher.stop()
    draining.result(trading.TIMEOUT_SECONDS)


def test_outcomes_are_stored_after_a_lost_database_connection(receiver: Receiver) -> None:
    trading.broker("alice")
    subscribe("alice", receiver.on("/slow", respond(after_seconds=1)))
    create_events("alice", 4)
    draining = start_thread(partial(dispatcher.drain, 0))
    assert receiver.wait_for(4, ALLOWED_SECONDS)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted")
        assert cursor.fetchone() == (1,)

    assert draining.exception(trading.TIMEOUT_SECONDS) is not None
    assert list(Delivery.objects.values_list("status_code", "error")) == [(200, "")] * 4


def test_outcomes_are_stored_together(receiver: Receiver, settings: Settings, endpoint_counts: list[int]) -> None:
    """Otherwise a query per outcome would cost more than the delivery."""
    settings.WEBHOOK_POLL_SECONDS, settings.WEBHOOK_LINGER_SECONDS = 1.5, 0.0
    for number in range(8):
        trading.broker(f"broker-{number}")
        subscribe(f"broker-{number}", receiver.on(f"/{number}", respond(after_seconds=number * 0.1)))
        create_events(f"broker-{number}", 4)
    start_thread(partial(dispatcher.drain, 0)).result(trading.TIMEOUT_SECONDS)

    assert list(Delivery.objects.values_list("status_code", flat=True)) == [200] * 32
    assert endpoint_counts == [8, 0]


def test_freed_capacity_of_an_endpoint_is_used_immediately(receiver: Receiver, settings: Settings) -> None:
    """Waiting deliveries of the endpoint use it, also while another endpoint hangs."""
    settings.WEBHOOK_POLL_SECONDS, settings.WEBHOOK_TIMEOUT_SECONDS = NEVER_SECONDS, DEADLINE_SECONDS
    for broker_id, behaviour, count in [("bad", hang, 8), ("good", respond(), 40)]:
        trading.broker(broker_id)
        subscribe(broker_id, receiver.on(f"/{broker_id}", behaviour))
        create_events(broker_id, count)
    draining = start_thread(partial(dispatcher.drain, 0))

    assert receiver.wait_for(40, ALLOWED_SECONDS, path="/good")
    dispatcher.stop()
    draining.result(trading.TIMEOUT_SECONDS)


def test_freed_capacity_of_a_full_dispatcher_is_used_immediately(receiver: Receiver, settings: Settings) -> None:
    settings.WEBHOOK_CONCURRENCY, settings.WEBHOOK_POLL_SECONDS = 2, NEVER_SECONDS
    for number in range(12):
        trading.broker(f"broker-{number}")
        subscribe(f"broker-{number}", receiver.url(f"/{number}"))
        create_events(f"broker-{number}", 1)
    draining = start_thread(partial(dispatcher.drain, 0))

    assert receiver.wait_for(12, ALLOWED_SECONDS)
    dispatcher.stop()
    draining.result(trading.TIMEOUT_SECONDS)


def test_a_running_dispatcher_finds_new_deliveries_without_a_wake_up(receiver: Receiver) -> None:
    """No worker receives the wake-ups here."""
    trading.broker("slow")
    subscribe("slow", receiver.on("/slow", respond(after_seconds=2)))
    trading.broker("alice")
    subscribe("alice", receiver.url("/alice"))
    create_events("slow", 1)
    draining = start_thread(partial(dispatcher.drain, 0))
    assert receiver.wait_for(1, ALLOWED_SECONDS)
    create_events("alice", 1)

    assert receiver.wait_for(1, 1.0, path="/alice")
    draining.result(trading.TIMEOUT_SECONDS)


def test_a_dispatcher_lingers_longer_than_the_pause_between_wake_ups() -> None:
    """Otherwise new deliveries would wait for the end of the pause without a dispatcher."""
    assert settings.WEBHOOK_LINGER_SECONDS > settings.WEBHOOK_WAKE_UP_INTERVAL_SECONDS


def test_a_stop_before_the_start_prevents_sending(receiver: Receiver) -> None:
    trading.broker("alice")
    subscribe("alice", receiver.url())
    create_events("alice", 1)

    dispatcher.stop()
    dispatcher.drain(0)

    assert receiver.requests == []
    assert not Delivery.objects.exclude(claimed_at=None).exists()


def test_unread_wake_ups_do_not_fill_valkey(valkey: Valkey) -> None:
    with wakeup.connection_with_timeouts(valkey.url) as channel:
        for _ in range(settings.WEBHOOK_WAKE_UPS_QUEUED + 50):
            wakeup.send(channel)
    with redis.Redis.from_url(valkey.url) as client:
        assert client.llen(wakeup.QUEUE) == settings.WEBHOOK_WAKE_UPS_QUEUED


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_wake_up_times_out_when_valkey_is_dead_or_frozen(valkey: Valkey, fault: signal.Signals) -> None:
    assert valkey.child.pid is not None
    os.kill(valkey.child.pid, fault)
    started = time.monotonic()
    with wakeup.connection_with_timeouts(valkey.url) as channel, pytest.raises(Exception, match=r"\w"):
        wakeup.send(channel)
    assert time.monotonic() - started < 3.0  # 0.1 s and an allowance
    os.kill(valkey.child.pid, signal.SIGKILL)
