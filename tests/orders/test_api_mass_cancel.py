"""`DELETE /orders`: a broker's working orders, all or those of a symbol or side, at once (contract: 2)."""

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
from tests.api import limit, placed, refused
from tests.exchange.client import Client
from tests.trading import BY, in_thread, order
from webhooks.models import Event

pytestmark = pytest.mark.django_db(transaction=True)

SYMBOLS = ("AAPL", "GOOG", "PETR4")
HOLDINGS = dict.fromkeys(SYMBOLS, 10_000)
WAIT_SECONDS = 10.0
AROUND = 2  # statements: whether broker and symbol exist


def cancelled(client: Client, query: str) -> int:
    """How many a call says that it cancelled."""
    answer = client.delete(f"/orders?{query}")
    assert answer.status == 200, answer
    assert list(answer.body) == ["cancelled"]
    assert isinstance(answer.body["cancelled"], int)
    return int(answer.body["cancelled"])


def rest(by: str, *, each: int = 1, symbols: Sequence[str] = SYMBOLS) -> None:
    """So many bids and asks of a broker's in each book, none of which crosses another."""
    wanted = [
        order(side, 1, price, by=by, symbol=symbol)
        for symbol in symbols
        for _ in range(each)
        for side, price in ((Side.BID, "9.00"), (Side.ASK, "11.00"))
    ]
    assert all(isinstance(outcome, Accepted) for outcome in service.execute(wanted))


def working() -> set[tuple[str, str, str]]:
    """Owner, symbol and side of what is left."""
    return set(Order.objects.working().values_list("broker", "instrument", "side"))


def everything_of(*broker_ids: str) -> set[tuple[str, str, str]]:
    return {(broker_id, symbol, side) for broker_id in broker_ids for symbol in SYMBOLS for side in Side}


@pytest.fixture
def alice(db: None) -> Client:
    return api.broker("alice", holdings=HOLDINGS)


@pytest.fixture
def bob(alice: Client) -> Client:
    return api.broker("bob", holdings=HOLDINGS)


# --- What is cancelled ----------------------------------------------------------------------------------------------


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
def test_what_the_filters_name_is_cancelled_and_nothing_else(
    alice: Client, bob: Client, query: str, gone: set[tuple[str, str]]
) -> None:
    rest("alice", each=2)
    rest("bob")

    assert cancelled(alice, query) == 2 * len(gone)
    assert working() == everything_of("alice", "bob") - {("alice", symbol, side) for symbol, side in gone}
    assert set(Order.objects.filter(status="cancelled").values_list("cancel_reason")) == {("by_broker",)}
    assert cancelled(alice, query) == 0


def test_reservations_are_freed_and_trades_stay(alice: Client, bob: Client) -> None:
    bid = placed(alice, limit("bid", 5, "10"))["order_id"]
    placed(alice, limit("ask", 7, "20"))
    placed(bob, limit("ask", 2, "10", broker_id="bob"))
    assert trading.balance("alice")[1] == Decimal(30)

    assert cancelled(alice, "side=bid") == 1
    assert trading.balance("alice") == (trading.CASH - 20, Decimal(0))
    assert trading.shares("alice") == (10_002, 7)
    body = alice.get(f"/orders/{bid}").body
    assert (body["status"], body["filled_quantity"], body["remaining_quantity"]) == ("cancelled", 2, 3)
    assert len(body["trades"]) == 1


def test_each_order_has_its_event(alice: Client, bob: Client) -> None:
    rest("alice")
    rest("bob")
    cancelled(alice, "side=ask")

    events = list(Event.objects.filter(type="order.cancelled").order_by("sequence"))
    assert [(event.broker_id, event.sequence) for event in events] == [("alice", number) for number in (1, 2, 3)]
    bodies = [json.loads(event.body)["data"] for event in events]
    assert [(body["symbol"], body["side"], body["status"]) for body in bodies] == [
        (symbol, "ask", "cancelled") for symbol in SYMBOLS
    ]
    assert {body["order_id"] for body in bodies} == {str(each.pk) for each in Order.objects.filter(status="cancelled")}


