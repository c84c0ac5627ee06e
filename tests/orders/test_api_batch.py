"""`POST /orders/batch`: each order gets the result of a single request (contract: 2)."""

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from typing import Any

import httpx
import msgspec
import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django.fixtures import Settings

from exchange import services as exchange_services
from exchange.http.fields import MAX_ERRORS
from exchange.rules import Scope
from orders import services
from orders.models import Order, Trade
from tests import api, live, trading
from tests.api import LATER, LIMIT, MARKET, assert_rejected, limit, market, place_order, token, without
from tests.exchange.client import ApiResponse, Client
from tests.trading import BY, run_concurrently

pytestmark = pytest.mark.django_db(transaction=True)

BY_BOB = {"broker_id": "bob"}
MEBI = 1024 * 1024


def batch(client: Client, *orders: Any) -> list[dict[str, Any]]:
    """Send a batch that must be accepted. Return its results, each with an order or a complete problem."""
    response = client.post("/orders/batch", {"orders": orders})
    assert response.status == 200, response
    assert list(response.body) == ["results"]
    results: list[dict[str, Any]] = response.body["results"]
    assert len(results) == len(orders)
    for result in results:
        assert list(result) == ["status", "order" if result["status"] < 400 else "error"]
        if "error" in result:
            problem = ApiResponse(
                result["status"],
                response.headers | {"Content-Type": "application/problem+json"},
                msgspec.json.encode(result["error"]),
            )
            api.assert_problem(problem)
    return results


def summaries(results: list[dict[str, Any]]) -> list[str]:
    """Status code of each result, with the order's status or the error's code."""
    return [
        f"{each['status']} {each['order']['status'] if 'order' in each else each['error']['code']}" for each in results
    ]


def numbered_orders(count: int, **more: Any) -> list[dict[str, Any]]:
    return [limit("bid", 1, "10", client_order_id=f"c-{number}", **more) for number in range(count)]


# --- Results --------------------------------------------------------------------------------------------------------


def test_each_order_has_its_own_result_in_request_order(alice: Client, bob: Client) -> None:
    place_order(bob, limit("ask", 5, "10", **BY_BOB))
    place_order(alice, limit("bid", 1, "1", client_order_id="used"))
    before = Order.objects.count()

    results = batch(
        alice,
        limit("bid", 8, "10"),
        LIMIT | {"quantity": 0, "side": "buy", "Price": 1},
        limit("bid", 10**6, "10"),
        LIMIT | {"symbol": "NONE"},
        LIMIT | BY_BOB,
        "order",
        limit("bid", 1, "1", client_order_id="used"),
        limit("bid", 2, "1", client_order_id="used"),
        LIMIT | {"price": "10.001"},
        market("bid", 1),
        limit("ask", 4, "9"),
    )

    assert summaries(results) == [
        "201 partially_filled",
        "400 validation_error",
        "409 insufficient_balance",
        "404 symbol_not_found",
        "403 broker_mismatch",
        "400 malformed_request",
        "200 pending",
        "409 client_order_id_conflict",
        "400 validation_error",
        "201 cancelled",
        "201 partially_filled",
    ]
    assert Order.objects.count() == before + 3
    assert trading.fills() == [(5, Decimal(10)), (3, Decimal(9))]


@pytest.mark.parametrize(
    "body",
    [
        {},
        LIMIT | {"quantity": "5", "price": -1, "side": None, "more": 1},
        without(LIMIT, "time_in_force"),
        LIMIT | {"symbol": "NONE"},
        LIMIT | BY_BOB | {"quantity": 0},
        LIMIT | {"broker_id": "a b"},
        LIMIT | {"broker_id": 1},
        LIMIT | {"price": 10**12, "quantity": 10**12},
        LIMIT | {"price": token("1e-99")},
        LIMIT | {f"unknown-{number}": 1 for number in range(60)},
        LIMIT | {"time_in_force": "gtd", "expires_at": "2020-01-01T00:00:00Z"},
        LIMIT | {"quantity": 10**7},
        LIMIT | {"client_order_id": "used", "side": "ask"},
    ],
    ids=lambda body: ",".join(body)[-40:] if isinstance(body, dict) else "",
)
def test_the_error_of_an_order_equals_that_of_a_single_request(alice: Client, body: dict[str, Any]) -> None:
    place_order(alice, LIMIT | {"client_order_id": "used"})
    alone = assert_rejected(alice, "POST", "/orders", body)
    before = trading.snapshot()
    (result,) = batch(alice, body)

    assert trading.snapshot() == before
    assert result["status"] == alone.status
    assert result["error"] | {"request_id": ""} == alone.body | {"request_id": ""}


