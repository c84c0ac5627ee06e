"""The limit of a broker's open orders per instrument, and the counter behind it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone
from pytest_django import Settings

from exchange.errors import TooManyOpenOrders
from exchange.models import Holding
from orders import expiry, services
from orders.enums import CancelReason, Side, TimeInForce
from orders.matching import service
from orders.matching.commands import Accepted, CancelOrder
from orders.models import Order
from orders.reconciliation import checks
from tests import api, trading
from tests.exchange.client import Client
from tests.trading import BY, cancel, execute_one, order, place, rejection_code

BID, ASK = Side.BID, Side.ASK
LATER = datetime(2099, 1, 1, tzinfo=UTC)
FULL = "too_many_open_orders"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _members(settings: Settings) -> None:
    """Two brokers, with a limit of two open orders per instrument."""
    settings.MAX_OPEN_ORDERS = 2
    for broker_id in ("alice", "bob"):
        trading.broker(broker_id)


def open_orders(broker_id: str = "alice", symbol: str = "AAPL") -> int:
    row = Holding.objects.filter(broker=broker_id, instrument=symbol).first()
    return row.open_orders if row else 0


def fill_up() -> list[Order]:
    """Place alice's two open orders: 5 at 10, then 5 at 9."""
    return [place(BID, 5, "10"), place(BID, 5, "9")]


# --- The limit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "validity",
    [
        {"time_in_force": TimeInForce.GTC},
        {"time_in_force": TimeInForce.DAY},
        {"time_in_force": TimeInForce.GTD, "expires_at": LATER},
    ],
    ids=lambda validity: str(validity["time_in_force"]),
)
@pytest.mark.parametrize("side", Side)
def test_an_order_that_could_rest_beyond_the_limit_is_rejected(side: Side, validity: dict[str, Any]) -> None:
    fill_up()

    assert rejection_code(order(side, 1, "11", **validity)) == FULL


def test_an_order_beyond_the_limit_is_rejected_even_if_it_would_fill() -> None:
    place(ASK, 5, "20", by="bob")
    fill_up()

    assert rejection_code(order(BID, 5, "20")) == FULL


@pytest.mark.parametrize("time_in_force", [TimeInForce.IOC, TimeInForce.FOK])
@pytest.mark.parametrize("price", ["20", None])
def test_an_order_that_cannot_rest_is_accepted_at_the_limit(price: str | None, time_in_force: TimeInForce) -> None:
    place(ASK, 5, "20", by="bob")
    fill_up()

    assert place(BID, 5, price, time_in_force=time_in_force).status == "filled"
    assert open_orders() == 2


def test_each_broker_and_each_instrument_has_its_own_count() -> None:
    trading.instrument("PETR4")
    fill_up()

    place(BID, 1, "10", by="bob")
    place(BID, 1, "10", symbol="PETR4")
    assert (open_orders(), open_orders("bob"), open_orders("alice", "PETR4")) == (2, 1, 1)


def test_a_batch_is_rejected_from_the_limit_on() -> None:
    outcomes = service.execute([order(BID, 1, "10") for _ in range(4)])

    assert [type(outcome) for outcome in outcomes] == [Accepted, Accepted, TooManyOpenOrders, TooManyOpenOrders]
    assert open_orders() == 2


def test_a_replay_is_returned_at_the_limit() -> None:
    first = place(BID, 5, "10", client_order_id="mine")
    place(BID, 5, "9")

    assert trading.replay(order(BID, 5, "10", client_order_id="mine")).pk == first.pk


def test_the_limit_of_open_orders_is_409(settings: Settings) -> None:
    settings.MAX_OPEN_ORDERS = 0
    carol = api.broker("carol")

    refusal = api.assert_rejected(carol, "POST", "/orders", api.LIMIT | {"broker_id": "carol"})
    assert (refusal.status, refusal.code) == (409, FULL)
    assert refusal.body["detail"] == "The broker has 0 open orders in AAPL; cancel some first."


# --- Orders that leave the book -------------------------------------------------------------------------------------


def suspend() -> None:
    services.suspend("alice", cancel_orders=True, by=BY)
    services.reinstate("alice", by=BY)


def let_expire() -> None:
    Order.objects.filter(broker="alice").update(
        time_in_force=TimeInForce.GTD, expires_at=timezone.now() - timedelta(seconds=1)
    )
    expiry.expire_due_orders()