def test_orders_past_their_time_expire_and_are_not_counted(alice: Client) -> None:
    later = database_now() + timedelta(hours=1)
    placed(alice, limit("bid", 1, "9", time_in_force="gtd", expires_at=later.isoformat()))
    placed(alice, limit("bid", 1, "9"))
    Order.objects.filter(time_in_force="gtd").update(
        expires_at=F("expires_at") - timedelta(hours=2), created_at=F("created_at") - timedelta(hours=2)
    )

    assert cancelled(alice, "all=true") == 1
    assert sorted(Order.objects.values_list("status", flat=True)) == ["cancelled", "expired"]
    assert sorted(Event.objects.values_list("type", flat=True)) == ["order.cancelled", "order.expired"]


def test_a_suspended_broker_cancels_and_so_does_one_in_a_halted_book(alice: Client) -> None:
    rest("alice")
    services.suspend("alice", cancel_orders=False, by=BY)
    exchange_services.halt("AAPL", by=BY)

    assert cancelled(alice, "all=true") == 6


# --- Many of them ---------------------------------------------------------------------------------------------------


def test_1200_orders_in_three_books_go_in_one_call(alice: Client, bob: Client) -> None:
    rest("alice", each=200)
    rest("bob")

    assert cancelled(alice, "all=true") == 1_200
    assert working() == everything_of("bob")
    assert Event.objects.filter(broker="alice", type="order.cancelled").count() == 1_200
    assert trading.balance("alice") == (trading.CASH, Decimal(0))
    assert cancelled(alice, "all=true") == 0


def statements(client: Client, query: str, expected: int) -> int:
    with CaptureQueriesContext(connection) as captured:
        assert cancelled(client, query) == expected
    return sum("exchange_apikey" not in each["sql"] for each in captured)


@pytest.mark.parametrize(("batch", "some", "none"), [(500, 1, 0), (201, 1, 0), (200, 1, 1), (70, 3, 0), (50, 4, 1)])
def test_a_call_costs_so_many_statements_a_batch(
    alice: Client, settings: Settings, batch: int, some: int, none: int
) -> None:
    """Two hundred orders of a side: after each full batch comes another, which may find nothing."""
    rest("alice", each=1, symbols=["AAPL"])
    each = statements(alice, "symbol=AAPL", 2) - AROUND
    settings.SWEEP_BATCH = batch
    rest("alice", each=200, symbols=["AAPL"])
    idle = statements(alice, "symbol=GOOG", 0) - AROUND

    assert statements(alice, "symbol=AAPL&side=ask", 200) == AROUND + some * each + none * idle


