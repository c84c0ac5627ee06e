"""One dispatcher, run in this process: who gets a lane, what it keeps, and what it does when told to stop."""

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
from tests.receiver import Receiver, answer, hang
from tests.trading import in_thread
from webhooks import dispatcher, services, wakeup
from webhooks.delivery_queue import DeliveryQueue, DueSubscription
from webhooks.models import Delivery, EventType

pytestmark = pytest.mark.django_db(transaction=True)

DEADLINE_SECONDS = 2.0
ALLOWED_SECONDS = 10.0  # for a machine that has other things to do
NEVER_SECONDS = 60.0


@pytest.fixture(autouse=True)
def _may_start_again() -> Iterator[None]:
    yield
    dispatcher._stopping.clear()


def cancels(broker_id: str, count: int) -> None:
    """So many events for one broker."""
    outcomes = service.execute([trading.order(Side.BID, 1, "5", by=broker_id) for _ in range(count)])
    assert len(outcomes) == count
    assert orders.cancel_all(broker_id, reason=CancelReason.BY_BROKER) == count


def subscribe(broker_id: str, url: str) -> None:
    services.subscribe(broker_id, url=url, events=[EventType.ORDER_CANCELLED])


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many endpoints had something due, at each look of a dispatcher."""
    found: list[int] = []
    due = DeliveryQueue.find_due

    async def noted_due(queue: DeliveryQueue, max_count: int) -> list[DueSubscription]:
        endpoints = await due(queue, max_count)
        found.append(len(endpoints))
        return endpoints

    monkeypatch.setattr(DeliveryQueue, "find_due", noted_due)
    return found


def test_a_broker_that_moves_its_webhook_gets_no_more_lanes(receiver: Receiver) -> None:
    trading.broker("mover")
    urls = [receiver.on(f"/{number}", hang) for number in range(20)]
    subscribe("mover", urls[0])
    cancels("mover", 40)
    draining = in_thread(partial(dispatcher.drain, 0))
    for url in urls:
        subscribe("mover", url)
        dispatcher.drain(0)  # a poke
        time.sleep(0.1)

    assert len(receiver.requests) == 4
    dispatcher.stop()
    draining.result(trading.PATIENCE_SECONDS)


def test_endpoints_that_hang_keep_a_new_one_waiting_for_one_deadline_at_most(
    receiver: Receiver, settings: Settings
) -> None:
    settings.WEBHOOK_DEADLINE_SECONDS = DEADLINE_SECONDS
    settings.WEBHOOK_CONCURRENCY = 4  # so that few can take them all, one each
    for number in range(4):
        trading.broker(f"bad-{number}")
        subscribe(f"bad-{number}", receiver.on(f"/bad-{number}", hang))
        cancels(f"bad-{number}", 12)
    trading.broker("good")
    subscribe("good", receiver.url("/good"))
    draining = in_thread(partial(dispatcher.drain, 0))
    assert receiver.wait_for(4, ALLOWED_SECONDS)
    cancels("good", 1)

    assert receiver.wait_for(1, DEADLINE_SECONDS + ALLOWED_SECONDS, path="/good")
    dispatcher.stop()
    draining.result(trading.PATIENCE_SECONDS)


def test_what_was_on_its_way_when_the_connection_was_lost_is_noted_all_the_same(receiver: Receiver) -> None:
    trading.broker("alice")
    subscribe("alice", receiver.on("/slow", answer(after_seconds=1)))
    cancels("alice", 4)
    draining = in_thread(partial(dispatcher.drain, 0))
    assert receiver.wait_for(4, ALLOWED_SECONDS)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted")
        assert cursor.fetchone() == (1,)

    assert draining.exception(trading.PATIENCE_SECONDS) is not None
    assert list(Delivery.objects.values_list("status_code", "error")) == [(200, "")] * 4


def test_attempts_that_end_one_by_one_are_noted_together(
    receiver: Receiver, settings: Settings, looks: list[int]
) -> None:
    """When nobody waits for their lanes: a look for each would cost more than sending it."""
    settings.WEBHOOK_POLL_SECONDS, settings.WEBHOOK_LINGER_SECONDS = 1.5, 0.0
    for number in range(8):
        trading.broker(f"broker-{number}")
        subscribe(f"broker-{number}", receiver.on(f"/{number}", answer(after_seconds=number * 0.1)))
        cancels(f"broker-{number}", 4)
    in_thread(partial(dispatcher.drain, 0)).result(trading.PATIENCE_SECONDS)

    assert list(Delivery.objects.values_list("status_code", flat=True)) == [200] * 32
    assert looks == [8, 0]


def test_a_lane_that_gets_free_is_used_at_once(receiver: Receiver, settings: Settings) -> None:
    """By what waits for it at the same endpoint, also while another one hangs."""
    settings.WEBHOOK_POLL_SECONDS, settings.WEBHOOK_DEADLINE_SECONDS = NEVER_SECONDS, DEADLINE_SECONDS
    for broker_id, behaviour, count in [("bad", hang, 8), ("good", answer(), 40)]:
        trading.broker(broker_id)
        subscribe(broker_id, receiver.on(f"/{broker_id}", behaviour))
        cancels(broker_id, count)
    draining = in_thread(partial(dispatcher.drain, 0))

    assert receiver.wait_for(40, ALLOWED_SECONDS, path="/good")
    dispatcher.stop()
    draining.result(trading.PATIENCE_SECONDS)


def test_when_all_lanes_are_taken_the_first_that_gets_free_is_used_at_once(
    receiver: Receiver, settings: Settings
) -> None:
    settings.WEBHOOK_CONCURRENCY, settings.WEBHOOK_POLL_SECONDS = 2, NEVER_SECONDS
    for number in range(12):
        trading.broker(f"broker-{number}")
        subscribe(f"broker-{number}", receiver.url(f"/{number}"))
        cancels(f"broker-{number}", 1)
    draining = in_thread(partial(dispatcher.drain, 0))

    assert receiver.wait_for(12, ALLOWED_SECONDS)
    dispatcher.stop()
    draining.result(trading.PATIENCE_SECONDS)


def test_a_dispatcher_at_work_finds_what_comes_without_a_hint(receiver: Receiver) -> None:
    """Nobody takes the hints here, as when they are with another worker."""
    trading.broker("slow")
    subscribe("slow", receiver.on("/slow", answer(after_seconds=2)))
    trading.broker("alice")
    subscribe("alice", receiver.url("/alice"))
    cancels("slow", 1)
    draining = in_thread(partial(dispatcher.drain, 0))
    assert receiver.wait_for(1, ALLOWED_SECONDS)
    cancels("alice", 1)

    assert receiver.wait_for(1, 1.0, path="/alice")
    draining.result(trading.PATIENCE_SECONDS)


def test_a_dispatcher_lingers_for_longer_than_hints_pause() -> None:
    """Else what comes in that pause would wait for its end: a dispatcher has gone, and none is called."""
    assert settings.WEBHOOK_LINGER_SECONDS > settings.WEBHOOK_WAKE_UP_PAUSE_SECONDS


def test_a_stop_is_remembered(receiver: Receiver) -> None:
    trading.broker("alice")
    subscribe("alice", receiver.url())
    cancels("alice", 1)

    dispatcher.stop()
    dispatcher.drain(0)

    assert receiver.requests == []
    assert not Delivery.objects.exclude(claimed_at=None).exists()


def test_hints_that_nobody_takes_do_not_fill_valkey(valkey: Valkey) -> None:
    with wakeup.connection_with_timeouts(valkey.url) as hints:
        for _ in range(settings.WEBHOOK_WAKE_UPS_WAITING + 50):
            wakeup.send(hints)
    with redis.Redis.from_url(valkey.url) as client:
        assert client.llen(wakeup.QUEUE) == settings.WEBHOOK_WAKE_UPS_WAITING


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_hint_is_given_up_at_once_when_valkey_is_dead_or_frozen(valkey: Valkey, fault: signal.Signals) -> None:
    assert valkey.child.pid is not None
    os.kill(valkey.child.pid, fault)
    tried_at = time.monotonic()
    with wakeup.connection_with_timeouts(valkey.url) as hints, pytest.raises(Exception, match=r"\w"):
        wakeup.send(hints)
    assert time.monotonic() - tried_at < 3.0  # a tenth of a second, and an allowance
    os.kill(valkey.child.pid, signal.SIGKILL)
