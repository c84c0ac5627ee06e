"""`DELETE /orders`: cancel a broker's working orders, optionally by symbol and side (contract: 2)."""

import json
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from functools import partial
from threading import Event as Flag
from typing import Any

import httpx
import pytest
from django.db import connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from pytest_django.fixtures import Settings

from config.local.processes import wait_until
from exchange import services as exchange_services
from exchange.database import database_now, lock_timeout, own_transaction
from exchange.errors import OutcomeUnknown
from exchange.models import Instrument
from exchange.rules import Scope
from orders import services
from orders.enums import CancelReason, Side
from orders.matching import service
from orders.matching.commands import Accepted, CancelOrders
from orders.models import Order
from tests import api, live, trading
from tests.api import assert_rejected, limit, place_order
from tests.exchange.client import Client
from tests.trading import BY, order, start_thread
from webhooks.models import Event

pytestmark = pytest.mark.django_db(transaction=True)

SYMBOLS = ("AAPL", "GOOG", "PETR4")
HOLDINGS = dict.fromkeys(SYMBOLS, 10_000)
WAIT_SECONDS = 10.0
LOOKUP_STATEMENTS = 2  # broker and symbol


def mass_cancel(client: Client, query: str) -> int:
    """Send a mass cancel and return the number of cancelled orders."""
    response = client.delete(f"/orders?{query}")
    assert response.status == 200, response
    assert list(response.body) == ["cancelled"]
    assert isinstance(response.body["cancelled"], int)
    return int(response.body["cancelled"])


def place_resting(by: str, *, each: int = 1, symbols: Sequence[str] = SYMBOLS) -> None:
    """Place `each` bids and asks in each book, without crossing."""
    commands = [
        order(side, 1, price, by=by, symbol=symbol)
        for symbol in symbols
        for _ in range(each)
        for side, price in ((Side.BID, "9.00"), (Side.ASK, "11.00"))
    ]
    assert all(isinstance(outcome, Accepted) for outcome in service.execute(commands))


def working() -> set[tuple[str, str, str]]:
    """Broker, symbol and side of each working order."""
    return set(Order.objects.working().values_list("broker", "instrument", "side"))


def all_books_of(*broker_ids: str) -> set[tuple[str, str, str]]:
    return {(broker_id, symbol, side) for broker_id in broker_ids for symbol in SYMBOLS for side in Side}


@pytest.fixture
def alice(db: None) -> Client:
    return api.broker("alice", holdings=HOLDINGS)


@pytest.fixture
def bob(alice: Client) -> Client:
    return api.broker("bob", holdings=HOLDINGS)


# --- Cancelled orders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "gone"),
    [
        ("symbol=AAPL", {("AAPL", "bid"), ("AAPL", "ask")}),
        ("side=bid", {(symbol, "bid") for symbol in SYMBOLS}),
        ("side=ask&symbol=GOOG", {("GOOG", "ask")}),
        ("all=true", {(symbol, side) for symbol in SYMBOLS for side in Side}),
        ("broker_id=alice&symbol=PETR4&side=bid", {("PETR4", "bid")}),
    ],
)
def test_exactly_the_matching_orders_are_cancelled(
    alice: Client, bob: Client, query: str, gone: set[tuple[str, str]]
) -> None:
    place_resting("alice", each=2)
    place_resting("bob")

    assert mass_cancel(alice, query) == 2 * len(gone)
    assert working() == all_books_of("alice", "bob") - {("alice", symbol, side) for symbol, side in gone}
    assert set(Order.objects.filter(status="cancelled").values_list("cancel_reason")) == {("by_broker",)}
    assert mass_cancel(alice, query) == 0


def test_reservations_are_released_and_trades_kept(alice: Client, bob: Client) -> None:
    bid = place_order(alice, limit("bid", 5, "10"))["order_id"]
    place_order(alice, limit("ask", 7, "20"))
    place_order(bob, limit("ask", 2, "10", broker_id="bob"))
    assert trading.balance("alice")[1] == Decimal(30)

    assert mass_cancel(alice, "side=bid") == 1
    assert trading.balance("alice") == (trading.CASH - 20, Decimal(0))
    assert trading.shares("alice") == (10_002, 7)
    body = alice.get(f"/orders/{bid}").body
    assert (body["status"], body["filled_quantity"], body["remaining_quantity"]) == ("cancelled", 2, 3)
    assert len(body["trades"]) == 1


def test_each_cancelled_order_has_its_event(alice: Client, bob: Client) -> None:
    place_resting("alice")
    place_resting("bob")
    mass_cancel(alice, "side=ask")

    events = list(Event.objects.filter(type="order.cancelled").order_by("sequence"))
    assert [(event.broker_id, event.sequence) for event in events] == [("alice", number) for number in (1, 2, 3)]
    bodies = [json.loads(event.body)["data"] for event in events]
    assert [(body["symbol"], body["side"], body["status"]) for body in bodies] == [
        (symbol, "ask", "cancelled") for symbol in SYMBOLS
    ]
    assert {body["order_id"] for body in bodies} == {str(each.pk) for each in Order.objects.filter(status="cancelled")}


