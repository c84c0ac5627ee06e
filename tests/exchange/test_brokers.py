"""Brokers, balances and keys (contract: "Operators", "Market data and balances")."""

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from exchange.models import ApiKey, Broker, Holding, Instrument, Transfer
from tests.exchange.client import Client

NEW = {"broker_id": "carol", "initial_cash": 1000.5, "initial_holdings": [{"symbol": "PETR4", "quantity": 7}]}


def test_the_response_for_a_new_broker_has_its_balance_and_first_key(operator: Client) -> None:
    response = operator.post("/brokers", NEW)

    body = response.body
    assert response.status == 201
    assert list(body) == [
        "broker_id",
        "cash_balance",
        "reserved_cash",
        "available_cash",
        "holdings",
        "updated_at",
        "created_at",
        "api_key",
    ]
    assert body["holdings"] == [{"symbol": "PETR4", "quantity": 7, "reserved_quantity": 0, "available_quantity": 7}]
    assert Client(body["api_key"]).get("/brokers/carol/balance").body["cash_balance"] == Decimal("1000.50")


def test_amounts_keep_their_exact_decimals(operator: Client) -> None:
    for broker_id, cash, shown in [
        ("a", b"1000", b"1000.00"),
        ("b", b"0.5", b"0.50"),
        ("c", b"0.0001", b"0.0001"),
        ("d", b'"1000000000000000"', b"1000000000000000.00"),
        ("e", b"999999999999999.9999", b"999999999999999.9999"),
        ("f", b"1.5000000000000000000000000000", b"1.50"),
        ("g", b"1.5e3", b"1500.00"),
    ]:
        response = operator.post("/brokers", b'{"broker_id":"%s","initial_cash":%s}' % (broker_id.encode(), cash))
        assert response.status == 201, response
        assert b'"cash_balance":%s,"reserved_cash":0.00,"available_cash":%s,' % (shown, shown) in response.content


def test_initial_holdings_list_their_symbols_and_every_initial_amount_is_a_transfer(operator: Client) -> None:
    operator.post("/brokers", NEW)

    assert Instrument.objects.get().pk == "PETR4"
    assert [(t.reference, t.cash, t.instrument_id, t.quantity) for t in Transfer.objects.order_by("reference")] == [
        ("initial/carol/PETR4", None, "PETR4", 7),
        ("initial/carol/cash", Decimal("1000.5"), None, None),
    ]


def test_a_broker_without_cash_or_shares_has_no_transfers(operator: Client) -> None:
    assert operator.post("/brokers", {"broker_id": "carol", "initial_cash": 0}).status == 201
    assert not Transfer.objects.exists()


def test_a_broker_id_is_unique(operator: Client, alice: Client) -> None:
    response = operator.post("/brokers", NEW | {"broker_id": "alice"})

    assert (response.status, response.code) == (409, "broker_already_exists")
    assert Broker.objects.get().cash == 1000
    assert not Instrument.objects.filter(pk="PETR4").exists()


BAD: list[tuple[str, list[Any]]] = [
    ("broker_id", [None, 1, "", "a b", "a" * 65, "é", "a\n", "a\0", ["a"]]),
    ("initial_cash", [None, True, -1, "-1", "", "1.", ".5", "1_000", "1e3", " 1", "\uff11", "10.00001", 10.00001]),
    ("initial_cash", [10**15 + 1, "1000000000000000.0001", "9" * 17, 10**400, [], {}, "NaN", "Infinity"]),
    ("initial_holdings", [None, {}, "AAPL", 1]),
]


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD for value in values])
def test_an_invalid_field_of_a_new_broker_is_named_and_nothing_is_written(
    operator: Client, field: str, value: Any
) -> None:
    response = operator.post("/brokers", NEW | {field: value})

    assert (response.status, response.code) == (400, "validation_error")
    assert list(response.fields) == [field]
    assert not Broker.objects.exists()


@pytest.mark.parametrize(
    "number", [b"1e400", b"1e-400", b"-1e400", b"1e99999999999999999999", b"1" * 4000 + b".5", b"-0.1"]
)
def test_numbers_out_of_range_are_invalid_fields(operator: Client, number: bytes) -> None:
    response = operator.post("/brokers", b'{"broker_id":"carol","initial_cash":%s}' % number)

    assert (response.status, list(response.fields)) == (400, ["initial_cash"])