def orders_read() -> int:
    """Along any index, in the transaction so far."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'orders_order'")
        (number,) = cursor.fetchone()
    return int(number)


def test_a_side_is_found_by_the_index_of_what_a_broker_has_working(alice: Client, bob: Client) -> None:
    rest("alice", each=100)
    rest("bob", each=300)
    with own_transaction() as cursor:
        cursor.execute("ANALYZE orders_order")
        before = orders_read()
        trading.load_market(cursor, [CancelOrders("alice", "AAPL", side=Side.ASK)])
        read = orders_read() - before
    assert read == 200, "the bids and asks of alice in that book, and nobody else's"


# --- What is refused ------------------------------------------------------------------------------------------------


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
def test_what_does_not_say_which_orders_is_refused(alice: Client, query: str, fields: dict[str, str]) -> None:
    rest("alice")
    answer = refused(alice, "DELETE", f"/orders?{query}")

    assert (answer.status, answer.code, answer.fields) == (400, "validation_error", fields)


def test_a_symbol_that_is_not_listed_is_404(alice: Client) -> None:
    rest("alice")

    assert refused(alice, "DELETE", "/orders?symbol=APPL").code == "symbol_not_found"


def test_nobody_cancels_for_another_broker(alice: Client, bob: Client) -> None:
    rest("alice")
    reader = Client(exchange_services.issue_key("alice", scopes=[Scope.READ], by=BY)[1])

    assert refused(bob, "DELETE", "/orders?all=true&broker_id=alice").code == "broker_mismatch"
    assert refused(reader, "DELETE", "/orders?all=true").code == "scope_missing"
    assert refused(Client(None), "DELETE", "/orders?all=true").code == "unauthenticated"
    assert cancelled(bob, "all=true") == 0
    assert working() == everything_of("alice")


def test_an_operator_says_whose_and_its_reason_is_told(alice: Client, bob: Client, operator: Client) -> None:
    rest("alice")
    rest("bob")

    assert refused(operator, "DELETE", "/orders?all=true").fields == {"broker_id": "required"}
    assert refused(operator, "DELETE", "/orders").fields == {"broker_id": "required", "symbol": "required"}
    assert refused(operator, "DELETE", "/orders?all=true&broker_id=nobody").code == "broker_not_found"
    assert cancelled(operator, "broker_id=alice&side=bid") == 3
    assert set(Order.objects.filter(status="cancelled").values_list("broker", "side", "cancel_reason")) == {
        ("alice", "bid", "by_operator")
    }


# --- With others at work --------------------------------------------------------------------------------------------


def cancel_impatiently() -> int:
    with lock_timeout("100ms"):
        return services.cancel_all("alice", reason=CancelReason.BY_BROKER)


@pytest.mark.django_db(transaction=True)
def test_what_fails_after_a_batch_was_committed_is_not_called_not_done() -> None:
    trading.broker("alice", holdings=HOLDINGS)
    rest("alice")
    with transaction.atomic():
        Instrument.objects.select_for_update().get(pk="GOOG")  # somebody holds the second book for long
        with pytest.raises(OutcomeUnknown):
            in_thread(cancel_impatiently).result(WAIT_SECONDS)
    assert working() == everything_of("alice") - {("alice", "AAPL", "bid"), ("alice", "AAPL", "ask")}


@pytest.mark.django_db(transaction=True)
def test_what_fails_before_anything_was_committed_is_not_called_unknown() -> None:
    trading.broker("alice", holdings=HOLDINGS)
    rest("alice")
    with transaction.atomic():
        Instrument.objects.select_for_update().get(pk="AAPL")
        with pytest.raises(Exception, match="lock timeout"):
            in_thread(cancel_impatiently).result(WAIT_SECONDS)
    assert working() == everything_of("alice")


@pytest.mark.django_db(transaction=True)
def test_mass_cancels_among_orders_that_keep_coming_end_and_leave_others_alone(server: live.Server) -> None:
    """Alice cancels again and again what two of her programs place, while bob's rest beside and trade with them."""
    keys = {broker_id: trading.broker(broker_id, cash=10**9, holdings=HOLDINGS) for broker_id in ("alice", "bob")}
    rest("bob")
    stop = Flag()

    def ask(method: str, path: str, by: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {keys[by]}"}
        answer = httpx.request(
            method, server.url + path, json=body, headers=headers, timeout=WAIT_SECONDS, trust_env=False
        )
        return answer.raise_for_status().json()

    def place_until_stopped(by: str, symbol: str, side: str) -> int:
        how_many = 0
        while not stop.is_set():
            orders = [limit(side, 1, "10", broker_id=by, symbol=symbol)] * 5
            results = ask("POST", "/orders/batch", by, {"orders": orders})["results"]
            how_many += sum(result["status"] == 201 for result in results)
        return how_many

    placing = [
        in_thread(partial(place_until_stopped, by, symbol, side))
        for by, symbol, side in (("alice", "AAPL", "bid"), ("alice", "GOOG", "ask"), ("bob", "AAPL", "ask"))
    ]
    counted = 0
    try:
        assert wait_until(lambda: Order.objects.filter(broker="alice").count() > 20, WAIT_SECONDS)
        for query in ("all=true", "side=bid", "symbol=GOOG", "all=true") * 3:
            counted += ask("DELETE", f"/orders?{query}", "alice")["cancelled"]
    finally:
        stop.set()
    total = sum(each.result(WAIT_SECONDS) for each in placing)
    counted += ask("DELETE", "/orders?all=true", "alice")["cancelled"]

    assert counted > 0
    assert total + 6 == Order.objects.count()
    assert Order.objects.filter(status="cancelled").count() == counted
    assert {owner for owner, _, _ in working()} == {"bob"}
    assert Event.objects.filter(type="order.cancelled", broker="alice").count() == counted
    assert Order.objects.filter(broker="bob", status="cancelled").count() == 0
