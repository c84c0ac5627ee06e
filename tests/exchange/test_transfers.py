"""Transfers of cash and shares: once per reference, never more than is available (contract: "Operators")."""

from decimal import Decimal
from typing import Any

import pytest

from exchange.models import Broker, Holding, Transfer
from tests.exchange.client import Client

PATH = "/brokers/alice/transfers"
CASH = {"reference": "r1", "cash": "-250.5", "reason": "withdrawal"}
SHARES = {"reference": "r2", "symbol": "AAPL", "quantity": -40, "reason": "to another custodian"}


def _state() -> tuple[Any, ...]:
    """Return alice's cash, her shares of AAPL, and the number of transfers."""
    return Broker.objects.get(pk="alice").cash, Holding.objects.get(broker="alice").quantity, Transfer.objects.count()


def test_cash_is_booked(operator: Client, alice: Client) -> None:
    before = Broker.objects.get(pk="alice").updated_at
    response = operator.post(PATH, CASH)

    body = response.body
    assert response.status == 201
    assert {name: body[name] for name in ("reference", "broker_id", "cash", "symbol", "quantity", "reason")} == {
        "reference": "r1",
        "broker_id": "alice",
        "cash": Decimal("-250.50"),
        "symbol": None,
        "quantity": None,
        "reason": "withdrawal",
    }
    assert _state() == (Decimal("749.5"), 100, 3)
    assert Broker.objects.get(pk="alice").updated_at > before


def test_shares_are_booked(operator: Client, alice: Client) -> None:
    response = operator.post(PATH, SHARES)

    assert (response.status, response.body["symbol"], response.body["quantity"], response.body["cash"]) == (
        201,
        "AAPL",
        -40,
        None,
    )
    assert _state() == (1000, 60, 3)


def test_the_first_shares_of_an_instrument_create_a_holding(operator: Client, bob: Client, alice: Client) -> None:
    operator.post("/brokers/bob/transfers", SHARES | {"quantity": 5})

    assert bob.get("/brokers/bob/balance").body["holdings"][0]["quantity"] == 5


@pytest.mark.parametrize("wanted", [CASH, SHARES])
def test_a_repeated_reference_is_booked_once(operator: Client, alice: Client, wanted: dict[str, Any]) -> None:
    first = operator.post(PATH, wanted)
    after = _state()
    again = operator.post(PATH, wanted)

    assert (first.status, again.status) == (201, 200)
    assert again.content == first.content
    assert _state() == after


def test_a_repeated_transfer_may_write_the_amount_differently(operator: Client, alice: Client) -> None:
    operator.post(PATH, CASH)

    assert operator.post(PATH, b'{"reference":"r1","cash":-250.5000,"symbol":null,"reason":"withdrawal"}').status == 200


@pytest.mark.parametrize(
    ("change", "blamed"),
    [
        ({"cash": "-250.51"}, ["cash"]),
        ({"reason": "other"}, ["reason"]),
        ({"cash": None, "symbol": "AAPL", "quantity": 1}, ["cash", "quantity", "symbol"]),
    ],
)
def test_a_reference_used_for_another_transfer_is_a_conflict(
    operator: Client, alice: Client, change: Any, blamed: list[str]
) -> None:
    operator.post(PATH, CASH)
    after = _state()
    response = operator.post(PATH, CASH | change)

    assert (response.status, response.code) == (409, "transfer_reference_conflict")
    assert sorted(response.fields) == blamed
    assert _state() == after


def test_a_reference_used_for_another_broker_is_a_conflict(operator: Client, alice: Client, bob: Client) -> None:
    operator.post(PATH, CASH)
    response = operator.post("/brokers/bob/transfers", CASH)

    assert (response.code, response.fields) == ("transfer_reference_conflict", {"broker_id": "differs"})
    assert Broker.objects.get(pk="bob").cash == 0


def test_the_references_of_initial_amounts_are_reserved(operator: Client, alice: Client) -> None:
    assert list(operator.post(PATH, CASH | {"reference": "initial/alice/cash"}).fields) == ["reference"]


def test_reserved_amounts_cannot_be_withdrawn(operator: Client, alice: Client) -> None:
    Broker.objects.update(reserved_cash=800)
    Holding.objects.update(reserved=70)
    before = _state()

    assert operator.post(PATH, CASH | {"cash": "-200.0001"}).code == "insufficient_balance"
    assert operator.post(PATH, SHARES | {"quantity": -31}).code == "insufficient_holdings"
    assert _state() == before
    assert operator.post(PATH, CASH | {"cash": -200}).status == 201
    assert operator.post(PATH, SHARES | {"quantity": -30}).status == 201


