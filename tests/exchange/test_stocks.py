"""Instruments: listing, halting, and lists in pages (contract: "Operators", "Lists")."""

import base64
import json
from decimal import Decimal
from typing import Any

import pytest

from exchange.models import Instrument
from tests.exchange.client import Client


def test_an_instrument_is_listed_with_default_rules(operator: Client) -> None:
    response = operator.post("/stocks", {"symbol": "AAPL"})

    assert response.status == 201
    assert response.content == (
        b'{"symbol":"AAPL","name":"AAPL","status":"trading","tick_size":0.01,"lot_size":1,"pricing":"seller"}'
    )
    assert operator.get("/stocks/AAPL").content == response.content


def test_an_instrument_may_be_listed_with_other_rules(operator: Client) -> None:
    rules = {"symbol": "X.1", "name": "Ex", "tick_size": "0.0005", "lot_size": 100, "pricing": "maker"}
    body = operator.post("/stocks", rules).body

    assert body == rules | {"status": "trading", "tick_size": Decimal("0.0005")}


def test_a_listed_symbol_cannot_be_listed_again(operator: Client) -> None:
    operator.post("/stocks", {"symbol": "AAPL"})

    assert operator.post("/stocks", {"symbol": "AAPL", "name": "other"}).code == "symbol_already_listed"
    assert Instrument.objects.get().name == "AAPL"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("symbol", "aapl"),
        ("symbol", ""),
        ("symbol", "A" * 13),
        ("symbol", "."),
        ("symbol", ".."),
        ("symbol", ".A"),
        ("symbol", None),
        ("name", None),
        ("name", "n" * 101),
        ("name", "\0"),
        ("tick_size", 0),
        ("tick_size", -0.01),
        ("tick_size", "0.00001"),
        ("tick_size", 1e-5),
        ("tick_size", True),
        ("tick_size", "1000000000000000.0001"),
        ("lot_size", 0),
        ("lot_size", 1.0),
        ("lot_size", "1"),
        ("lot_size", 10**12 + 1),
        ("pricing", "SELLER"),
        ("pricing", None),
        ("pricing", []),
        ("status", "halted"),
    ],
)
def test_an_invalid_field_of_a_new_instrument_is_named(operator: Client, field: str, value: Any) -> None:
    response = operator.post("/stocks", {"symbol": "AAPL"} | {field: value})

    assert (response.status, list(response.fields)) == (400, [field])
    assert not Instrument.objects.exists()


def test_the_smallest_order_may_have_the_largest_value(operator: Client) -> None:
    """`tick_size` times `lot_size` is the value of the smallest limit order."""
    response = operator.post("/stocks", {"symbol": "A", "tick_size": 10_000, "lot_size": 10**11 + 1})
    assert (response.status, response.fields) == (400, {"tick_size": "notional_too_large"})

    assert operator.post("/stocks", {"symbol": "A", "tick_size": 10_000, "lot_size": 10**11}).status == 201
    assert operator.post("/stocks", {"symbol": "B", "tick_size": 10**15}).status == 201


@pytest.mark.parametrize("body", [b"", {}, {"reason": ""}, {"reason": "news"}])
def test_the_status_follows_halts_and_resumes(operator: Client, body: Any) -> None:
    operator.post("/stocks", {"symbol": "AAPL"})

    assert operator.post("/stocks/AAPL/halt", body).body["status"] == "halted"
    assert operator.post("/stocks/AAPL/halt", body).status == 200
    assert operator.get("/stocks/AAPL").body["status"] == "halted"
    assert operator.post("/stocks/AAPL/resume", body).body["status"] == "trading"
    assert operator.post("/stocks/AAPL/resume", body).status == 200
    assert operator.get("/stocks/AAPL").body["status"] == "trading"


def test_a_halt_stores_its_reason_and_changes_nothing_else(operator: Client) -> None:
    operator.post("/stocks", {"symbol": "AAPL", "lot_size": 7})
    Instrument.objects.update(sequence=41)
    operator.post("/stocks/AAPL/halt", {"reason": "news"})

    instrument = Instrument.objects.get()
    assert (instrument.halt_reason, instrument.sequence, instrument.lot_size) == ("news", 41, 7)


def test_only_listed_instruments_can_be_halted(operator: Client) -> None:
    assert operator.post("/stocks/NONE/halt").code == "symbol_not_found"
    assert operator.post("/stocks/NONE/resume").code == "symbol_not_found"
    assert operator.post("/stocks/NONE/halt", {"reason": 1}).fields == {"reason": "invalid"}