def test_elements_of_any_json_type_get_a_result(alice: Client) -> None:
    results = batch(alice, None, 1, "order", [], [LIMIT], True, {}, LIMIT)

    assert summaries(results) == ["400 malformed_request"] * 6 + ["400 validation_error", "201 pending"]


def test_field_errors_beyond_the_limit_of_a_batch_are_cut_to_one_per_order(alice: Client) -> None:
    order = LIMIT | {f"unknown-{number}": 1 for number in range(60)}
    named = [[error["field"] for error in result["error"]["errors"]] for result in batch(alice, *[order] * 40)]

    assert [len(fields) for fields in named] == [MAX_ERRORS] * (django_settings.MAX_BATCH_ERRORS // MAX_ERRORS) + [
        1
    ] * 20
    assert {fields[0] for fields in named} == {"unknown-0"}


def test_a_huge_integer_rejects_its_order_or_all_of_a_long_batch(alice: Client) -> None:
    bad = LIMIT | {"quantity": token("9" * 5_000)}
    body = msgspec.json.encode({"orders": [bad, LIMIT]})

    assert summaries(batch(alice, bad, LIMIT)) == ["400 validation_error", "201 pending"]
    assert assert_rejected(alice, "POST", "/orders/batch", body.ljust(64 * 1024 + 1)).code == "malformed_request"


def test_market_and_gtd_orders_are_accepted_in_a_batch(alice: Client, bob: Client) -> None:
    place_order(bob, limit("ask", 5, "10", **BY_BOB))
    gtd = without(LIMIT, "time_in_force", "price") | {"price": token("10.00"), "expires_at": LATER}
    first, second = batch(alice, MARKET, gtd | {"quantity": 1})

    assert [str(trade["price"]) for trade in first["order"]["trades"]] == ["10.00"]
    assert (second["order"]["expires_at"], second["order"]["time_in_force"]) == (LATER, "gtd")
    for result in (first, second):
        assert alice.get(f"/orders/{result['order']['order_id']}").body == result["order"]


def test_orders_of_a_batch_arrive_in_request_order(alice: Client, bob: Client) -> None:
    batch(alice, *[limit("ask", 1, "10", client_order_id=f"a-{number}") for number in range(10)])
    place_order(bob, limit("bid", 4, "10", **BY_BOB))

    assert list(
        Order.objects.filter(status="filled", side="ask").order_by("sequence").values_list("client_order_id")
    ) == [(f"a-{number}",) for number in range(4)]


def test_shares_reserved_by_one_order_are_missing_for_the_next(alice: Client) -> None:
    results = batch(alice, limit("ask", 9_999, "10"), limit("ask", 2, "10"), limit("ask", 1, "10"))

    assert summaries(results) == ["201 pending", "409 insufficient_holdings", "201 pending"]


def test_a_halted_book_rejects_only_its_own_orders(alice: Client) -> None:
    trading.instrument("PETR4")
    exchange_services.halt("PETR4", by=BY)

    assert summaries(batch(alice, LIMIT | {"symbol": "PETR4"}, LIMIT)) == ["409 instrument_halted", "201 pending"]


def test_a_result_shows_the_order_before_later_orders_of_the_batch(alice: Client) -> None:
    first, second = batch(alice, limit("ask", 5, "10"), limit("bid", 2, "10"))

    assert (first["order"]["status"], first["order"]["trades"]) == ("pending", [])
    assert (second["order"]["status"], len(second["order"]["trades"])) == ("filled", 1)


# --- Replay ---------------------------------------------------------------------------------------------------------


def test_a_repeated_batch_returns_the_current_orders_and_places_nothing(alice: Client, bob: Client) -> None:
    orders = [*numbered_orders(3), limit("ask", 4, "20", client_order_id="ask")]
    first = batch(alice, *orders)
    place_order(bob, limit("ask", 2, "10", **BY_BOB))
    for _ in range(2):
        place_order(bob, limit("bid", 1, "20", **BY_BOB))
    before = trading.snapshot()
    second = batch(alice, *orders)

    assert trading.snapshot() == before
    assert summaries(second) == ["200 filled", "200 filled", "200 pending", "200 partially_filled"]
    assert [each["order"]["order_id"] for each in second] == [each["order"]["order_id"] for each in first]
    assert [len(each["order"]["trades"]) for each in second] == [1, 1, 0, 2]
    for result in second:
        assert alice.get(f"/orders/{result['order']['order_id']}").body == result["order"]


