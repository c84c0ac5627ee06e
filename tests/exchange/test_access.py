"""Authentication, scopes and the precedence of errors (contract: "Authentication and access", "Error precedence")."""

import logging
from typing import Any
from uuid import UUID

import pytest

from exchange import services
from exchange.errors import Unauthenticated
from exchange.keys import authenticate_key, new_key
from exchange.models import ApiKey, Broker, Instrument
from exchange.rules import Scope
from tests.exchange.client import Client
from tests.trading import BY

OPERATORS_ONLY = [
    ("GET", "/brokers"),
    ("POST", "/brokers"),
    ("GET", "/brokers/alice/transfers"),
    ("POST", "/brokers/alice/transfers"),
    ("GET", "/brokers/alice/keys"),
    ("POST", "/brokers/alice/keys"),
    ("DELETE", "/brokers/alice/keys/0123456789ab"),
    ("POST", "/stocks"),
    ("DELETE", "/stocks/AAPL"),
    ("POST", "/stocks/AAPL/halt"),
    ("POST", "/stocks/AAPL/resume"),
]
READABLE = [("GET", "/stocks"), ("GET", "/stocks/AAPL"), ("GET", "/brokers/alice/balance")]
OPEN = ["/healthz", "/readyz", "/openapi.json", "/docs"]

BAD_HEADERS = [
    "",
    "Bearer",
    "Bearer ",
    "Basic YWxpY2U6c2VjcmV0",
    "Bearer brs_",
    "Bearer brs_0123456789ab_" + "0" * 64,
    "Bearer brs_0123456789ab_" + "0" * 63 + "\0",
    "Bearer brs_0123456789ab_" + "é" * 64,
    "Bearer " + "x" * 100_000,
    "\xff\xfe",
]


@pytest.mark.parametrize(("method", "path"), OPERATORS_ONLY + READABLE)
def test_a_request_without_a_key_is_unauthenticated(anonymous: Client, method: str, path: str) -> None:
    response = anonymous.request(method, path, b"not even JSON", content_type="text/plain")

    assert (response.status, response.code) == (401, "unauthenticated")
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("header", BAD_HEADERS)
def test_an_invalid_authorization_header_is_unauthenticated(anonymous: Client, header: str) -> None:
    response = anonymous.get("/stocks", Authorization=header)

    assert (response.status, response.code) == (401, "unauthenticated")


def test_the_authorization_scheme_is_case_insensitive(alice: Client) -> None:
    assert Client(None).get("/stocks", Authorization=f"bearer {alice.key}").status == 200


def test_a_known_prefix_with_another_secret_is_rejected(alice: Client) -> None:
    assert alice.key is not None
    forged = alice.key[:-1] + ("0" if alice.key[-1] != "0" else "1")

    assert Client(forged).get("/stocks").status == 401


def test_the_secret_is_not_stored(alice: Client) -> None:
    assert alice.key is not None
    _, prefix, secret = alice.key.split("_")
    kept = ApiKey.objects.get(pk=prefix)

    assert bytes.fromhex(secret) != bytes(kept.secret_hash)
    assert len(bytes.fromhex(secret)) == 32
    assert new_key()[0] != new_key()[0]


@pytest.mark.parametrize(("method", "path"), OPERATORS_ONLY)
def test_a_brokers_key_lacks_the_operator_scope(alice: Client, method: str, path: str) -> None:
    response = alice.request(method, path, {"broker_id": "alice"})

    assert (response.status, response.code) == (403, "scope_missing")


@pytest.mark.parametrize("path", ["/brokers/bob/balance", "/brokers/nobody/balance"])
def test_a_broker_reads_its_own_balance_only(alice: Client, bob: Client, path: str) -> None:
    assert alice.get(path).code == "broker_mismatch"


def test_the_broker_id_in_a_query_is_checked_before_its_parameters(alice: Client) -> None:
    assert alice.get("/stocks?broker_id=bob").code == "broker_mismatch"
    assert alice.get("/stocks?broker_id=bob&broker_id=alice").code == "broker_mismatch"
    assert alice.get("/stocks?broker_id=alice").fields == {"broker_id": "unknown_parameter"}


def test_every_key_may_read(operator: Client, alice: Client) -> None:
    reader = Client(services.issue_key("alice", scopes=[Scope.READ], by=BY)[1])
    for client in (operator, alice, reader):
        for method, path in READABLE:
            assert client.request(method, path).status == 200


