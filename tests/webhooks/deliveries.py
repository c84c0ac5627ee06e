"""Helpers for tests of deliveries: trades that cause events, and waiting for their deliveries."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from uuid import UUID

from django.db import connection

from config.local.processes import wait_until
from orders.enums import Side
from orders.matching import service
from tests import trading
from tests.trading import order
from webhooks import delivery_queue, dispatcher, services, wakeup
from webhooks.models import Delivery, EventType

WAKE_UP_SECONDS = 1.0  # the interval of beat, which most tests do not run: a wake-up may be lost

Outcome = tuple[int | None, str]  # status code and error of a delivery


def subscribe(broker_id: str, url: str, *events: EventType) -> UUID:
    """Subscribe a broker to these events, or to trades, and return the last webhook_id."""
    subscriptions, _ = services.subscribe(broker_id, url=url, events=events or [EventType.TRADE_EXECUTED])
    return UUID(str(subscriptions[-1].pk))


def trade(each: int = 1, *, of: str | Sequence[str] = "alice", against: str = "maker") -> None:
    """Make `each` trades of one share for each of these takers, in one transaction."""
    takers = [of] if isinstance(of, str) else of
    trading.place(Side.ASK, each * len(takers), "10", by=against)
    service.execute([order(Side.BID, 1, "10", by=by) for _ in range(each) for by in takers])


def drain(shard: int = 0) -> None:
    """Send due deliveries from this process, in a thread with a timeout."""
    trading.start_thread(partial(dispatcher.drain, shard)).result(trading.TIMEOUT_SECONDS)


def wait_until_complete() -> None:
    """Wait until every delivery is complete."""
    for _ in range(round(trading.TIMEOUT_SECONDS / WAKE_UP_SECONDS)):
        wakeup.request()
        if wait_until(lambda: not Delivery.objects.filter(completed_at=None).exists(), WAKE_UP_SECONDS):
            return
    raise AssertionError(list(Delivery.objects.filter(completed_at=None).values()))


def outcomes(broker_id: str = "alice") -> list[Outcome]:
    """Outcomes of a broker's deliveries, in the order of their events."""
    deliveries = Delivery.objects.filter(event__broker=broker_id).order_by("event__sequence")
    return list(deliveries.values_list("status_code", "error"))


@contextmanager
def no_dispatcher() -> Iterator[None]:
    """Hold the lock of the only shard, so that no dispatcher runs."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s, 0)", [delivery_queue._LOCK_NAMESPACE])
        try:
            yield
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s, 0)", [delivery_queue._LOCK_NAMESPACE])


def wait_until_idle() -> None:
    """Wait until the last dispatcher has ended."""
    with no_dispatcher():
        pass