def test_a_replay_shows_trades_between_its_own_orders_on_both(alice: Client) -> None:
    orders = [limit("ask", 2, "10", client_order_id="ask"), limit("bid", 1, "10", client_order_id="bid")]
    batch(alice, *orders)
    ask, bid = (result["order"] for result in batch(alice, *orders))

    assert (ask["status"], bid["status"]) == ("partially_filled", "filled")
    assert ask["trades"] == bid["trades"]
    assert len(bid["trades"]) == 1


def test_the_second_of_two_orders_with_one_client_order_id_is_a_replay(alice: Client) -> None:
    same = LIMIT | {"client_order_id": "same"}
    results = batch(alice, same, same, same | {"quantity": 6}, same | {"price": "10.0"})

    assert summaries(results) == ["201 pending", "200 pending", "409 client_order_id_conflict", "200 pending"]
    assert len({each["order"]["order_id"] for each in results if "order" in each}) == 1
    assert Order.objects.count() == 1


def count_statements(client: Client, orders: list[dict[str, Any]], status: int) -> int:
    """Count the statements of a batch whose results have `status`, without the key lookup."""
    with CaptureQueriesContext(connection) as captured:
        results = batch(client, *orders)
    assert {each["status"] for each in results} == {status}
    return sum("exchange_apikey" not in each["sql"] for each in captured)


def test_a_batch_runs_as_many_statements_as_one_order(alice: Client) -> None:
    first, *others = numbered_orders(501)
    few = [count_statements(alice, [first], status) for status in (201, 200)]
    many = [count_statements(alice, others, status) for status in (201, 200)]

    assert many == few


def test_an_entirely_invalid_batch_runs_no_statement(alice: Client) -> None:
    assert count_statements(alice, [LIMIT | {"quantity": 0}] * 50, 400) == 0


# --- Rejected batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"orders": "required"}),
        ({"orders": None}, {"orders": "null"}),
        ({"orders": {}}, {"orders": "not_a_list"}),
        ({"orders": "x"}, {"orders": "not_a_list"}),
        ({"orders": 1}, {"orders": "not_a_list"}),
        ({"orders": []}, {"orders": "min_length"}),
        ({"orders": [LIMIT] * 501}, {"orders": "max_length"}),
        ({"orders": [LIMIT], "atomic": True}, {"atomic": "unknown_field"}),
        ({"orders": [], "a": 1, "b": 1}, {"orders": "min_length", "a": "unknown_field", "b": "unknown_field"}),
        (LIMIT, {"orders": "required"} | dict.fromkeys(LIMIT, "unknown_field")),
    ],
    ids=str,
)
def test_an_invalid_batch_body_is_rejected(alice: Client, body: Any, fields: dict[str, str]) -> None:
    response = assert_rejected(alice, "POST", "/orders/batch", body)

    assert (response.status, response.code, response.fields) == (400, "validation_error", fields)


