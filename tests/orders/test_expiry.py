"""Real beat and worker processes expire due orders in time and once, also after kills and outages."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
import redis
from django.conf import settings
from django.db import connection, transaction

from config.local.processes import wait_until
from config.local.servers import Valkey
from exchange import heartbeat
from exchange.database import database_now
from exchange.models import Instrument
from orders.enums import OrderStatus, Side, TimeInForce
from orders.matching import service
from orders.matching.commands import Accepted
from orders.models import Order, Trade
from tests import api, live, trading
from tests.celery_processes import Celery, CeleryProcess, start_all
from tests.trading import start_thread
from webhooks.models import Event, EventType

pytestmark = pytest.mark.django_db(transaction=True)

PROMISED = timedelta(seconds=2)  # from `expires_at` to the expiry
ALLOWED = timedelta(seconds=4)  # in addition, for a busy machine
WITHOUT_BEAT = timedelta(seconds=3)  # in addition to PROMISED
SWEEP_SECONDS = settings.EXPIRY_SWEEP_SECONDS
MORE_THAN_A_BATCH = 2 * settings.SWEEP_BATCH + 1
SOON_SECONDS = 1.5  # long enough to place all orders
HOUR_SECONDS = 3_600
AHEAD_SECONDS = 30  # lead of the worker's clock over beat's
PAUSE_SECONDS = 0.02


@pytest.fixture(autouse=True)
def _market(transactional_db: None) -> None:
    trading.instrument("AAPL")
    trading.instrument("GOOG")
    trading.broker("alice")


def place_expiring(*seconds: float, symbol: str = "AAPL", quantity: int = 1) -> list[Order]:
    """Place one bid for each number of seconds until its expiry."""
    now = database_now()
    outcomes = service.execute(
        [
            trading.order(
                Side.BID,
                quantity,
                "10.00",
                symbol=symbol,
                time_in_force=TimeInForce.GTD,
                expires_at=now + timedelta(seconds=each),
            )
            for each in seconds
        ]
    )
    placed = [outcome.order.id for outcome in outcomes if isinstance(outcome, Accepted)]
    assert len(placed) == len(seconds)
    return list(Order.objects.filter(pk__in=placed).order_by("sequence"))


def spaced(interval: float, *, until: float) -> list[float]:
    """Seconds until expiry, `interval` apart, so that orders fall due all the time."""
    return [SOON_SECONDS + step * interval for step in range(round(until / interval) + 1)]


def assert_expire_in_time(
    orders: Iterable[Order], *, since: datetime | None = None, allowed: timedelta = ALLOWED
) -> None:
    """Wait until all orders are expired, each in time after its `expires_at` or, if later, `since`."""
    waiting = {order.pk: max(filter(None, [order.expires_at, since])) for order in orders}
    while waiting:
        for pk in Order.objects.filter(pk__in=waiting, status=OrderStatus.EXPIRED).values_list("pk", flat=True):
            del waiting[pk]
        now = database_now()
        late = [pk for pk, due_at in waiting.items() if now - due_at > PROMISED + allowed]
        assert not late, f"{len(late)} are late"
        time.sleep(PAUSE_SECONDS)


def assert_expired_once(orders: Sequence[Order]) -> None:
    """Check status, single event and released reservation of each order, after another sweep."""
    time.sleep(1.5 * SWEEP_SECONDS)
    now = Order.objects.in_bulk([order.pk for order in orders])
    assert {order.status for order in now.values()} == {OrderStatus.EXPIRED}
    assert all(now[order.pk].expired_at == order.expires_at for order in orders)
    assert count_expiry_events() == {str(order.pk): 1 for order in orders}
    assert trading.balance("alice") == (trading.CASH, 0)


def count_expiry_events() -> Counter[str]:
    """Count the expiry events of each order."""
    bodies = Event.objects.filter(type=EventType.ORDER_EXPIRED).values_list("body", flat=True)
    return Counter(json.loads(body)["data"]["order_id"] for body in bodies)


@contextmanager
def worker_blocked() -> Iterator[None]:
    """Lock the orders until a worker that expires them waits, holding the locks of the book and the broker."""
    with transaction.atomic():
        list(Order.objects.select_for_update())
        assert wait_until(is_any_lock_awaited, trading.TIMEOUT_SECONDS)
        yield


def is_any_lock_awaited() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
        (waits,) = cursor.fetchone()
    return bool(waits)


# --- Normal operation -----------------------------------------------------------------------------------------------


def test_orders_expire_once_and_in_time_in_any_number(celery: Celery) -> None:
    start_all(celery.worker(), celery.beat())
    orders = place_expiring(*spaced(0.1, until=1)) + place_expiring(*[SOON_SECONDS] * MORE_THAN_A_BATCH, symbol="GOOG")
    assert_expire_in_time(orders)
    assert_expired_once(orders)


def test_busy_books_do_not_delay_others(celery: Celery) -> None:
    busy = ["AAPL", "GOOG", "INTC", "MSFT"]  # more than the worker has processes
    for symbol in ["INTC", "MSFT", "NVDA"]:
        trading.instrument(symbol)
    start_all(celery.worker(), celery.beat())
    held = [order for symbol in busy for order in place_expiring(SOON_SECONDS, symbol=symbol)]
    free = place_expiring(SOON_SECONDS, symbol="NVDA")
    with transaction.atomic():
        list(Instrument.objects.select_for_update(no_key=True).filter(pk__in=busy).order_by("pk"))
        start_thread(partial(assert_expire_in_time, free)).result(trading.TIMEOUT_SECONDS)
        assert count_expiry_events() == {str(free[0].pk): 1}
    assert_expire_in_time(held, since=database_now())
    assert_expired_once(held + free)


# --- Missing beat and wrong clocks ----------------------------------------------------------------------------------


def test_an_expired_order_never_trades_without_beat(server: live.Server) -> None:
    key = trading.broker("bob")
    (bid,) = place_expiring(SOON_SECONDS, quantity=10_000)
    assert bid.expires_at is not None
    ask = api.limit("ask", 1, "10.00", broker_id="bob", time_in_force="ioc")
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as bob:
        statuses = []
        while database_now() < bid.expires_at + timedelta(seconds=0.5):
            statuses.append(bob.post("/orders", json=ask).raise_for_status().json()["status"])
        assert bob.get("/stocks/AAPL/book").json()["bids"] == []
    traded = statuses.count("filled")
    assert statuses == ["filled"] * traded + ["cancelled"] * (len(statuses) - traded)
    assert 0 < traded < len(statuses)
    assert max(Trade.objects.values_list("executed_at", flat=True)) < bid.expires_at
    bid.refresh_from_db()
    assert (bid.status, bid.filled_quantity) == (OrderStatus.PARTIALLY_FILLED, traded)


def test_orders_expire_once_without_beat(celery: Celery) -> None:
    celery.worker().start()
    orders = place_expiring(*spaced(0.02, until=1))
    assert_expire_in_time(orders, allowed=WITHOUT_BEAT)
    assert_expired_once(orders)


def test_beats_messages_are_processed_when_clocks_step_or_differ(celery: Celery, tmp_path: Path) -> None:
    clocks = {tmp_path / "beats": 0, tmp_path / "workers": AHEAD_SECONDS}

    def step(seconds: int) -> None:
        for clock, ahead in clocks.items():
            new = clock.with_suffix(".new")
            new.write_text(str(seconds + ahead))
            new.replace(clock)  # atomic, because the processes read it

    step(0)
    start_all(*map(under_clock, [celery.beat(), celery.worker()], clocks))
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        for seconds in [-HOUR_SECONDS, HOUR_SECONDS]:
            step(seconds)
            for _ in range(2):  # the first message may have been sent before the step
                client.delete(heartbeat.WORKER)
                assert wait_until(lambda: bool(client.exists(heartbeat.WORKER)), trading.TIMEOUT_SECONDS)


def under_clock(process: CeleryProcess, clock: Path) -> CeleryProcess:
    """Let the process read its time from the file `clock`."""
    python, option, *module = process.child.argv
    process.child.argv = [python, option, "tests.stepped_clock", clock, *module]
    return process


# --- Kills ----------------------------------------------------------------------------------------------------------


def test_two_beats_and_a_killed_worker_expire_each_order_once(celery: Celery) -> None:
    worker = celery.worker()
    start_all(worker, celery.beat("left"), celery.beat("right"))
    orders = place_expiring(*[SOON_SECONDS] * MORE_THAN_A_BATCH)
    with worker_blocked():
        worker.kill()
    worker.start()  # its two processes find several messages
    assert_expire_in_time(orders, since=database_now())
    assert_expired_once(orders)


def test_expiry_continues_while_valkey_is_away(celery_on_own_valkey: Celery, valkey: Valkey) -> None:
    worker, beat = celery_on_own_valkey.worker(), celery_on_own_valkey.beat()
    start_all(worker, beat)
    orders = place_expiring(*spaced(0.05, until=3))
    with worker_blocked():
        valkey.child.kill()
    assert_expire_in_time(orders, since=database_now(), allowed=WITHOUT_BEAT)
    assert_expired_once(orders)
    assert valkey.restart()
    with redis.Redis.from_url(valkey.url) as client:
        assert wait_until(lambda: bool(client.exists(heartbeat.WORKER)), trading.TIMEOUT_SECONDS)
    assert worker.child.is_running()
    assert beat.child.is_running()