def test_a_rejected_transfer_does_not_use_up_its_reference(operator: Client, alice: Client) -> None:
    assert operator.post(PATH, CASH | {"cash": -5000}).status == 409
    assert operator.post(PATH, CASH).status == 201


def test_shares_without_a_holding_cannot_be_withdrawn(operator: Client, alice: Client, bob: Client) -> None:
    assert operator.post("/brokers/bob/transfers", SHARES).code == "insufficient_holdings"


def test_broker_and_symbol_must_exist(operator: Client, alice: Client) -> None:
    assert operator.post("/brokers/nobody/transfers", CASH).code == "broker_not_found"
    assert operator.post(PATH, SHARES | {"symbol": "NONE"}).code == "symbol_not_found"
    assert _state() == (1000, 100, 2)


@pytest.mark.parametrize(
    ("body", "blamed"),
    [
        ({}, ["cash", "reason", "reference"]),
        (SHARES | {"reference": "a b", "cash": 1}, ["quantity", "reference", "symbol"]),
        ({"reference": "r", "reason": "x"}, ["cash"]),
        ({"reference": "r", "reason": "x", "cash": None}, ["cash"]),
        (SHARES | {"quantity": None}, ["quantity"]),
        ({"reference": "r", "reason": "x", "quantity": 1}, ["symbol"]),
        (SHARES | {"cash": 1}, ["quantity", "symbol"]),
        (CASH | {"quantity": 1}, ["quantity"]),
        (CASH | {"cash": 0}, ["cash"]),
        (CASH | {"cash": "-0"}, ["cash"]),
        (CASH | {"cash": "--1"}, ["cash"]),
        (CASH | {"cash": "+1"}, ["cash"]),
        (CASH | {"cash": "-1.00001"}, ["cash"]),
        (CASH | {"cash": -(10**16)}, ["cash"]),
        (CASH | {"cash": True}, ["cash"]),
        (SHARES | {"quantity": 0}, ["quantity"]),
        (SHARES | {"quantity": 1.0}, ["quantity"]),
        (SHARES | {"quantity": "1"}, ["quantity"]),
        (SHARES | {"quantity": False}, ["quantity"]),
        (SHARES | {"quantity": -(10**12) - 1}, ["quantity"]),
        (SHARES | {"symbol": "aapl"}, ["symbol"]),
        (CASH | {"reference": ""}, ["reference"]),
        (CASH | {"reference": "a b"}, ["reference"]),
        (CASH | {"reference": "a" * 65}, ["reference"]),
        (CASH | {"reference": 1}, ["reference"]),
        (CASH | {"reason": ""}, ["reason"]),
        (CASH | {"reason": "x" * 201}, ["reason"]),
        (CASH | {"broker_id": "alice"}, ["broker_id"]),
    ],
)
def test_an_invalid_field_of_a_transfer_is_named(operator: Client, alice: Client, body: Any, blamed: list[str]) -> None:
    response = operator.post(PATH, body)

    assert (response.status, sorted(response.fields)) == (400, blamed)
    assert _state() == (1000, 100, 2)


def test_transfers_are_listed_newest_first_page_by_page(operator: Client, alice: Client) -> None:
    for number in range(5):
        operator.post(PATH, CASH | {"reference": f"n{number}", "cash": 1})

    seen: list[str] = []
    cursor = ""
    for _ in range(4):
        page = operator.get(f"{PATH}?limit=2{cursor}").body
        seen += [transfer["reference"] for transfer in page["transfers"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert seen[:5] == ["n4", "n3", "n2", "n1", "n0"]
    assert sorted(seen[5:]) == ["initial/alice/AAPL", "initial/alice/cash"]
    assert page["next_cursor"] is None


def test_the_largest_amounts_do_not_overflow(operator: Client, alice: Client) -> None:
    for number in range(3):
        cash = operator.post(PATH, CASH | {"reference": f"c{number}", "cash": "9999999999999999.9999"})
        shares = operator.post(PATH, SHARES | {"reference": f"s{number}", "quantity": 10**12})
        assert (cash.status, shares.status) == (201, 201)

    assert b'"cash_balance":30000000000000999.9997,' in alice.get("/brokers/alice/balance").content
