"""`POST /orders`: accepted values, responses, errors and their precedence (contract: 1, 2)."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings as django_settings
from django.db.models import F
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from exchange import services as exchange_services
from exchange.rules import Scope
from orders import services
from orders.models import Order
from tests import api, trading
from tests.api import LATER, LIMIT, MARKET, assert_rejected, limit, market, place_order, token, without
from tests.exchange.client import ApiResponse, Client
from tests.trading import BY

pytestmark = pytest.mark.django_db(transaction=True)

GTD = without(LIMIT, "time_in_force") | {"expires_at": LATER}
BY_BOB = {"broker_id": "bob"}
MAX_BYTES = 64 * 1024


def refused_order(client: Client, body: Any, **options: str) -> ApiResponse:
    return assert_rejected(client, "POST", "/orders", body, **options)


# --- Responses ------------------------------------------------------------------------------------------------------


def test_the_response_to_a_new_order_is_that_of_the_contract(bob: Client) -> None:
    client = api.broker("broker-123")
    place_order(bob, limit("ask", 500, "148", **BY_BOB))
    response = client.post(
        "/orders",
        b'{"broker_id": "broker-123", "document_number": "12345678900", "side": "bid", "symbol": "AAPL",'
        b' "price": 150.00, "quantity": 1000, "expires_at": "2099-02-17T15:00:00.000250-03:00"}',
    )

    body = response.body
    assert response.status == 201
    assert response.headers["Content-Type"] == "application/json"
    assert "Idempotent-Replayed" not in response.headers
    assert UUID(body["order_id"]).version == UUID(body["trades"][0]["trade_id"]).version == 7
    assert body["created_at"].endswith("Z")
    assert response.content.decode() == (
        f'{{"order_id":"{body["order_id"]}","client_order_id":null,"type":"limit","broker_id":"broker-123",'
        '"document_number":"12345678900","side":"bid","symbol":"AAPL","price":150.00,"quantity":1000,'
        '"filled_quantity":500,"remaining_quantity":500,"status":"partially_filled","time_in_force":"gtd",'
        f'"average_price":148.00,"expires_at":"2099-02-17T18:00:00.000250Z","created_at":"{body["created_at"]}",'
        '"cancelled_at":null,"expired_at":null,"cancel_reason":null,'
        f'"trades":[{{"trade_id":"{body["trades"][0]["trade_id"]}","price":148.00,"quantity":500,'
        f'"executed_at":"{body["created_at"]}"}}]}}'
    )


def test_post_and_get_return_equal_bytes(alice: Client, bob: Client) -> None:
    place_order(bob, limit("ask", 2, "9.99", **BY_BOB))
    place_order(bob, limit("ask", 2, "10", **BY_BOB))
    for body in (limit("bid", 3, "10", client_order_id="a"), market("bid", 5), limit("bid", 1, "3.5"), GTD):
        response = alice.post("/orders", body)
        assert response.content == alice.get(f"/orders/{response.body['order_id']}").content


def test_a_taker_lists_its_trades_in_order_of_execution(alice: Client, bob: Client) -> None:
    for price in ("10.02", "10", "10.01"):
        place_order(bob, limit("ask", 1, price, **BY_BOB))
    response = alice.post("/orders", limit("bid", 3, "11"))

    assert [str(trade["price"]) for trade in response.body["trades"]] == ["10.00", "10.01", "10.02"]
    assert b'"average_price":10.01,' in response.content
    assert b"bob" not in response.content


@pytest.mark.parametrize("price", ["10", "10.0", '"10.00"', "1e1", "10.000000", '"0010"', '"10.0000"', "100e-1"])
def test_any_exact_notation_of_a_price_is_accepted(alice: Client, price: str) -> None:
    response = alice.post("/orders", LIMIT | {"price": token(price)})

    assert response.status == 201
    assert b'"price":10.00,' in response.content


@pytest.mark.parametrize(
    ("tick", "sent", "shown"),
    [
        ("0.01", "148", "148.00"),
        ("0.05", "148.1", "148.10"),
        ("1", "148", "148.00"),
        ("0.001", "148.5", "148.500"),
        ("0.0001", '"1.0001"', "1.0001"),
        ("0.0001", "99999.9999", "99999.9999"),
    ],
)
def test_prices_are_shown_with_the_instruments_decimals(alice: Client, tick: str, sent: str, shown: str) -> None:
    trading.instrument("FINE", tick=tick)
    response = alice.post("/orders", limit("bid", 1, "1", symbol="FINE") | {"price": token(sent)})

    assert f'"price":{shown},'.encode() in response.content


def test_the_average_price_is_rounded_half_to_even_at_the_instruments_decimals(alice: Client) -> None:
    for index, (tick, prices, shown) in enumerate(
        [
            ("0.01", ("10.00", "10.01"), "10.00"),  # 10.005: half up would say 10.01
            ("0.01", ("10.01", "10.02"), "10.02"),
            ("0.001", ("10.000", "10.001"), "10.000"),  # 10.0005
            ("0.001", ("10.001", "10.003"), "10.002"),
            ("0.0001", ("10.0002", "10.0003"), "10.0002"),
        ]
    ):
        name = f"T{index}"
        trading.instrument(name, tick=tick)
        seller = api.broker(f"seller-{index}", holdings={name: 2})
        for price in prices:
            place_order(seller, limit("ask", 1, price, broker_id=f"seller-{index}", symbol=name))
        response = alice.post("/orders", limit("bid", 2, "11", symbol=name))
        assert f'"average_price":{shown},'.encode() in response.content, (tick, prices)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("2099-06-30T12:00:00Z", "2099-06-30T12:00:00Z"),
        ("2099-06-30t12:00:00z", "2099-06-30T12:00:00Z"),
        ("2099-06-30T12:00:00+00:00", "2099-06-30T12:00:00Z"),
        ("2099-06-30T12:00:00.123456+05:30", "2099-06-30T06:30:00.123456Z"),
        ("2099-06-30T23:30:00-03:00", "2099-07-01T02:30:00Z"),
    ],
)
def test_expires_at_with_any_offset_is_returned_in_utc(alice: Client, sent: str, shown: str) -> None:
    body = place_order(alice, GTD | {"expires_at": sent})

    assert (body["expires_at"], body["time_in_force"]) == (shown, "gtd")


def test_a_day_order_expires_at_the_next_midnight_utc(alice: Client) -> None:
    body = place_order(alice, LIMIT | {"time_in_force": "day", "expires_at": None})

    midnight = datetime.fromisoformat(body["created_at"]).astimezone(UTC).date() + timedelta(days=1)
    assert body["expires_at"] == f"{midnight}T00:00:00Z"


def test_optional_fields_may_be_null_and_have_defaults(alice: Client) -> None:
    nulls = {"price": None, "expires_at": None, "client_order_id": None}
    body = place_order(alice, MARKET | nulls)

    assert {name: body[name] for name in nulls} == nulls
    assert (body["type"], body["time_in_force"]) == ("market", "ioc")
    assert place_order(alice, LIMIT | {"expires_at": None})["type"] == "limit"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (MARKET, "no_liquidity"),
        (MARKET | {"time_in_force": "fok"}, "fok_not_filled"),
        (LIMIT | {"time_in_force": "ioc"}, "ioc_remainder"),
        (LIMIT | {"time_in_force": "fok"}, "fok_not_filled"),
    ],
)
def test_an_order_that_cannot_rest_is_201_and_cancelled(alice: Client, body: dict[str, Any], reason: str) -> None:
    response = place_order(alice, body)

    assert (response["status"], response["cancel_reason"]) == ("cancelled", reason)
    assert (response["filled_quantity"], response["remaining_quantity"]) == (0, 5)
    assert response["cancelled_at"] == response["created_at"]
    assert (response["average_price"], response["trades"]) == (None, [])
    assert alice.get(f"/orders/{response['order_id']}").body == response


def test_the_largest_order_is_exact(alice: Client) -> None:
    rich = api.broker("rich", cash=10**15)
    response = rich.post("/orders", limit("bid", 10**12, "1000", broker_id="rich"))

    assert response.status == 201
    assert b'"price":1000.00,"quantity":1000000000000,' in response.content


# --- Invalid fields -------------------------------------------------------------------------------------------------

# Field: a valid body, and the JSON values that are invalid for the field, separated by white space.
INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "type": (LIMIT, r'null 1 true [] "" "LIMIT" "stop" "limit\u0020"'),
    "broker_id": (LIMIT, 'null 1 true ["alice"] {"alice":1}'),  # any other string is another broker's id
    "document_number": (
        LIMIT,
        rf'null 1 true [] "" "123.456" "a\u0020b" "\u00e9" "\uff11" "1\n" "1\u0000" "{"1" * 33}"',
    ),
    "side": (LIMIT, r'null 1 true ["bid"] "" "buy" "BID" "bid\u0000"'),
    "symbol": (
        LIMIT,
        rf'null 1 true [] "" "." ".." ".A" "aapl" "AA\u0020PL" "\u00c1APL" "AAPL\n" "AAPL\u0000" "{"A" * 13}"',
    ),
    "price": (
        LIMIT,
        r'true false [] {} "" "abc" "NaN" "Infinity" "-Infinity" "0x10" "null" "10." ".5" "1e1" "+1" "-1" "10,5"'
        r' "1_000" "1,000" "\u002010" "10\u0020" "10\n" "10\u0000" "\u0661\u0660" "\uff11\uff10" "10.00001" "0"'
        r' "0.0000" "10000000000000000" "00000000000000010" 10000000000000000 1e16 0 0.0 -0.0 0e5 -1 -0.01 10.00001'
        rf' 1e-5 1e400 1e-400 1e99999999999999999999 {"9" * 400} 0.{"1" * 5000} "{"9" * 60000}"',
    ),
    "quantity": (
        LIMIT,
        'null true false "10" [] {} 10.0 1e1 1.5 0 -0 -1 1000000000001 9223372036854775807 9223372036854775808'
        f" 18446744073709551616 1e400 {'9' * 400}",
    ),
    "expires_at": (
        GTD,
        r'1 4102444800 true [] "" "tomorrow" "2099-01-01" "2099-01-01T00:00Z" "2099-01-01T00:00:00"'
        r' "2099-01-01T00:00:00.5" "2099-01-01\u002000:00:00Z" "2099-02-29T00:00:00Z" "2099-01-01T24:00:00Z"'
        r' "2099-01-01T23:59:60Z" "2099-01-01T00:00:00.1234567Z" "20990101T000000Z" "2099-01-01T00:00:00+0300"'
        r' "2099-01-01T00:00:00+25:00" "2099-01-01T00:00:00+05:60"'
        r' "9999-12-31T23:59:59-01:00" "0000-01-01T00:00:00Z" "0001-01-01T00:00:00+01:00"'
        r' "2099-01-01T00:00:00Z\n" "\uff12099-01-01T00:00:00Z"',
    ),
    "time_in_force": (LIMIT, r'1 true [] {} "" "GTC" "gtx" "gtc\u0020"'),
    "client_order_id": (
        LIMIT,
        rf'1 true [] "" "a\u0020b" "a/b" "\u00e9" "a\n" "a\u0000" "\ud83d\ude00" "{"a" * 65}"',
    ),
    "order_id": (LIMIT, "1 null"),
    "": (LIMIT, "1"),
}


@pytest.mark.parametrize("field", INVALID)
def test_every_invalid_value_of_a_field_is_400_on_that_field(alice: Client, field: str) -> None:
    base, values = INVALID[field]
    for value in values.split():
        response = refused_order(alice, base | {field: token(value)})
        assert (response.status, response.code) == (400, "validation_error"), value
        assert list(response.fields) == [field], value


def test_an_integer_of_thousands_of_digits_is_400_on_its_field(alice: Client) -> None:
    for field in ("price", "quantity"):
        assert list(refused_order(alice, LIMIT | {field: token("9" * 5000)}).fields) == [field]


def test_missing_required_fields_are_listed(alice: Client) -> None:
    for field in ("broker_id", "document_number", "side", "symbol", "quantity"):
        for base in (LIMIT, MARKET):
            assert refused_order(alice, without(base, field)).fields == {field: "required"}
    assert refused_order(alice, without(LIMIT, "price")).fields == {"price": "required"}


def test_all_invalid_fields_are_listed_together(alice: Client) -> None:
    response = refused_order(
        alice,
        {"type": 1, "broker_id": None, "side": "buy", "symbol": "aapl", "price": True, "quantity": "5"}
        | {"expires_at": "2099-01-01", "time_in_force": "ever", "client_order_id": "", "colour": "red"},
    )

    assert set(response.fields) == {*LIMIT, "type", "expires_at", "client_order_id", "colour"}
    assert set(refused_order(alice, {}).fields) == {*LIMIT} - {"time_in_force"} | {"expires_at"}


CONTRADICTIONS: list[tuple[dict[str, Any], list[str]]] = [
    (LIMIT | {"price": None}, ["price"]),
    (MARKET | {"price": "10"}, ["price"]),
    (MARKET | {"expires_at": LATER}, ["expires_at"]),
    (MARKET | {"price": "10", "expires_at": LATER, "time_in_force": "day"}, ["expires_at", "price", "time_in_force"]),
    (without(LIMIT, "time_in_force"), ["expires_at"]),
    (without(LIMIT, "time_in_force") | {"expires_at": None}, ["expires_at"]),
    (LIMIT | {"time_in_force": "gtd"}, ["expires_at"]),
    (LIMIT | {"time_in_force": "gtd", "expires_at": None}, ["expires_at"]),
    *[(GTD | {"time_in_force": each}, ["expires_at"]) for each in ("gtc", "day", "ioc", "fok")],
    *[(MARKET | {"time_in_force": each}, ["time_in_force"]) for each in ("gtc", "gtd", "day", None)],
    (GTD | {"time_in_force": "gtc", "quantity": 0}, ["expires_at", "quantity"]),
    (LIMIT | {"price": "1000.01", "quantity": 10**12}, ["quantity"]),  # each valid alone
    (LIMIT | {"price": "9999999999999999.99", "quantity": 1}, ["quantity"]),
    (LIMIT | {"price": token("90000000000000.00"), "quantity": 9223372036854775807}, ["quantity"]),
    (LIMIT | {"price": "1000.01", "quantity": 10**12, "side": "buy"}, ["quantity", "side"]),
]


@pytest.mark.parametrize(("body", "fields"), CONTRADICTIONS)
def test_contradictions_are_listed_with_field_errors(alice: Client, body: dict[str, Any], fields: list[str]) -> None:
    response = refused_order(alice, body)

    assert (response.status, response.code, sorted(response.fields)) == (400, "validation_error", fields)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"price": "10.03"}, {"price": "off_tick"}),
        ({"price": "10.001"}, {"price": "off_tick"}),
        ({"quantity": 15}, {"quantity": "off_lot"}),
        (
            {"price": "10.03", "quantity": 15, "expires_at": "2020-01-01T00:00:00Z", "time_in_force": "gtd"},
            {"price": "off_tick", "quantity": "off_lot", "expires_at": "in_the_past"},
        ),
    ],
)
def test_off_tick_and_off_lot_values_are_400_and_never_rounded(
    alice: Client, changes: dict[str, Any], fields: dict[str, str]
) -> None:
    trading.instrument("LOTS", tick="0.05", lot=10)
    response = refused_order(alice, limit("bid", 10, "10.05", symbol="LOTS") | changes)

    assert (response.status, response.code, response.fields) == (400, "validation_error", fields)


def test_an_unknown_query_parameter_is_400(alice: Client) -> None:
    assert assert_rejected(alice, "POST", "/orders?dry_run=1", LIMIT).fields == {"dry_run": "unknown_parameter"}


# --- Malformed bodies -----------------------------------------------------------------------------------------------

MALFORMED: list[tuple[bytes, int, str]] = [
    (b" " * MAX_BYTES, 400, "malformed_request"),
    (b" " * (MAX_BYTES + 1), 413, "too_large"),
    (b"[" * 2_000 + b"]" * 2_000, 400, "malformed_request"),
    (b'{"price":' * 2_000 + b"1" + b"}" * 2_000, 400, "malformed_request"),
    (b"[" * MAX_BYTES, 400, "malformed_request"),
    (b'{"side": "\xff\xfe"}', 400, "malformed_request"),
    ('{"side": "bid"}'.encode("utf-16"), 400, "malformed_request"),
    (b'{"side": "\\ud800"}', 400, "malformed_request"),
    (b"", 400, "malformed_request"),
    (b"[]", 400, "malformed_request"),
    (b"null", 400, "malformed_request"),
    (b'"order"', 400, "malformed_request"),
    (b"{", 400, "malformed_request"),
    (b'{"side": "bid",}', 400, "malformed_request"),
    (b'{"price": NaN}', 400, "malformed_request"),
    (b'{"price": Infinity}', 400, "malformed_request"),
    (b'{"price": 010}', 400, "malformed_request"),
    (b'{"price": 1.}', 400, "malformed_request"),
    (b"{'side': 'bid'}", 400, "malformed_request"),
    (b'{"side": "bid"} {}', 400, "malformed_request"),
]


@pytest.mark.parametrize(("body", "status", "code"), MALFORMED, ids=[str(index) for index in range(len(MALFORMED))])
def test_a_body_that_is_not_a_json_object_is_rejected(alice: Client, body: bytes, status: int, code: str) -> None:
    response = refused_order(alice, body)

    assert (response.status, response.code) == (status, code)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
def test_a_body_of_another_type_is_415(alice: Client, content_type: str) -> None:
    response = refused_order(alice, LIMIT, content_type=content_type)

    assert (response.status, response.code) == (415, "unsupported_media_type")


def test_a_body_may_have_64_kib_and_a_charset(alice: Client) -> None:
    assert django_settings.MAX_BODY_BYTES == MAX_BYTES
    body = b'{"broker_id":"alice","document_number":"1","side":"bid","symbol":"AAPL","type":"market","quantity":1}'

    assert alice.post("/orders", body.rjust(MAX_BYTES), content_type="application/json; charset=utf-8").status == 201


# --- Error precedence -----------------------------------------------------------------------------------------------


def test_errors_follow_the_precedence_of_the_contract(alice: Client, bob: Client) -> None:
    reader = Client(exchange_services.issue_key("alice", scopes=[Scope.READ], by=BY)[1])
    exchange_services.halt("AAPL", "news", by=BY)
    services.suspend("alice", cancel_orders=False, by=BY)
    of_bob = LIMIT | BY_BOB
    unlisted = LIMIT | {"symbol": "NONE"}
    for client, body, status, code in [
        (Client(None), b"{", 401, "unauthenticated"),
        (Client(None), b" " * (MAX_BYTES + 1), 401, "unauthenticated"),
        (alice, b'{"broker_id": "bob"', 400, "malformed_request"),
        (reader, b"[]", 400, "malformed_request"),
        (reader, LIMIT | {"quantity": 0}, 403, "scope_missing"),
        (alice, of_bob | {"quantity": 0}, 403, "broker_mismatch"),
        (alice, LIMIT | {"broker_id": "a b", "quantity": 0}, 403, "broker_mismatch"),
        (alice, unlisted | {"quantity": 0}, 400, "validation_error"),
        (alice, unlisted | {"price": "10.001"}, 404, "symbol_not_found"),
        (alice, LIMIT | {"price": "10.001"}, 400, "validation_error"),
        (alice, LIMIT | {"quantity": 10**9}, 409, "instrument_halted"),
    ]:
        response = refused_order(client, body)
        assert (response.status, response.code) == (status, code), body


def test_a_replay_precedes_every_error_after_404(alice: Client) -> None:
    body = GTD | {"client_order_id": "mine"}
    first = place_order(alice, body)
    Order.objects.update(expires_at=F("expires_at") - timedelta(days=40_000))
    late = body | {"expires_at": Order.objects.get().expires_at}
    exchange_services.halt("AAPL", "news", by=BY)
    services.suspend("alice", cancel_orders=False, by=BY)
    trading.broker("poor", cash=0, holdings={})

    assert refused_order(alice, late | {"symbol": "NONE"}).code == "symbol_not_found"
    assert refused_order(alice, late | {"quantity": "5"}).code == "validation_error"
    response = alice.post("/orders", late)
    assert (response.status, response.body["order_id"]) == (200, first["order_id"])
    conflict = refused_order(alice, late | {"price": "10.001", "quantity": 10**9})
    assert (conflict.status, conflict.code) == (409, "client_order_id_conflict")
    assert conflict.fields == {"price": "differs", "quantity": "differs"}


def test_a_missing_or_invalid_key_is_401_with_the_scheme(alice: Client) -> None:
    for header in ("", "Bearer", "Bearer ", "Basic YTpi", f"Token {alice.key}", f"Bearer {alice.key}x", "Bearer \xff"):
        response = refused_order(Client(None), LIMIT, Authorization=header)
        assert (response.status, response.code) == (401, "unauthenticated"), header
        assert response.headers["WWW-Authenticate"].split()[0] == "Bearer"


# --- Replay ---------------------------------------------------------------------------------------------------------


def test_a_replay_is_200_with_the_current_order(alice: Client, bob: Client) -> None:
    first = place_order(alice, limit("bid", 5, "10", client_order_id="mine"))
    place_order(bob, limit("ask", 3, "9.5", **BY_BOB))
    before = trading.snapshot()
    response = alice.post("/orders", limit("bid", 5, "10.00", client_order_id="mine", type="limit", expires_at=None))

    assert (response.status, response.headers["Idempotent-Replayed"]) == (200, "true")
    assert trading.snapshot() == before
    assert (response.body["order_id"], response.body["status"]) == (first["order_id"], "partially_filled")
    assert [str(trade["price"]) for trade in response.body["trades"]] == ["9.50"]
    assert response.content == alice.get(f"/orders/{first['order_id']}").content


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (GTD, GTD | {"expires_at": "2098-12-31T21:00:00-03:00", "time_in_force": "gtd", "price": token("1e1")}),
        (MARKET, MARKET | {"time_in_force": "ioc", "price": None, "expires_at": None}),
        (LIMIT | {"time_in_force": "day"}, LIMIT | {"time_in_force": "day", "type": "limit"}),
    ],
)
def test_a_replay_compares_normalised_values(alice: Client, first: dict[str, Any], second: dict[str, Any]) -> None:
    order_id = place_order(alice, first | {"client_order_id": "mine"})["order_id"]
    response = alice.post("/orders", second | {"client_order_id": "mine"})

    assert (response.status, response.body["order_id"]) == (200, order_id)


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"document_number": "999"}, ["document_number"]),
        ({"side": "ask"}, ["side"]),
        ({"symbol": "PETR4"}, ["symbol"]),
        ({"price": "10.01"}, ["price"]),
        ({"quantity": 6}, ["quantity"]),
        ({"expires_at": "2099-01-01T00:00:00.000001Z"}, ["expires_at"]),
        ({"expires_at": None, "time_in_force": "gtc"}, ["expires_at", "time_in_force"]),
        ({"type": "market", "price": None, "expires_at": None}, ["expires_at", "price", "time_in_force", "type"]),
    ],
)
def test_another_order_with_a_used_client_order_id_is_409_with_each_difference(
    alice: Client, changes: dict[str, Any], differing: list[str]
) -> None:
    trading.instrument("PETR4")
    place_order(alice, GTD | {"client_order_id": "mine"})
    response = refused_order(alice, GTD | {"client_order_id": "mine"} | changes)

    assert (response.status, response.code, sorted(response.fields)) == (409, "client_order_id_conflict", differing)


# --- Rejections by the market ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "detail"),
    [
        (limit("bid", 100_001, "10"), "insufficient_balance", "1000010.00"),
        (limit("ask", 10_001, "10"), "insufficient_holdings", "10001 AAPL"),
        (market("ask", 10_001), "insufficient_holdings", "10001 AAPL"),
        (limit("bid", 3, "10"), "too_many_fills", "Split"),
    ],
)
def test_rejections_by_the_market_are_409_with_a_detail(
    alice: Client, bob: Client, settings: Settings, body: dict[str, Any], code: str, detail: str
) -> None:
    if code == "too_many_fills":
        trading.limit_makers(settings, 2)
    for _ in range(3):
        place_order(bob, limit("ask", 1, "10", **BY_BOB))
    response = refused_order(alice, body | {"client_order_id": "mine"})

    assert (response.status, response.code) == (409, code)
    assert detail in response.body["detail"]
    assert "errors" not in response.body
    assert assert_rejected(alice, "GET", "/orders?client_order_id=mine").code == "order_not_found"


def test_a_rejected_order_does_not_use_up_its_client_order_id(alice: Client) -> None:
    body = LIMIT | {"client_order_id": "mine"}
    assert refused_order(alice, body | {"quantity": 10**7}).code == "insufficient_balance"

    assert place_order(alice, body)["client_order_id"] == "mine"


def test_expires_at_in_the_past_is_400(alice: Client) -> None:
    for moment in (timezone.now(), datetime(1, 1, 1, tzinfo=UTC)):
        assert refused_order(alice, GTD | {"expires_at": moment}).fields == {"expires_at": "in_the_past"}


# --- Arbitrary input ------------------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"))
    | st.sampled_from(["limit", "market", "bid", "ask", "gtc", "ioc", "alice", "AAPL", "10.00", "1e5", LATER])
    | st.from_regex(r"[0-9]{1,18}(\.[0-9]{1,6})?([eE][+-]?[0-9]{1,20})?", fullmatch=True).map(
        lambda text: token(text if text == "0" else text.lstrip("0") or "0")
    )
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
FIELDS = [*LIMIT, "type", "expires_at", "client_order_id"]


ANY_FIELDS = st.dictionaries(st.sampled_from(FIELDS) | st.text(st.characters(codec="utf-8")), VALUES, max_size=4)
ANY_BYTES = st.binary(max_size=200) | st.text('{}[]",:0123456789eE.-+ntfalseru\\').map(str.encode)


def test_no_body_causes_a_5xx_and_no_rejection_writes(alice: Client) -> None:
    state = trading.snapshot()

    @settings(max_examples=50, deadline=None)
    @given(st.sampled_from([LIMIT, MARKET, GTD]), ANY_FIELDS)
    def send(base: dict[str, Any], changes: dict[str, Any]) -> None:
        nonlocal state
        response, before = alice.post("/orders", base | changes), state
        assert response.status < 500, response
        state = trading.snapshot()
        if response.status != 201:
            assert state == before
            api.assert_problem(response)

    send()


def test_no_bytes_cause_a_5xx(alice: Client) -> None:
    before = trading.snapshot()

    @settings(max_examples=50, deadline=None)
    @given(ANY_BYTES)
    def send(body: bytes) -> None:
        assert alice.post("/orders", body).status == 400

    send()
    assert trading.snapshot() == before