def test_orders_past_their_expiry_are_expired_and_not_counted(alice: Client) -> None:
    later = database_now() + timedelta(hours=1)
    place_order(alice, limit("bid", 1, "9", time_in_force="gtd", expires_at=later.isoformat()))
    place_order(alice, limit("bid", 1, "9"))
    Order.objects.filter(time_in_force="gtd").update(
        expires_at=F("expires_at") - timedelta(hours=2), created_at=F("created_at") - timedelta(hours=2)
    )

    assert mass_cancel(alice, "all=true") == 1
    assert sorted(Order.objects.values_list("status", flat=True)) == ["cancelled", "expired"]
    assert sorted(Event.objects.values_list("type", flat=True)) == ["order.cancelled", "order.expired"]


def test_a_suspended_broker_cancels_orders_in_a_halted_book(alice: Client) -> None:
    place_resting("alice")
    services.suspend("alice", cancel_orders=False, by=BY)
    exchange_services.halt("AAPL", by=BY)

    assert mass_cancel(alice, "all=true") == 6


# --- Large numbers --------------------------------------------------------------------------------------------------


def test_one_call_cancels_1200_orders_in_three_books(alice: Client, bob: Client) -> None:
    place_resting("alice", each=200)
    place_resting("bob")

    assert mass_cancel(alice, "all=true") == 1_200
    assert working() == all_books_of("bob")
    assert Event.objects.filter(broker="alice", type="order.cancelled").count() == 1_200
    assert trading.balance("alice") == (trading.CASH, Decimal(0))
    assert mass_cancel(alice, "all=true") == 0


def count_statements(client: Client, query: str, expected: int) -> int:
    with CaptureQueriesContext(connection) as captured:
        assert mass_cancel(client, query) == expected
    return sum("exchange_apikey" not in each["sql"] for each in captured)


@pytest.mark.parametrize(("batch", "some", "none"), [(500, 1, 0), (201, 1, 0), (200, 1, 1), (70, 3, 0), (50, 4, 1)])
def test_a_mass_cancel_runs_a_fixed_number_of_statements_per_batch(
    alice: Client, settings: Settings, batch: int, some: int, none: int
) -> None:
    """200 orders of one side: each full batch is followed by another, which may be empty."""
    place_resting("alice", each=1, symbols=["AAPL"])
    each = count_statements(alice, "symbol=AAPL", 2) - LOOKUP_STATEMENTS
    settings.SWEEP_BATCH = batch
    place_resting("alice", each=200, symbols=["AAPL"])
    idle = count_statements(alice, "symbol=GOOG", 0) - LOOKUP_STATEMENTS

    assert count_statements(alice, "symbol=AAPL&side=ask", 200) == LOOKUP_STATEMENTS + some * each + none * idle


