"""What tests of the deliveries share: trades to be told, and waiting until all that was due has been."""

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

ASK_AGAIN_SECONDS = 1.0  # as often as beat does: a hint may be lost, and there is no beat in most tests

Told = tuple[int | None, str]  # status and error of a delivery


def subscribe(broker_id: str, url: str, *events: EventType) -> UUID:
    """Have a broker told about these, or about trades; the last one's webhook_id."""
    subscriptions, _ = services.subscribe(broker_id, url=url, events=events or [EventType.TRADE_EXECUTED])
    return UUID(str(subscriptions[-1].pk))


def trade(each: int = 1, *, of: str | Sequence[str] = "alice", against: str = "maker") -> None:
    """So many trades of one share for each of these takers, all in one transaction."""
    takers = [of] if isinstance(of, str) else of
    trading.place(Side.ASK, each * len(takers), "10", by=against)
    service.execute([order(Side.BID, 1, "10", by=by) for _ in range(each) for by in takers])


def drain(shard: int = 0) -> None:
    """Send what is due from this process, in a thread that may not take for ever."""
    trading.in_thread(partial(dispatcher.drain, shard)).result(trading.PATIENCE_SECONDS)


def settle() -> None:
    """Wait until every delivery is done with."""
    for _ in range(round(trading.PATIENCE_SECONDS / ASK_AGAIN_SECONDS)):
        wakeup.request()
        if wait_until(lambda: not Delivery.objects.filter(completed_at=None).exists(), ASK_AGAIN_SECONDS):
            return
    raise AssertionError(list(Delivery.objects.filter(completed_at=None).values()))


def outcomes(broker_id: str = "alice") -> list[Told]:
    """What became of a broker's deliveries, in the order of their events."""
    mine = Delivery.objects.filter(event__broker=broker_id).order_by("event__sequence")
    return list(mine.values_list("status_code", "error"))


@contextmanager
def no_dispatcher() -> Iterator[None]:
    """Nobody sends anything: we hold the lock of the only shard, as a dispatcher does."""
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
