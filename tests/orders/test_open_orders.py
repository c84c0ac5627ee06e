"""How many orders a broker may have open in an instrument, and the counter that knows it without counting."""

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
from orders import services
from orders.enums import CancelReason, Side, TimeInForce
from orders.matching import service
from orders.matching.commands import Accepted, CancelOrder
from orders.models import Order
from orders.reconciliation import checks
from tests import api, trading
from tests.exchange.client import Client
from tests.trading import BY, attempt, cancel, order, place, refused

BID, ASK = Side.BID, Side.ASK
LATER = datetime(2099, 1, 1, tzinfo=UTC)
FULL = "too_many_open_orders"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _members(settings: Settings) -> None:
    """Two brokers, each of whom may have two open orders in an instrument."""
    settings.MAX_OPEN_ORDERS = 2
    for broker_id in ("alice", "bob"):
        trading.broker(broker_id)


def counted(broker_id: str = "alice", symbol: str = "AAPL") -> int:
    row = Holding.objects.filter(broker=broker_id, instrument=symbol).first()
    return row.open_orders if row else 0


def fill_up() -> list[Order]:
    """Alice's two open orders: 5 at 10, then 5 at 9."""
    return [place(BID, 5, "10"), place(BID, 5, "9")]


# --- The limit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "life",
    [
        {"time_in_force": TimeInForce.GTC},
        {"time_in_force": TimeInForce.DAY},
        {"time_in_force": TimeInForce.GTD, "expires_at": LATER},
    ],
    ids=lambda life: str(life["time_in_force"]),
)
@pytest.mark.parametrize("side", Side)
def test_one_more_that_could_rest_is_refused(side: Side, life: dict[str, Any]) -> None:
    fill_up()

    assert refused(order(side, 1, "11", **life)) == FULL


def test_it_is_refused_even_if_it_would_be_filled_at_once() -> None:
    place(ASK, 5, "20", by="bob")
    fill_up()

    assert refused(order(BID, 5, "20")) == FULL


@pytest.mark.parametrize("time_in_force", [TimeInForce.IOC, TimeInForce.FOK])
@pytest.mark.parametrize("price", ["20", None])
def test_what_cannot_rest_is_not_refused(price: str | None, time_in_force: TimeInForce) -> None:
    place(ASK, 5, "20", by="bob")
    fill_up()

    assert place(BID, 5, price, time_in_force=time_in_force).status == "filled"
    assert counted() == 2


def test_each_broker_and_each_instrument_has_its_own_count() -> None:
    trading.instrument("PETR4")
    fill_up()

    place(BID, 1, "10", by="bob")
    place(BID, 1, "10", symbol="PETR4")
    assert (counted(), counted("bob"), counted("alice", "PETR4")) == (2, 1, 1)


def test_a_list_that_reaches_the_limit_is_refused_from_there_on() -> None:
    outcomes = service.execute([order(BID, 1, "10") for _ in range(4)])

    assert [type(outcome) for outcome in outcomes] == [Accepted, Accepted, TooManyOpenOrders, TooManyOpenOrders]
    assert counted() == 2


def test_a_repeat_is_answered_with_its_order_all_the_same() -> None:
    first = place(BID, 5, "10", client_order_id="mine")
    place(BID, 5, "9")

    assert trading.replayed(order(BID, 5, "10", client_order_id="mine")).pk == first.pk


def test_over_http_it_is_a_409(settings: Settings) -> None:
    settings.MAX_OPEN_ORDERS = 0
    carol = api.broker("carol")

    refusal = api.refused(carol, "POST", "/orders", api.LIMIT | {"broker_id": "carol"})
    assert (refusal.status, refusal.code) == (409, FULL)
    assert refusal.body["detail"] == "The broker has 0 open orders in AAPL; cancel some first."


# --- What frees a place ---------------------------------------------------------------------------------------------


def suspend() -> None:
    services.suspend("alice", cancel_orders=True, by=BY)
    services.reinstate("alice", by=BY)


def let_expire() -> None:
    Order.objects.filter(broker="alice").update(
        time_in_force=TimeInForce.GTD, expires_at=timezone.now() - timedelta(seconds=1)
    )
    services.expire_orders("AAPL")


def cancel_late() -> None:
    """A cancel that finds the order past its time, and expires it."""
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


@pytest.mark.parametrize(("happens", "freed"), FREED, ids=NAMES)
def test_an_order_that_rests_no_more_frees_its_place(happens: Callable[[], object], freed: int) -> None:
    fill_up()
    happens()

    assert counted() == 2 - freed
    for _ in range(freed):
        place(BID, 1, "1")
    assert refused(order(BID, 1, "1")) == FULL


def test_an_order_that_rests_and_goes_within_one_list_is_not_counted() -> None:
    resting = order(ASK, 5, "10")
    service.execute([resting, order(BID, 5, "10", by="bob"), order(ASK, 5, "11")])
    service.execute([CancelOrder(Order.objects.get(price=11).pk, "alice")])

    assert (counted(), counted("bob")) == (0, 0)


# --- The counter ----------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_for_the_last_place_one_is_accepted() -> None:
    place(BID, 1, "10")

    outcomes = trading.at_once([partial(attempt, order(BID, 1, "10")) for _ in range(32)])

    assert sum(isinstance(outcome, Accepted) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, TooManyOpenOrders) for outcome in outcomes) == 31
    assert counted() == Order.objects.working().count() == 2


def test_reconcile_notices_a_wrong_count() -> None:
    fill_up()
    Holding.objects.filter(broker="alice").update(open_orders=F("open_orders") - 1)
    Holding.objects.filter(broker="bob").update(open_orders=1)

    with connection.cursor() as cursor:
        found = {finding.check: finding for finding in checks.findings(cursor) if finding.count}
    assert found.keys() == {"open orders are counted"}
    assert sorted(found["open orders are counted"].examples) == [
        "alice AAPL counts 1, has 2",
        "bob AAPL counts 1, has 0",
    ]
    Holding.objects.filter(broker="alice").update(open_orders=2)
    Holding.objects.filter(broker="bob").update(open_orders=0)


def test_the_migration_counts_what_is_open() -> None:
    trading.instrument("PETR4")
    fill_up()
    cancel(place(BID, 1, "8", by="bob"))
    place(BID, 1, "8", symbol="PETR4")
    Holding.objects.filter(broker="alice", instrument="PETR4").delete()  # as it was before: a bid needed no row
    Holding.objects.filter(broker="alice").update(open_orders=0)
    Holding.objects.filter(broker="bob").update(open_orders=7)
    before = trading.shares("alice")

    (operation,) = import_module("orders.migrations.0003_count_open_orders").Migration.operations
    with transaction.atomic(), connection.cursor() as cursor:
        for statement in operation.sql:
            cursor.execute(statement)

    assert (counted(), counted("bob"), counted("alice", "PETR4")) == (2, 0, 1)
    assert trading.shares("alice") == before


def test_a_balance_shows_what_is_held_not_what_is_bid_for() -> None:
    key = trading.broker("carol", holdings={})
    place(BID, 5, "10", by="carol")
    carol = Client(key)

    assert counted("carol") == 1
    assert carol.get("/brokers/carol/balance").body["holdings"] == []
    place(ASK, 5, "10", by="bob")
    assert [each["quantity"] for each in carol.get("/brokers/carol/balance").body["holdings"]] == [5]