def test_a_batch_accepts_up_to_500_orders(alice: Client) -> None:
    assert django_settings.MAX_BATCH_ORDERS == 500
    assert Counter(summaries(batch(alice, *numbered_orders(500)))) == {"201 pending": 500}
    assert Order.objects.count() == 500


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"orders": [', b"[" * 100_000, b'{"orders": ["\xff"]}'])
def test_a_body_that_is_not_a_json_object_is_rejected(alice: Client, body: bytes) -> None:
    assert assert_rejected(alice, "POST", "/orders/batch", body).code == "malformed_request"


def test_a_batch_body_has_at_most_one_mebibyte(alice: Client) -> None:
    body = msgspec.json.encode({"orders": [LIMIT]})

    assert alice.post("/orders/batch", body.rjust(MEBI)).status == 200
    response = assert_rejected(alice, "POST", "/orders/batch", body.rjust(MEBI + 1))
    assert (response.status, response.code) == (413, "too_large")
    assert assert_rejected(alice, "POST", "/orders", msgspec.json.encode(LIMIT).rjust(64 * 1024 + 1)).status == 413


def test_a_batch_without_permission_is_rejected_as_a_whole(alice: Client, operator: Client) -> None:
    reader = Client(exchange_services.issue_key("alice", scopes=[Scope.READ], by=BY)[1])
    for client in (reader, operator):
        assert assert_rejected(client, "POST", "/orders/batch", {"orders": [LIMIT, 1]}).code == "scope_missing"
    assert assert_rejected(Client(None), "POST", "/orders/batch", {"orders": [LIMIT]}).code == "unauthenticated"
    assert (
        assert_rejected(alice, "POST", "/orders/batch", {"orders": [LIMIT], "broker_id": "bob"}).code
        == "broker_mismatch"
    )
    assert assert_rejected(alice, "POST", "/orders/batch?dry_run=1", {"orders": [LIMIT]}).fields == {
        "dry_run": "unknown_parameter"
    }


def test_each_order_of_a_suspended_broker_is_rejected(alice: Client) -> None:
    services.suspend("alice", cancel_orders=False, by=BY)

    assert summaries(batch(alice, LIMIT, {})) == ["409 broker_suspended", "400 validation_error"]


def test_takers_that_only_together_exceed_the_maker_limit_get_their_own_results(
    alice: Client, bob: Client, settings: Settings
) -> None:
    trading.limit_makers(settings, 2)
    settings.SEQUENCER_DEEP_TIME_LIMIT_SECONDS = trading.TIMEOUT_SECONDS
    for _ in range(6):
        place_order(bob, limit("ask", 1, "10", **BY_BOB))
    bids = [limit("bid", quantity, "10") for quantity in (2, 3, 2, 1)]

    assert summaries(batch(alice, *bids)) == ["201 filled", "409 too_many_fills", "201 filled", "201 filled"]


# --- Live server ----------------------------------------------------------------------------------------------------


@pytest.fixture
def http(server: live.Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
        yield client


def authorization(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.django_db(transaction=True)
def test_the_server_accepts_a_batch_and_its_replay(server: live.Server, http: httpx.Client) -> None:
    headers, body = authorization(trading.broker("alice")), {"orders": [*numbered_orders(499), {"side": 1}]}
    first, second = (http.post("/orders/batch", json=body, headers=headers) for _ in range(2))

    for response, status in ((first, 201), (second, 200)):
        assert response.status_code == 200, response.text
        assert Counter(each["status"] for each in response.json()["results"]) == {status: 499, 400: 1}
    assert first.headers["X-Request-Id"] == first.json()["results"][-1]["error"]["request_id"]
    assert Order.objects.count() == 499


@pytest.mark.django_db(transaction=True)
def test_a_batch_sent_concurrently_is_placed_once(server: live.Server) -> None:
    headers, body = authorization(trading.broker("alice")), {"orders": numbered_orders(50)}

    def post() -> httpx.Response:
        return httpx.post(f"{server.url}/orders/batch", json=body, headers=headers, timeout=20, trust_env=False)

    results = [response.json()["results"] for response in run_concurrently([post] * 6)]

    assert Counter(each["status"] for part in results for each in part) == {201: 50, 200: 250}
    ids = [[each["order"]["order_id"] for each in part] for part in results]
    assert ids == [ids[0]] * 6
    assert Order.objects.count() == 50


@pytest.mark.django_db(transaction=True)
def test_crossing_batches_conserve_cash_and_shares(server: live.Server) -> None:
    """Two brokers concurrently send batches to both sides of two books, in opposite orders."""
    holdings = {"AAPL": 10_000, "PETR4": 10_000}
    keys = {broker_id: trading.broker(broker_id, holdings=holdings) for broker_id in ("alice", "bob")}
    symbols = list(holdings)

    def post(broker_id: str, number: int) -> list[int]:
        orders = [
            limit(side, 1, "10", broker_id=broker_id, symbol=symbol)
            for symbol in symbols[:: 1 if number % 2 else -1]
            for side in ("bid", "ask") * 10
        ]
        response = httpx.post(
            f"{server.url}/orders/batch",
            json={"orders": orders},
            headers=authorization(keys[broker_id]),
            timeout=20,
            trust_env=False,
        )
        return [each["status"] for each in response.raise_for_status().json()["results"]]

    responses = run_concurrently([partial(post, broker_id, number) for number in range(4) for broker_id in keys])

    assert Counter(status for statuses in responses for status in statuses) == {201: 320}
    assert Trade.objects.count() == 160


@pytest.mark.django_db(transaction=True)
def test_a_chunked_body_over_one_mebibyte_is_413(server: live.Server, http: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(MEBI // 65_536):
            yield b" " * 65_536
        yield b"{}"

    headers = authorization(trading.broker("alice")) | {"Content-Type": "application/json"}
    response = http.post("/orders/batch", content=chunks(), headers=headers)

    assert (response.status_code, response.json()["code"]) == (413, "too_large")
