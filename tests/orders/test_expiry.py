"""Beat and workers, real ones, expire what is due: soon, once, and by themselves again after whatever befell them."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
from django.conf import settings
from django.db import connection, transaction
from django.db.models.functions import Now

from config.local.processes import wait_until
from config.local.servers import Valkey
from exchange.database import database_now
from exchange.models import Broker, Instrument
from orders.enums import OrderStatus, Side, TimeInForce
from orders.matching import service
from orders.matching.commands import Accepted
from orders.models import Order, Trade
from tests import api, live, trading
from tests.celery_processes import Celery, CeleryProcess, start_all
from tests.trading import in_thread
from webhooks.models import Event, EventType

pytestmark = pytest.mark.django_db(transaction=True)

PROMISED = timedelta(seconds=2)  # from an order's time to its expiry
ALLOWED = timedelta(seconds=4)  # on top of it, for a machine that has other things to do
RECONNECTED = timedelta(seconds=10)  # on top of both: workers look for a lost Valkey every few seconds
SWEEP_SECONDS = settings.EXPIRY_SWEEP_SECONDS
MORE_THAN_A_BATCH = 2 * settings.SWEEP_BATCH + 1
SOON_SECONDS = 1.5  # from now, and yet long enough for all of them to be placed
AWAY_SECONDS = float(os.environ.get("BEAT_AWAY_SECONDS", "2"))
HOUR_SECONDS = 3_600
AHEAD_SECONDS = 30  # of a worker's clock before beat's
PAUSE_SECONDS = 0.02


@pytest.fixture(autouse=True)
def _market(transactional_db: None) -> None:
    trading.instrument("AAPL")
    trading.instrument("GOOG")
    trading.broker("alice")


def expiring(*seconds: float, symbol: str = "AAPL", quantity: int = 1) -> list[Order]:
    """Bids of alice's, one for every number of seconds that it has to live."""
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


def every(interval: float, *, until: float) -> list[float]:
    """Seconds to live, `interval` apart: orders go on falling due whatever is done meanwhile."""
    return [SOON_SECONDS + step * interval for step in range(round(until / interval) + 1)]


def assert_expire_in_time(
    orders: Iterable[Order], *, since: datetime | None = None, allowed: timedelta = ALLOWED
) -> None:
    """Each is expired as soon after its time, or after `since`, as was promised and is allowed."""
    waiting = {order.pk: max(filter(None, [order.expires_at, since])) for order in orders}
    while waiting:
        for pk in Order.objects.filter(pk__in=waiting, status=OrderStatus.EXPIRED).values_list("pk", flat=True):
            del waiting[pk]
        now = database_now()
        late = [pk for pk, due_at in waiting.items() if now - due_at > PROMISED + allowed]
        assert not late, f"{len(late)} are late"
        time.sleep(PAUSE_SECONDS)


def assert_expired_once(orders: Sequence[Order]) -> None:
    """Each has its status, its one event, and nothing reserved for it; another sweep has been and changed nothing."""
    time.sleep(1.5 * SWEEP_SECONDS)
    now = Order.objects.in_bulk([order.pk for order in orders])
    assert {order.status for order in now.values()} == {OrderStatus.EXPIRED}
    assert all(now[order.pk].expired_at == order.expires_at for order in orders)
    assert told() == {str(order.pk): 1 for order in orders}
    assert trading.balance("alice") == (trading.CASH, 0)


def told() -> Counter[str]:
    """How many events told of each order's expiry."""
    bodies = Event.objects.filter(type=EventType.ORDER_EXPIRED).values_list("body", flat=True)
    return Counter(json.loads(body)["data"]["order_id"] for body in bodies)


@contextmanager
def worker_in_the_middle() -> Iterator[None]:
    """Hold what expiry locks last, until a worker waits for it with the book in its hands."""
    with transaction.atomic():
        Broker.objects.select_for_update(no_key=True).get(pk="alice")
        assert wait_until(somebody_waits_for_a_lock, trading.PATIENCE_SECONDS)
        yield


def somebody_waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
        (waits,) = cursor.fetchone()
    return bool(waits)


# --- In good order --------------------------------------------------------------------------------------------------