def count_orders_read() -> int:
    """Count the orders read by index in this transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'orders_order'")
        (number,) = cursor.fetchone()
    return int(number)


def test_a_mass_cancel_reads_only_matching_orders(alice: Client, bob: Client) -> None:
    place_resting("alice", each=100)
    place_resting("bob", each=300)
    with own_transaction() as cursor:
        cursor.execute("ANALYZE orders_order")
        before = count_orders_read()
        trading.load_market(cursor, [CancelOrders("alice", "AAPL", side=Side.ASK)])
        read = count_orders_read() - before
    assert read == 200, "only alice's bids and asks in that book"


# --- Rejections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", {"symbol": "required"}),
        ("all=false", {"all": "pattern"}),
        ("all=1", {"all": "pattern"}),
        ("all=True", {"all": "pattern"}),
        ("all=", {"all": "pattern"}),
        ("all=true&side=bid", {"all": "not_allowed"}),
        ("all=true&symbol=AAPL", {"all": "not_allowed"}),
        ("symbol=aapl&side=buy", {"symbol": "pattern", "side": "invalid"}),
        ("symbol=", {"symbol": "pattern"}),
        ("side=bid&client_order_id=x", {"client_order_id": "unknown_parameter"}),
        ("dry_run=1", {"symbol": "required", "dry_run": "unknown_parameter"}),
        ("broker_id=alice", {"symbol": "required"}),
    ],
)
def test_invalid_mass_cancel_parameters_are_rejected(alice: Client, query: str, fields: dict[str, str]) -> None:
    place_resting("alice")
    response = assert_rejected(alice, "DELETE", f"/orders?{query}")

    assert (response.status, response.code, response.fields) == (400, "validation_error", fields)


def test_an_unlisted_symbol_is_404(alice: Client) -> None:
    place_resting("alice")

    assert assert_rejected(alice, "DELETE", "/orders?symbol=APPL").code == "symbol_not_found"


def test_a_mass_cancel_for_another_broker_is_rejected(alice: Client, bob: Client) -> None:
    place_resting("alice")
    reader = Client(exchange_services.issue_key("alice", scopes=[Scope.READ], by=BY)[1])

    assert assert_rejected(bob, "DELETE", "/orders?all=true&broker_id=alice").code == "broker_mismatch"
    assert assert_rejected(reader, "DELETE", "/orders?all=true").code == "scope_missing"
    assert assert_rejected(Client(None), "DELETE", "/orders?all=true").code == "unauthenticated"
    assert mass_cancel(bob, "all=true") == 0
    assert working() == all_books_of("alice")


def test_an_operator_must_name_the_broker_of_a_mass_cancel(alice: Client, bob: Client, operator: Client) -> None:
    place_resting("alice")
    place_resting("bob")

    assert assert_rejected(operator, "DELETE", "/orders?all=true").fields == {"broker_id": "required"}
    assert assert_rejected(operator, "DELETE", "/orders").fields == {"broker_id": "required", "symbol": "required"}
    assert assert_rejected(operator, "DELETE", "/orders?all=true&broker_id=nobody").code == "broker_not_found"
    assert mass_cancel(operator, "broker_id=alice&side=bid") == 3
    assert set(Order.objects.filter(status="cancelled").values_list("broker", "side", "cancel_reason")) == {
        ("alice", "bid", "by_operator")
    }


# --- Concurrency ----------------------------------------------------------------------------------------------------


def cancel_with_short_lock_timeout() -> int:
    with lock_timeout("100ms"):
        return services.cancel_all("alice", reason=CancelReason.BY_BROKER)


@pytest.mark.django_db(transaction=True)
def test_a_failure_after_a_committed_batch_is_an_unknown_outcome() -> None:
    trading.broker("alice", holdings=HOLDINGS)
    place_resting("alice")
    with transaction.atomic():
        Instrument.objects.select_for_update().get(pk="GOOG")  # hold the second book
        with pytest.raises(OutcomeUnknown):
            start_thread(cancel_with_short_lock_timeout).result(WAIT_SECONDS)
    assert working() == all_books_of("alice") - {("alice", "AAPL", "bid"), ("alice", "AAPL", "ask")}


@pytest.mark.django_db(transaction=True)
def test_a_failure_before_any_commit_is_not_an_unknown_outcome() -> None:
    trading.broker("alice", holdings=HOLDINGS)
    place_resting("alice")
    with transaction.atomic():
        Instrument.objects.select_for_update().get(pk="AAPL")
        with pytest.raises(Exception, match="lock timeout"):
            start_thread(cancel_with_short_lock_timeout).result(WAIT_SECONDS)
    assert working() == all_books_of("alice")


@pytest.mark.django_db(transaction=True)
def test_mass_cancels_under_load_end_and_cancel_no_other_brokers_orders(server: live.Server) -> None:
    """Alice repeatedly cancels while two of her clients place orders; bob's orders trade with hers."""
    keys = {broker_id: trading.broker(broker_id, cash=10**9, holdings=HOLDINGS) for broker_id in ("alice", "bob")}
    place_resting("bob")
    stop = Flag()

    def request(method: str, path: str, by: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {keys[by]}"}
        response = httpx.request(
            method, server.url + path, json=body, headers=headers, timeout=WAIT_SECONDS, trust_env=False
        )
        return response.raise_for_status().json()

    def place_until_stopped(by: str, symbol: str, side: str) -> int:
        accepted = 0
        while not stop.is_set():
            orders = [limit(side, 1, "10", broker_id=by, symbol=symbol)] * 5
            results = request("POST", "/orders/batch", by, {"orders": orders})["results"]
            accepted += sum(result["status"] == 201 for result in results)
        return accepted

    placing = [
        start_thread(partial(place_until_stopped, by, symbol, side))
        for by, symbol, side in (("alice", "AAPL", "bid"), ("alice", "GOOG", "ask"), ("bob", "AAPL", "ask"))
    ]
    counted = 0
    try:
        assert wait_until(lambda: Order.objects.filter(broker="alice").count() > 20, WAIT_SECONDS)
        for query in ("all=true", "side=bid", "symbol=GOOG", "all=true") * 3:
            counted += request("DELETE", f"/orders?{query}", "alice")["cancelled"]
    finally:
        stop.set()
    total = sum(each.result(WAIT_SECONDS) for each in placing)
    counted += request("DELETE", "/orders?all=true", "alice")["cancelled"]

    assert counted > 0
    assert total + 6 == Order.objects.count()
    assert Order.objects.filter(status="cancelled").count() == counted
    assert {owner for owner, _, _ in working()} == {"bob"}
    assert Event.objects.filter(type="order.cancelled", broker="alice").count() == counted
    assert Order.objects.filter(broker="bob", status="cancelled").count() == 0