def cancel_late() -> None:
    """Cancel an order past its `expires_at`, which expires it."""
    resting = Order.objects.filter(broker="alice").earliest("sequence")
    Order.objects.filter(pk=resting.pk).update(
        time_in_force=TimeInForce.GTD, expires_at=timezone.now() - timedelta(seconds=1)
    )
    cancel(resting)


FREED: list[tuple[Callable[[], object], int]] = [
    (lambda: cancel(Order.objects.filter(broker="alice").earliest("sequence")), 1),
    (lambda: place(ASK, 5, "10", by="bob"), 1),
    (lambda: place(ASK, 10, "9", by="bob"), 2),
    (lambda: place(ASK, 4, "10", by="bob"), 0),
    (lambda: place(ASK, 9, None, by="bob"), 1),
    (lambda: place(ASK, 5, None, by="alice"), 1),
    (lambda: services.cancel_all("alice", reason=CancelReason.BY_BROKER), 2),
    (suspend, 2),
    (let_expire, 2),
    (cancel_late, 1),
]
NAMES = [
    "cancel", "fill", "two fills", "partial fill", "fill by a market order", "own fill", "mass cancel", "suspension",
    "expiry", "late cancel",
]  # fmt: skip


@pytest.mark.parametrize(("act", "freed"), FREED, ids=NAMES)
def test_an_order_that_leaves_the_book_is_no_longer_counted(act: Callable[[], object], freed: int) -> None:
    fill_up()
    act()

    assert open_orders() == 2 - freed
    for _ in range(freed):
        place(BID, 1, "1")
    assert rejection_code(order(BID, 1, "1")) == FULL


def test_an_order_that_rests_and_fills_within_a_batch_is_not_counted() -> None:
    resting = order(ASK, 5, "10")
    service.execute([resting, order(BID, 5, "10", by="bob"), order(ASK, 5, "11")])
    service.execute([CancelOrder(Order.objects.get(price=11).pk, "alice")])

    assert (open_orders(), open_orders("bob")) == (0, 0)


# --- The counter ----------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_one_of_many_concurrent_orders_takes_the_last_place() -> None:
    place(BID, 1, "10")

    outcomes = trading.run_concurrently([partial(execute_one, order(BID, 1, "10")) for _ in range(32)])

    assert sum(isinstance(outcome, Accepted) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, TooManyOpenOrders) for outcome in outcomes) == 31
    assert open_orders() == Order.objects.working().count() == 2


def test_reconcile_reports_a_wrong_count() -> None:
    fill_up()
    Holding.objects.filter(broker="alice").update(open_orders=F("open_orders") - 1)
    Holding.objects.filter(broker="bob").update(open_orders=1)

    with connection.cursor() as cursor:
        found = {finding.check: finding for finding in checks.findings(cursor) if finding.count}
    assert found.keys() == {"open order counts are correct"}
    assert sorted(found["open order counts are correct"].examples) == [
        "alice AAPL counts 1, has 2",
        "bob AAPL counts 1, has 0",
    ]
    Holding.objects.filter(broker="alice").update(open_orders=2)
    Holding.objects.filter(broker="bob").update(open_orders=0)


def test_the_migration_counts_open_orders() -> None:
    trading.instrument("PETR4")
    fill_up()
    cancel(place(BID, 1, "8", by="bob"))
    place(BID, 1, "8", symbol="PETR4")
    Holding.objects.filter(broker="alice", instrument="PETR4").delete()  # before the migration, a bid needed no row
    Holding.objects.filter(broker="alice").update(open_orders=0)
    Holding.objects.filter(broker="bob").update(open_orders=7)
    before = trading.shares("alice")

    (operation,) = import_module("orders.migrations.0003_count_open_orders").Migration.operations
    with transaction.atomic(), connection.cursor() as cursor:
        for statement in operation.sql:
            cursor.execute(statement)

    assert (open_orders(), open_orders("bob"), open_orders("alice", "PETR4")) == (2, 0, 1)
    assert trading.shares("alice") == before


def test_a_balance_shows_no_holding_for_a_working_bid() -> None:
    key = trading.broker("carol", holdings={})
    place(BID, 5, "10", by="carol")
    carol = Client(key)

    assert open_orders("carol") == 1
    assert carol.get("/brokers/carol/balance").body["holdings"] == []
    place(ASK, 5, "10", by="bob")
    assert [each["quantity"] for each in carol.get("/brokers/carol/balance").body["holdings"]] == [5]