def test_orders_expire_in_time_and_once_however_many_at_a_time(celery: Celery) -> None:
    start_all(celery.worker(), celery.beat())
    orders = expiring(*every(0.1, until=1)) + expiring(*[SOON_SECONDS] * MORE_THAN_A_BATCH, symbol="GOOG")
    assert_expire_in_time(orders)
    assert_expired_once(orders)


def test_busy_books_do_not_delay_the_others(celery: Celery) -> None:
    busy = ["AAPL", "GOOG", "INTC", "MSFT"]  # more of them than the worker has processes
    for symbol in ["INTC", "MSFT", "NVDA"]:
        trading.instrument(symbol)
    start_all(celery.worker(), celery.beat())
    held = [order for symbol in busy for order in expiring(SOON_SECONDS, symbol=symbol)]
    free = expiring(SOON_SECONDS, symbol="NVDA")
    with transaction.atomic():
        list(Instrument.objects.select_for_update(no_key=True).filter(pk__in=busy).order_by("pk"))
        in_thread(partial(assert_expire_in_time, free)).result(trading.PATIENCE_SECONDS)
        assert told() == {str(free[0].pk): 1}
    assert_expire_in_time(held, since=database_now())
    assert_expired_once(held + free)


# --- No beat, or another clock --------------------------------------------------------------------------------------


def test_an_order_past_its_time_never_trades_without_beat(server: live.Server) -> None:
    key = trading.broker("bob")
    (bid,) = expiring(SOON_SECONDS, quantity=10_000)
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


def test_orders_expire_in_time_when_the_clock_steps_and_where_it_is_ahead(celery: Celery, tmp_path: Path) -> None:
    clocks = {tmp_path / "beats": 0, tmp_path / "workers": AHEAD_SECONDS}

    def step(seconds: int) -> None:
        for clock, ahead in clocks.items():
            new = clock.with_suffix(".new")
            new.write_text(str(seconds + ahead))
            new.replace(clock)  # whole, for somebody may be reading it

    step(0)
    start_all(*map(under_clock, [celery.beat(), celery.worker()], clocks))
    for seconds in [-HOUR_SECONDS, HOUR_SECONDS]:
        step(seconds)
        assert_expire_in_time(expiring(SOON_SECONDS))


def under_clock(process: CeleryProcess, clock: Path) -> CeleryProcess:
    """Have the process read the time from a clock that can be stepped."""
    python, option, *module = process.child.argv
    process.child.argv = [python, option, "tests.stepped_clock", clock, *module]
    return process


# --- Somebody dies --------------------------------------------------------------------------------------------------


def test_two_beats_and_a_worker_killed_in_the_middle_expire_each_order_once(celery: Celery) -> None:
    worker = celery.worker()
    start_all(worker, celery.beat("left"), celery.beat("right"))
    orders = expiring(*[SOON_SECONDS] * MORE_THAN_A_BATCH)
    with worker_in_the_middle():
        worker.kill()
    worker.start()  # its two processes find several messages for the one book
    assert_expire_in_time(orders, since=database_now())
    assert_expired_once(orders)


def test_what_fell_due_after_beat_was_killed_expires_once_when_it_is_back(celery: Celery) -> None:
    beat = celery.beat()
    start_all(celery.worker(), beat)
    orders = expiring(*every(AWAY_SECONDS / 100, until=AWAY_SECONDS))
    assert wait_until(Event.objects.exists, trading.PATIENCE_SECONDS)
    beat.kill()
    time.sleep(AWAY_SECONDS)
    assert Order.objects.due(Now()).exists()
    beat.start()
    assert_expire_in_time(orders, since=database_now())
    assert_expired_once(orders)


def test_expiry_goes_on_by_itself_after_valkey_lost_everything(celery_apart: Celery, valkey: Valkey) -> None:
    worker, beat = celery_apart.worker(), celery_apart.beat()
    start_all(worker, beat)
    orders = expiring(*every(0.05, until=3))
    with worker_in_the_middle():
        valkey.child.kill()
    time.sleep(SWEEP_SECONDS)
    assert valkey.start_again()
    assert_expire_in_time(orders, since=database_now(), allowed=ALLOWED + RECONNECTED)
    assert_expired_once(orders)
    assert worker.child.is_running()
    assert beat.child.is_running()