def test_an_unused_instrument_is_removed_and_can_be_listed_again(operator: Client) -> None:
    operator.post("/stocks", {"symbol": "AAPL", "lot_size": 7})
    operator.post("/stocks/AAPL/halt")

    response = operator.delete("/stocks/AAPL")

    assert (response.status, response.content) == (204, b"")
    assert operator.get("/stocks/AAPL").code == operator.delete("/stocks/AAPL").code == "symbol_not_found"
    assert operator.post("/stocks", {"symbol": "AAPL"}).body["lot_size"] == 1


def test_an_instrument_that_was_held_cannot_be_removed(operator: Client, alice: Client) -> None:
    before = operator.get("/stocks/AAPL").content

    def assert_kept() -> None:
        response = operator.delete("/stocks/AAPL")
        assert (response.status, response.code) == (409, "instrument_in_use")
        assert operator.get("/stocks/AAPL").content == before

    assert_kept()
    withdrawal = {"reference": "r", "symbol": "AAPL", "quantity": -100, "reason": "settled elsewhere"}
    assert operator.post("/brokers/alice/transfers", withdrawal).status == 201
    assert_kept()


def _list_many(operator: Client, count: int) -> list[str]:
    symbols = [f"S{number:03}" for number in range(count)]
    Instrument.objects.bulk_create(
        Instrument(symbol=symbol, name=symbol, created_at="2026-01-01T00:00:00Z") for symbol in symbols
    )
    return symbols


def test_pages_follow_each_other_without_gaps(operator: Client) -> None:
    symbols = _list_many(operator, 7)

    seen: list[str] = []
    cursor = ""
    for expected in (3, 3, 1):
        page = operator.get(f"/stocks?limit=3{cursor}").body
        assert len(page["stocks"]) == expected
        seen += [stock["symbol"] for stock in page["stocks"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert (seen, page["next_cursor"]) == (symbols, None)


def test_a_full_last_page_has_no_next_cursor(operator: Client) -> None:
    _list_many(operator, 3)

    assert operator.get("/stocks?limit=3").body["next_cursor"] is None


def test_a_page_has_50_rows_by_default_and_at_most_500(operator: Client) -> None:
    _list_many(operator, 501)

    assert len(operator.get("/stocks").body["stocks"]) == 50
    assert len(operator.get("/stocks?limit=500").body["stocks"]) == 500


@pytest.mark.parametrize("limit", ["0", "501", "-1", "1.0", "abc", "", "%EF%BC%95", "1e2", "9" * 400, "+1", "%201"])
def test_an_invalid_limit_is_named(operator: Client, limit: str) -> None:
    assert list(operator.get(f"/stocks?limit={limit}").fields) == ["limit"]


def _cursor(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


CURSORS = [
    "",
    "!",
    "é",
    "=",
    "AAAA",
    "a" * 5000,
    _cursor(None),
    _cursor([]),
    _cursor({}),
    _cursor([1]),
    _cursor([None]),
    _cursor(["a", "b"]),
    _cursor(["\0"]),
    _cursor(10**400),
    base64.urlsafe_b64encode(b"[" * 100).decode(),
    base64.urlsafe_b64encode(b'["\xff"]').decode(),
]


@pytest.mark.parametrize("cursor", CURSORS)
def test_an_invalid_cursor_is_named(operator: Client, cursor: str) -> None:
    assert list(operator.get(f"/stocks?cursor={cursor}").fields) == ["cursor"]


TIMES = [
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "2026-02-30T00:00:00Z",
    "now",
    "infinity",
    1,
    "2026-01-01",
]


@pytest.mark.parametrize("time", TIMES)
def test_a_cursor_with_an_impossible_time_is_named(operator: Client, alice: Client, time: Any) -> None:
    cursor = _cursor([time, "01a20391-eab7-71ae-8d87-aa2e230058c6"])

    assert list(operator.get(f"/brokers/alice/transfers?cursor={cursor}").fields) == ["cursor"]


def test_a_cursor_is_safe_in_a_url(operator: Client) -> None:
    _list_many(operator, 2)
    cursor = operator.get("/stocks?limit=1").body["next_cursor"]

    assert cursor.replace("-", "").replace("_", "").isalnum()