BAD_HOLDINGS = [
    ({"symbol": "aapl", "quantity": 1}, ["symbol"]),
    ({"symbol": "A" * 13, "quantity": 1}, ["symbol"]),
    ({"symbol": "AAPL", "quantity": 0}, ["quantity"]),
    ({"symbol": "AAPL", "quantity": -1}, ["quantity"]),
    ({"symbol": "AAPL", "quantity": "10"}, ["quantity"]),
    ({"symbol": "AAPL", "quantity": 10.0}, ["quantity"]),
    ({"symbol": "AAPL", "quantity": True}, ["quantity"]),
    ({"symbol": "AAPL", "quantity": 10**12 + 1}, ["quantity"]),
    ({"symbol": "AAPL", "quantity": 1, "price": 3}, ["price"]),
    ({}, ["quantity", "symbol"]),
]


@pytest.mark.parametrize(("holding", "blamed"), BAD_HOLDINGS)
def test_invalid_holdings_are_named_by_their_index(operator: Client, holding: Any, blamed: list[str]) -> None:
    response = operator.post("/brokers", NEW | {"initial_holdings": [{"symbol": "GOOG", "quantity": 1}, holding]})

    assert response.status == 400
    assert sorted(response.fields) == [f"initial_holdings.1.{name}" for name in blamed]
    assert not Instrument.objects.exists()


def test_a_symbol_may_occur_once_in_the_initial_holdings(operator: Client) -> None:
    holdings = [{"symbol": "AAPL", "quantity": 1}, {"symbol": "AAPL", "quantity": 2}]
    response = operator.post("/brokers", NEW | {"initial_holdings": holdings})

    assert response.fields == {"initial_holdings.1.symbol": "duplicate"}


def test_brokers_are_listed_by_id(operator: Client, alice: Client, bob: Client) -> None:
    body = operator.get("/brokers").body

    assert [broker["broker_id"] for broker in body["brokers"]] == ["alice", "bob"]
    assert body["brokers"][0]["cash_balance"] == Decimal("1000.00")
    assert body["next_cursor"] is None


def test_a_balance_shows_reserved_and_available_amounts(alice: Client) -> None:
    Broker.objects.filter(pk="alice").update(reserved_cash=Decimal("0.1234"))
    Holding.objects.update(reserved=30)

    response = alice.get("/brokers/alice/balance")

    assert response.status == 200
    assert b'"cash_balance":1000.00,"reserved_cash":0.1234,"available_cash":999.8766,' in response.content
    assert response.body["holdings"] == [
        {"symbol": "AAPL", "quantity": 100, "reserved_quantity": 30, "available_quantity": 70}
    ]
    assert response.body["updated_at"].endswith("Z")


def test_holdings_are_sorted_by_symbol(operator: Client, alice: Client) -> None:
    for symbol in ["Z", "B", "M"]:
        operator.post("/stocks", {"symbol": symbol})
        operator.post("/brokers/alice/transfers", {"reference": symbol, "symbol": symbol, "quantity": 1, "reason": "x"})

    assert [h["symbol"] for h in alice.get("/brokers/alice/balance").body["holdings"]] == ["AAPL", "B", "M", "Z"]


def test_a_broker_without_holdings_has_a_balance(bob: Client) -> None:
    assert bob.get("/brokers/bob/balance").body["holdings"] == []


def test_an_operator_reads_every_balance_and_gets_404_for_a_missing_broker(operator: Client, alice: Client) -> None:
    assert operator.get("/brokers/alice/balance").status == 200
    assert operator.get("/brokers/nobody/balance").code == "broker_not_found"


@pytest.mark.parametrize("path", ["/brokers/a%00b/balance", "/brokers/a%20b/balance", f"/brokers/{'a' * 65}/balance"])
def test_a_malformed_broker_id_is_not_found(operator: Client, path: str) -> None:
    assert operator.get(path).code == "not_found"


def test_a_key_is_shown_only_when_it_is_issued(operator: Client, alice: Client) -> None:
    made = operator.post("/brokers/alice/keys", {"name": "desk 1", "scopes": ["read", "read"]}).body
    listed = operator.get("/brokers/alice/keys")

    assert made["scopes"] == ["read"]
    assert listed.body["keys"][0] == {name: value for name, value in made.items() if name != "api_key"}
    assert made["api_key"].encode() not in listed.content
    assert len(listed.body["keys"]) == 2


def test_a_new_key_has_the_trade_scope_by_default(operator: Client, alice: Client) -> None:
    assert operator.post("/brokers/alice/keys", {}).body["scopes"] == ["trade"]


