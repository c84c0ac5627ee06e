"""Suspensions and halts over HTTP and their effect on orders (contract: 3, 6)."""

from typing import Any

import pytest

from orders.models import Order
from tests import trading
from tests.api import LIMIT, assert_rejected, limit, place_order
from tests.exchange.client import Client

pytestmark = pytest.mark.django_db(transaction=True)

BY_BOB = {"broker_id": "bob"}


def broker_status(status: str, cancelled: int) -> dict[str, Any]:
    return {"broker_id": "alice", "status": status, "cancelled_orders": cancelled}


# --- Suspension -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [None, {}, {"cancel_orders": False}, {"reason": "late margin"}])
def test_orders_of_a_suspended_broker_still_trade_and_can_be_cancelled(
    alice: Client, bob: Client, operator: Client, body: Any
) -> None:
    first, second = (place_order(alice, limit("ask", 5, price))["order_id"] for price in ("10", "11"))
    response = operator.post("/brokers/alice/suspend", body)

    assert (response.status, response.body) == (200, broker_status("suspended", 0))
    denied = assert_rejected(alice, "POST", "/orders", LIMIT)
    assert (denied.status, denied.code) == (409, "broker_suspended")
    assert place_order(bob, limit("bid", 5, "10", **BY_BOB))["status"] == "filled"
    assert alice.get(f"/orders/{first}").body["status"] == "filled"
    assert alice.delete(f"/orders/{second}").body["cancel_reason"] == "by_broker"
    response = operator.post("/brokers/alice/reinstate", body and {"reason": "paid"})
    assert (response.status, response.body) == (200, broker_status("active", 0))
    assert place_order(alice, LIMIT)["status"] == "pending"


def test_a_suspension_responds_after_its_cancels(alice: Client, bob: Client, operator: Client) -> None:
    trading.instrument("PETR4")
    mine = [
        place_order(alice, body)["order_id"]
        for body in (LIMIT, limit("ask", 5, "11"), limit("bid", 1, "1", symbol="PETR4"))
    ]
    place_order(bob, limit("bid", 5, "9", **BY_BOB))
    place_order(bob, limit("bid", 2, "11", **BY_BOB))
    response = operator.post("/brokers/alice/suspend", {"cancel_orders": True, "reason": "default"})

    assert (response.status, response.body) == (200, broker_status("suspended", 3))
    ended = [alice.get(f"/orders/{order_id}").body for order_id in mine]
    assert [(order["status"], order["cancel_reason"]) for order in ended] == [("cancelled", "broker_suspended")] * 3
    assert [order["filled_quantity"] for order in ended] == [0, 2, 0]
    assert Order.objects.working().values_list("broker", flat=True).get() == "bob"
    assert operator.post("/brokers/alice/suspend", {"cancel_orders": True}).body == broker_status("suspended", 0)


@pytest.mark.parametrize(
    ("action", "body", "fields"),
    [
        ("suspend", {"cancel_orders": "true"}, ["cancel_orders"]),
        ("suspend", {"cancel_orders": 1}, ["cancel_orders"]),
        ("suspend", {"cancel_orders": None}, ["cancel_orders"]),
        ("suspend", {"reason": 1}, ["reason"]),
        ("suspend", {"reason": "x\0"}, ["reason"]),
        ("suspend", {"reason": "x" * 201}, ["reason"]),
        ("suspend", {"force": True, "cancel_orders": 0}, ["cancel_orders", "force"]),
        ("reinstate", {"cancel_orders": False}, ["cancel_orders"]),
        ("reinstate", {"reason": []}, ["reason"]),
    ],
)
def test_invalid_fields_of_a_suspension_are_listed(
    alice: Client, operator: Client, action: str, body: Any, fields: list[str]
) -> None:
    response = assert_rejected(operator, "POST", f"/brokers/alice/{action}", body)

    assert (response.status, response.code, sorted(response.fields)) == (400, "validation_error", fields)


@pytest.mark.parametrize("action", ["suspend", "reinstate"])
def test_a_suspension_requires_an_operator_and_an_existing_broker(alice: Client, operator: Client, action: str) -> None:
    response = assert_rejected(operator, "POST", f"/brokers/nobody/{action}", {})
    assert (response.status, response.code) == (404, "broker_not_found")
    assert assert_rejected(operator, "POST", f"/brokers/a%20b/{action}").code == "not_found"
    response = assert_rejected(alice, "POST", f"/brokers/alice/{action}", {})
    assert (response.status, response.code) == (403, "scope_missing")
    assert assert_rejected(operator, "POST", f"/brokers/alice/{action}", b"[]").code == "malformed_request"
    assert assert_rejected(operator, "POST", f"/brokers/alice/{action}", b"{}", content_type="text/plain").status == 415


# --- Halt -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [None, {"reason": "news"}])
def test_a_halted_instrument_rejects_orders_until_resumed(alice: Client, operator: Client, body: Any) -> None:
    trading.instrument("PETR4")
    resting = place_order(alice, LIMIT)["order_id"]
    response = operator.post("/stocks/AAPL/halt", body)

    assert (response.status, response.body["status"]) == (200, "halted")
    assert response.content == alice.get("/stocks/AAPL").content
    denied = assert_rejected(alice, "POST", "/orders", limit("ask", 1, "10"))
    assert (denied.status, denied.code) == (409, "instrument_halted")
    assert place_order(alice, limit("bid", 1, "10", symbol="PETR4"))["status"] == "pending"
    assert alice.get("/stocks/AAPL/book").body["bids"][0]["total_quantity"] == 5
    assert alice.delete(f"/orders/{resting}").status == 200
    response = operator.post("/stocks/AAPL/resume", body)
    assert (response.status, response.body["status"]) == (200, "trading")
    assert place_order(alice, LIMIT)["status"] == "pending"


def test_an_instrument_that_was_ordered_cannot_be_removed(alice: Client, operator: Client) -> None:
    trading.instrument("PETR4")
    rejected = assert_rejected(alice, "POST", "/orders", limit("ask", 1, "10", symbol="PETR4"))
    assert rejected.code == "insufficient_holdings"
    assert operator.delete("/stocks/PETR4").status == 204
    trading.instrument("PETR4")
    order_id = place_order(alice, limit("bid", 1, "10", symbol="PETR4"))["order_id"]

    assert assert_rejected(operator, "DELETE", "/stocks/PETR4").code == "instrument_in_use"
    alice.delete(f"/orders/{order_id}")
    assert assert_rejected(operator, "DELETE", "/stocks/PETR4").code == "instrument_in_use"
    assert alice.get(f"/orders/{order_id}").body["symbol"] == "PETR4"


@pytest.mark.parametrize("action", ["halt", "resume"])
def test_a_halt_requires_an_operator_and_a_listed_symbol(alice: Client, operator: Client, action: str) -> None:
    response = assert_rejected(operator, "POST", f"/stocks/NONE/{action}", {})
    assert (response.status, response.code) == (404, "symbol_not_found")
    assert assert_rejected(operator, "POST", f"/stocks/aapl/{action}", {}).code == "not_found"
    response = assert_rejected(alice, "POST", f"/stocks/AAPL/{action}", {})
    assert (response.status, response.code) == (403, "scope_missing")
    assert list(assert_rejected(operator, "POST", f"/stocks/AAPL/{action}", {"reason": 1, "why": ""}).fields) == [
        "reason",
        "why",
    ]