def test_the_trade_and_operator_scopes_include_read(operator: Client, alice: Client) -> None:
    assert operator.key is not None
    assert alice.key is not None
    trader, boss = authenticate_key(alice.key), authenticate_key(operator.key)

    assert (trader.broker_id, trader.is_operator, boss.broker_id, boss.is_operator) == ("alice", False, None, True)
    assert [scope for scope in Scope if trader.may(scope)] == [Scope.READ, Scope.TRADE]
    assert [scope for scope in Scope if boss.may(scope)] == [Scope.READ, Scope.OPERATOR]


@pytest.mark.django_db(transaction=True)
def test_a_malformed_key_is_unauthenticated() -> None:
    with pytest.raises(Unauthenticated):
        authenticate_key("brs_")


@pytest.mark.parametrize("path", OPEN)
def test_public_paths_need_no_key(anonymous: Client, path: str) -> None:
    assert anonymous.get(path).status == 200


WORST: dict[str, Any] = {"method": "POST", "path": "/brokers?x=1", "body": b"{", "content_type": "text/plain"}


def test_rejections_have_the_precedence_of_the_contract(anonymous: Client, alice: Client, operator: Client) -> None:
    """Send a request that breaks every rule, and correct it rule by rule."""
    mended: dict[str, Any] = {**WORST, "method": "DELETE"}
    assert anonymous.request(**mended).code == "unauthenticated"
    assert alice.request(**mended).code == "method_not_allowed"
    mended["method"] = "POST"
    assert alice.request(**mended).code == "unsupported_media_type"
    mended["content_type"] = "application/json"
    mended["body"] = b" " * (64 * 1024 + 1)
    assert alice.request(**mended).code == "too_large"
    mended["body"] = b"{"
    assert alice.request(**mended).code == "malformed_request"
    mended["body"] = {"broker_id": "bob"}
    assert alice.request(**mended).code == "scope_missing"
    assert operator.request(**mended).fields == {"x": "unknown_parameter", "initial_cash": "required"}
    assert not Broker.objects.filter(pk="bob").exists()


def test_invalid_fields_precede_missing_objects(operator: Client) -> None:
    assert operator.post("/brokers/nobody/transfers", {}).status == 400
    assert operator.get("/stocks/NONE?x=1").status == 400
    assert operator.get("/stocks/NONE").status == 404


def test_all_invalid_fields_and_parameters_are_named_together(operator: Client) -> None:
    response = operator.post(
        "/stocks?a=1&b=2", {"symbol": 1, "tick_size": "0", "lot_size": 0, "pricing": "best", "z": 1}
    )

    assert (response.status, response.code) == (400, "validation_error")
    assert sorted(response.fields) == ["a", "b", "lot_size", "pricing", "symbol", "tick_size", "z"]
    assert not Instrument.objects.exists()


def test_the_secret_of_a_key_is_never_logged(operator: Client, alice: Client, caplog: pytest.LogCaptureFixture) -> None:
    assert alice.key is not None
    with caplog.at_level(logging.DEBUG):
        alice.get(f"/stocks?key={alice.key}")
        alice.get(f"/stocks/{alice.key}")
        Client(alice.key[:-1]).get("/stocks")
        operator.post("/brokers/alice/keys", {})

    logged = str([record.msg for record in caplog.records])
    assert "/stocks" in logged
    assert alice.key.split("_")[2][:20] not in logged


def test_the_command_creates_an_operator_key(db: None, capsys: pytest.CaptureFixture[str]) -> None:
    from django.core.management import call_command

    call_command("create_operator_key", name="desk")
    key = capsys.readouterr().out.strip()

    assert authenticate_key(key).is_operator
    assert ApiKey.objects.get().name == "desk"


@pytest.mark.django_db(transaction=True)
def test_every_operation_except_public_ones_needs_a_key_and_a_scope(anonymous: Client, alice: Client) -> None:
    """A view without scopes would respond with 500 here."""
    nothing = str(UUID(int=0))
    sample = {"broker_id": "alice", "symbol": "AAPL", "prefix": "0" * 12, "order_id": nothing, "webhook_id": nothing}
    for path, methods in anonymous.get("/openapi.json").body["paths"].items():
        for method in methods:
            target = path.format(**sample)
            assert anonymous.request(method.upper(), target).status == (200 if path in OPEN else 401), path
            assert alice.request(method.upper(), target).status < 500, path