@pytest.mark.parametrize(
    ("body", "blamed"),
    [
        ({"scopes": []}, ["scopes"]),
        ({"scopes": ["operator"]}, ["scopes.0"]),
        ({"scopes": ["read", "all"]}, ["scopes.1"]),
        ({"scopes": "read"}, ["scopes"]),
        ({"scopes": None}, ["scopes"]),
        ({"name": 1}, ["name"]),
        ({"name": "x" * 101}, ["name"]),
        ({"name": "x\0"}, ["name"]),
        ({"expires_at": "2020-01-01T00:00:00Z"}, ["expires_at"]),
        ({"expires_at": "2099-01-01T00:00:00"}, ["expires_at"]),
        ({"expires_at": "2099-01-01"}, ["expires_at"]),
        ({"expires_at": "2099-02-29T00:00:00Z"}, ["expires_at"]),
        ({"expires_at": "2099-01-01T23:59:60Z"}, ["expires_at"]),
        ({"expires_at": "2099-01-01T24:00:00Z"}, ["expires_at"]),
        ({"expires_at": "2099-01-01T00:00:00.1234567Z"}, ["expires_at"]),
        ({"expires_at": "2099-01-01T00:00:00+24:00"}, ["expires_at"]),
        ({"expires_at": "9999-12-31T23:59:59-23:59"}, ["expires_at"]),
        ({"expires_at": "0001-01-01T00:00:00+23:59"}, ["expires_at"]),
        ({"expires_at": 4102444800}, ["expires_at"]),
        ({"prefix": "mine"}, ["prefix"]),
    ],
)
def test_an_invalid_field_of_a_new_key_is_named(operator: Client, alice: Client, body: Any, blamed: list[str]) -> None:
    response = operator.post("/brokers/alice/keys", body)

    assert (response.status, list(response.fields)) == (400, blamed)
    assert ApiKey.objects.filter(broker="alice").count() == 1


def test_a_time_may_have_any_offset_and_is_returned_in_utc(operator: Client, alice: Client) -> None:
    body = operator.post("/brokers/alice/keys", {"expires_at": "2099-01-01T00:00:00.000001-03:00"}).body

    assert body["expires_at"] == "2099-01-01T03:00:00.000001Z"


def test_a_revoked_key_is_rejected(operator: Client, alice: Client) -> None:
    made = operator.post("/brokers/alice/keys", {}).body
    client = Client(made["api_key"])
    assert client.get("/stocks").status == 200

    assert operator.delete(f"/brokers/alice/keys/{made['prefix']}").status == 204
    assert client.get("/stocks").status == 401
    assert alice.get("/stocks").status == 200


def test_a_repeated_revocation_changes_nothing(operator: Client, alice: Client) -> None:
    prefix = ApiKey.objects.get(broker="alice").pk
    operator.delete(f"/brokers/alice/keys/{prefix}")
    first = ApiKey.objects.get(pk=prefix).revoked_at

    assert operator.delete(f"/brokers/alice/keys/{prefix}").status == 204
    assert ApiKey.objects.get(pk=prefix).revoked_at == first


def test_a_key_of_another_broker_cannot_be_revoked(operator: Client, alice: Client, bob: Client) -> None:
    prefix = ApiKey.objects.get(broker="alice").pk

    assert operator.delete(f"/brokers/bob/keys/{prefix}").code == "key_not_found"
    assert operator.delete(f"/brokers/nobody/keys/{prefix}").code == "broker_not_found"
    assert operator.delete("/brokers/alice/keys/UNKNOWN%00").code == "not_found"
    assert alice.get("/stocks").status == 200


def test_an_expired_key_is_rejected(operator: Client, alice: Client) -> None:
    expires_at = datetime.now(UTC) + timedelta(seconds=1)
    made = operator.post("/brokers/alice/keys", {"expires_at": expires_at.isoformat()}).body
    assert Client(made["api_key"]).get("/stocks").status == 200

    time.sleep((expires_at - datetime.now(UTC)).total_seconds())
    assert Client(made["api_key"]).get("/stocks").status == 401


def test_keys_of_a_missing_broker_are_not_found(operator: Client) -> None:
    assert operator.post("/brokers/nobody/keys", {}).code == "broker_not_found"
    assert operator.get("/brokers/nobody/keys").code == "broker_not_found"
    assert operator.get("/brokers/nobody/transfers").code == "broker_not_found"
