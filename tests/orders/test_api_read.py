"""Read, look up, list and cancel orders, and list trades, over HTTP (contract: 1, 2)."""

from datetime import timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from orders import expiry
from orders.models import Order, Trade
from tests import api, trading
from tests.api import LIMIT, all_pages, assert_rejected, limit, market, place_order
from tests.exchange.client import ApiResponse, Client

pytestmark = pytest.mark.django_db(transaction=True)

BY_BOB = {"broker_id": "bob"}
UNKNOWN = UUID(int=7)
MALFORMED = f"1 {'x' * 36} {str(UNKNOWN)[:-1]} {UNKNOWN.hex} %00 a%20b %ff".split()
TRADE_FIELDS = ["trade_id", "order_id", "symbol", "side", "price", "quantity", "executed_at"]


def ids(orders: list[Any]) -> list[str]:
    return [order["order_id"] for order in orders]


def without_request_id(response: ApiResponse) -> dict[str, Any]:
    """The body of a problem without its request id."""
    return {name: value for name, value in response.body.items() if name != "request_id"}


# --- One order ------------------------------------------------------------------------------------------------------


def test_an_order_is_read_with_its_trades_as_maker_and_as_taker(alice: Client, bob: Client) -> None:
    place_order(bob, limit("ask", 2, "9.99", **BY_BOB))
    order = place_order(alice, limit("bid", 9, "10"))
    place_order(bob, limit("ask", 3, "9.5", **BY_BOB))
    response = alice.get(f"/orders/{order['order_id']}")

    assert response.status == 200
    assert list(response.body) == list(order)
    assert [(str(trade["price"]), trade["quantity"]) for trade in response.body["trades"]] == [("9.99", 2), ("9.50", 3)]
    assert list(response.body["trades"][0]) == ["trade_id", "price", "quantity", "executed_at"]
    assert b'"average_price":9.70,' in response.content  # 9.696
    assert (response.body["status"], response.body["remaining_quantity"]) == ("partially_filled", 4)


def test_a_market_order_has_a_null_price(alice: Client) -> None:
    order_id = place_order(alice, market("bid", 5))["order_id"]

    assert b'"price":null,' in alice.get(f"/orders/{order_id}").content


def test_another_brokers_order_is_404_like_an_unknown_order(alice: Client, bob: Client) -> None:
    theirs = place_order(bob, limit("bid", 5, "10", **BY_BOB))["order_id"]
    for method in ("GET", "DELETE"):
        response = assert_rejected(alice, method, f"/orders/{theirs}")
        assert (response.status, response.code) == (404, "order_not_found")
        assert without_request_id(response) == without_request_id(assert_rejected(alice, method, f"/orders/{UNKNOWN}"))


def test_an_operator_reads_any_order(bob: Client, operator: Client) -> None:
    order = place_order(bob, limit("bid", 5, "10", **BY_BOB))

    assert operator.get(f"/orders/{order['order_id'].upper()}").body == order
    assert assert_rejected(operator, "GET", f"/orders/{UNKNOWN}").code == "order_not_found"


@pytest.mark.parametrize("order_id", MALFORMED)
def test_a_malformed_order_id_is_404(alice: Client, order_id: str) -> None:
    for method in ("GET", "DELETE"):
        response = assert_rejected(alice, method, f"/orders/{order_id}")
        assert (response.status, response.code) == (404, "not_found")


def test_a_trailing_slash_is_404(alice: Client) -> None:
    assert assert_rejected(alice, "GET", "/orders/").code == "not_found"
    assert assert_rejected(alice, "POST", "/orders/", LIMIT).code == "not_found"


# --- Lookup by client_order_id --------------------------------------------------------------------------------------


def test_an_order_is_found_by_its_client_order_id(alice: Client, bob: Client, operator: Client) -> None:
    order = place_order(alice, LIMIT | {"client_order_id": "mine:1.a_b-c"})
    place_order(bob, LIMIT | BY_BOB | {"client_order_id": "mine:1.a_b-c"})

    assert alice.get("/orders?client_order_id=mine:1.a_b-c").body == order
    assert alice.get("/orders?client_order_id=mine:1.a_b-c&broker_id=alice").body == order
    assert operator.get("/orders?client_order_id=mine:1.a_b-c&broker_id=alice").body == order
    assert bob.get("/orders?client_order_id=mine:1.a_b-c").body["broker_id"] == "bob"


def test_invalid_lookups_are_rejected(alice: Client, bob: Client, operator: Client) -> None:
    place_order(bob, LIMIT | BY_BOB | {"client_order_id": "theirs"})
    for client, query, status, code, fields in [
        (alice, "", 400, "validation_error", {"client_order_id"}),
        (alice, "?client_order_id=", 400, "validation_error", {"client_order_id"}),
        (alice, "?client_order_id=a%20b", 400, "validation_error", {"client_order_id"}),
        (alice, f"?client_order_id={'a' * 65}", 400, "validation_error", {"client_order_id"}),
        (alice, "?client_order_id=a%00", 400, "validation_error", {"client_order_id"}),
        (alice, "?client_order_id=a&limit=5", 400, "validation_error", {"limit"}),
        (alice, "?order=1", 400, "validation_error", {"client_order_id", "order"}),
        (operator, "?client_order_id=theirs", 400, "validation_error", {"broker_id"}),
        (operator, "?client_order_id=theirs&broker_id=a%20b", 400, "validation_error", {"broker_id"}),
        (alice, "?client_order_id=theirs&broker_id=bob", 403, "broker_mismatch", set()),
        (alice, "?broker_id=bob", 403, "broker_mismatch", set()),
        (alice, "?client_order_id=theirs", 404, "order_not_found", set()),
        (operator, "?client_order_id=theirs&broker_id=alice", 404, "order_not_found", set()),
    ]:
        response = assert_rejected(client, "GET", f"/orders{query}")
        assert (response.status, response.code, set(response.fields)) == (status, code, fields), query


# --- Cancels --------------------------------------------------------------------------------------------------------


def test_a_cancel_returns_the_order_with_its_trades(alice: Client, bob: Client) -> None:
    order = place_order(alice, limit("bid", 9, "10"))
    place_order(bob, limit("ask", 3, "9.5", **BY_BOB))
    response = alice.delete(f"/orders/{order['order_id']}")

    body = response.body
    assert (response.status, list(body)) == (200, list(order))
    assert (body["status"], body["cancel_reason"]) == ("cancelled", "by_broker")
    assert (body["filled_quantity"], body["remaining_quantity"]) == (3, 6)
    assert body["cancelled_at"].endswith("Z")
    assert [trade["quantity"] for trade in body["trades"]] == [3]
    assert alice.get(f"/orders/{order['order_id']}").content == response.content


def test_an_operator_cancels_any_order(alice: Client, operator: Client) -> None:
    order_id = place_order(alice, LIMIT)["order_id"]
    response = operator.delete(f"/orders/{order_id}")

    assert (response.status, response.body["cancel_reason"]) == (200, "by_operator")
    assert assert_rejected(operator, "DELETE", f"/orders/{UNKNOWN}").code == "order_not_found"


@pytest.mark.parametrize("state", ["filled", "cancelled", "expired"])
def test_a_cancel_of_a_final_order_is_409_and_names_the_status(alice: Client, state: str) -> None:
    order_id = place_order(alice, api.without(LIMIT, "time_in_force") | {"expires_at": api.LATER})["order_id"]
    if state == "filled":
        place_order(alice, limit("ask", 5, "10"))
    elif state == "cancelled":
        assert alice.delete(f"/orders/{order_id}").status == 200
    else:
        Order.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        expiry.expire_due_orders()
    response = assert_rejected(alice, "DELETE", f"/orders/{order_id}")

    assert (response.status, response.code) == (409, "order_not_cancellable")
    assert state in response.body["detail"]


def test_a_cancel_past_expires_at_expires_the_order_and_is_409(alice: Client) -> None:
    order_id = place_order(alice, api.without(LIMIT, "time_in_force") | {"expires_at": api.LATER})["order_id"]
    Order.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    response = alice.delete(f"/orders/{order_id}")

    assert (response.status, response.code) == (409, "order_not_cancellable")
    assert "expired" in response.body["detail"]
    body = alice.get(f"/orders/{order_id}").body
    assert (body["status"], body["expired_at"], body["cancelled_at"]) == ("expired", body["expires_at"], None)


def test_a_cancel_accepts_no_query_parameters(alice: Client) -> None:
    order_id = place_order(alice, LIMIT)["order_id"]

    assert assert_rejected(alice, "DELETE", f"/orders/{order_id}?force=1").fields == {"force": "unknown_parameter"}


# --- A broker's orders ----------------------------------------------------------------------------------------------


def test_orders_are_listed_newest_first_without_their_trades(alice: Client, bob: Client) -> None:
    place_order(bob, LIMIT | BY_BOB)
    orders = [
        place_order(alice, limit("ask", 2, "10")),
        place_order(alice, limit("bid", 2, "9")),
        place_order(alice, market("bid", 1)),
    ]
    body = alice.get("/brokers/alice/orders").body

    orders[0] = alice.get(f"/orders/{orders[0]['order_id']}").body
    assert body == {"orders": [api.without(order, "trades") for order in reversed(orders)], "next_cursor": None}


def test_filters_combine(alice: Client) -> None:
    trading.instrument("PETR4")
    first, second, third, fourth = (
        place_order(alice, body)
        for body in (
            limit("bid", 1, "9"),
            limit("ask", 1, "12", document_number="999"),
            limit("bid", 1, "9", symbol="PETR4"),
            market("bid", 5, document_number="999"),  # fills the second order; the remainder is cancelled
        )
    )
    after, before = quote(second["created_at"]), quote(fourth["created_at"])
    for query, expected in [
        ("status=pending", [third, first]),
        ("status=filled", [second]),
        ("status=cancelled", [fourth]),
        ("status=partially_filled", []),
        ("status=expired", []),
        ("symbol=PETR4", [third]),
        ("symbol=NONE", []),
        ("side=ask", [second]),
        ("document_number=999", [fourth, second]),
        (f"created_after={after}", [fourth, third]),
        (f"created_before={before}", [third, second, first]),
        (f"created_after={after}&created_before={before}", [third]),
        ("side=bid&document_number=999", [fourth]),
        (f"status=pending&symbol=AAPL&side=bid&document_number=12345678900&created_before={after}", [first]),
    ]:
        assert ids(alice.get(f"/brokers/alice/orders?{query}").body["orders"]) == ids(expected), query


@pytest.mark.parametrize("size", [1, 3, 500])
def test_pages_show_each_order_once_for_equal_times(alice: Client, size: int) -> None:
    orders = [place_order(alice, limit("bid", 1, "9"))["order_id"] for _ in range(7)]
    moment = timezone.now()
    Order.objects.filter(pk__in=orders[2:]).update(created_at=moment)
    pages = all_pages(alice, "/brokers/alice/orders", "orders", size)

    assert [order for page in pages for order in ids(page)] == [*sorted(orders[2:], reverse=True), orders[1], orders[0]]
    assert [len(page) for page in pages] == {1: [1] * 7, 3: [3, 3, 1], 500: [7]}[size]


def test_a_full_last_page_has_no_cursor(alice: Client) -> None:
    for _ in range(4):
        place_order(alice, limit("bid", 1, "9"))

    assert [len(page) for page in all_pages(alice, "/brokers/alice/orders?side=bid", "orders", 2)] == [2, 2]


def test_orders_placed_between_pages_do_not_shift_rows(alice: Client) -> None:
    orders = [place_order(alice, limit("bid", 1, "9"))["order_id"] for _ in range(5)]
    seen, cursor = [], ""
    while cursor is not None:
        body = alice.get(f"/brokers/alice/orders?limit=2{cursor and '&cursor='}{cursor}").body
        seen += ids(body["orders"])
        cursor = body["next_cursor"]
        place_order(alice, limit("bid", 1, "9"))

    assert seen == orders[::-1]


def test_a_page_has_50_rows_by_default_and_500_at_most(alice: Client) -> None:
    for _ in range(51):
        place_order(alice, limit("bid", 1, "9"))

    assert len(alice.get("/brokers/alice/orders").body["orders"]) == 50
    assert len(alice.get("/brokers/alice/orders?limit=500").body["orders"]) == 51


INVALID_PARAMETERS = [
    *[("limit", value) for value in ("0", "501", "abc", "", "-1", "1.0", "+5", "%D9%A1", "1e1", "9" * 30)],
    *[("cursor", value) for value in ("", "x", "%00", "%ff", "e30", "W10", "WyJhIiwiYiJd", "a" * 201, "WzEsMl0")],
    *[("status", value) for value in ("", "open", "PENDING", "%00")],
    *[("symbol", value) for value in ("", "aapl", "A" * 13, "A%00")],
    *[("side", value) for value in ("", "buy")],
    *[("document_number", value) for value in ("", "a-b", "1" * 33)],
    *[
        ("created_after", value)
        for value in ("", "2026-01-01", "2026-01-01T00:00:00", "x", "2026-01-01T00:00:00+00:00")
    ],
    *[("created_before", value) for value in ("", "1", "2026-02-30T00:00:00Z")],
    ("page", "2"),
    ("broker", "alice"),
    ("", "1"),
]


def test_every_invalid_list_parameter_is_400_on_that_parameter(alice: Client) -> None:
    for name, value in INVALID_PARAMETERS:
        side = "" if name == "side" else "&side=bid"
        response = assert_rejected(alice, "GET", f"/brokers/alice/orders?{name}={value}{side}")
        assert (response.status, response.code, list(response.fields)) == (400, "validation_error", [name]), value
    response = assert_rejected(
        alice, "GET", "/brokers/alice/orders?limit=0&cursor=x&status=&symbol=a&side=b&colour=red"
    )
    assert set(response.fields) == {"limit", "cursor", "status", "symbol", "side", "colour"}


def test_a_cursor_is_invalid_for_another_list(alice: Client) -> None:
    for _ in range(2):
        place_order(alice, limit("bid", 1, "9"))
    cursor = alice.get("/brokers/alice/orders?limit=1").body["next_cursor"]

    assert quote(cursor, safe="") == cursor
    assert assert_rejected(alice, "GET", f"/brokers/alice/trades?cursor={cursor}").fields == {"cursor": "invalid"}


@pytest.mark.parametrize("plural", ["orders", "trades"])
def test_lists_are_visible_to_their_broker_and_operators_only(
    alice: Client, bob: Client, operator: Client, plural: str
) -> None:
    place_order(alice, limit("ask", 1, "10"))
    place_order(alice, limit("bid", 1, "10"))

    assert operator.get(f"/brokers/alice/{plural}").content == alice.get(f"/brokers/alice/{plural}").content
    assert operator.get(f"/brokers/bob/{plural}").body == {plural: [], "next_cursor": None}
    response = assert_rejected(bob, "GET", f"/brokers/alice/{plural}")
    assert (response.status, response.code) == (403, "broker_mismatch")
    assert assert_rejected(bob, "GET", f"/brokers/nobody/{plural}").code == "broker_mismatch"
    response = assert_rejected(operator, "GET", f"/brokers/nobody/{plural}")
    assert (response.status, response.code) == (404, "broker_not_found")
    assert assert_rejected(operator, "GET", f"/brokers/a%20b/{plural}").code == "not_found"


# --- A broker's trades ----------------------------------------------------------------------------------------------


def test_a_trade_with_oneself_is_two_fills_on_separate_rows(alice: Client) -> None:
    ask, bid = place_order(alice, limit("ask", 5, "10")), place_order(alice, limit("bid", 5, "10"))
    (trade,) = Trade.objects.all()
    fills = alice.get("/brokers/alice/trades").body["trades"]

    assert [list(fill) for fill in fills] == [TRADE_FIELDS] * 2
    assert [(fill["trade_id"], fill["order_id"], fill["side"]) for fill in fills] == [
        (str(trade.pk), bid["order_id"], "bid"),
        (str(trade.pk), ask["order_id"], "ask"),
    ]
    assert all_pages(alice, "/brokers/alice/trades", "trades", 1) == [fills[:1], fills[1:]]


def test_own_fills_are_listed_newest_first_with_exact_prices(alice: Client, bob: Client) -> None:
    place_order(alice, limit("ask", 5, "10"))
    place_order(bob, limit("bid", 2, "10", **BY_BOB))
    place_order(bob, limit("bid", 3, "11", **BY_BOB))
    response = alice.get("/brokers/alice/trades")

    assert [(fill["side"], fill["quantity"]) for fill in response.body["trades"]] == [("ask", 3), ("ask", 2)]
    assert response.content.count(b'"price":10.00,') == 2
    assert b"bob" not in response.content


@pytest.mark.parametrize("size", [1, 2, 3, 4, 500])
def test_pages_show_each_fill_once_for_equal_times(alice: Client, bob: Client, size: int) -> None:
    for owner in ("alice", "bob", "alice"):
        place_order(alice if owner == "alice" else bob, limit("ask", 1, "10", broker_id=owner))
    place_order(alice, limit("bid", 3, "10"))  # three trades at one time, two of them with alice on both sides
    place_order(bob, limit("bid", 1, "8", **BY_BOB))
    place_order(alice, limit("ask", 1, "8"))
    everything = alice.get("/brokers/alice/trades").body["trades"]
    pages = all_pages(alice, "/brokers/alice/trades", "trades", size)

    assert len(everything) == 6
    assert len({(fill["trade_id"], fill["side"]) for fill in everything}) == 6
    assert [fill for page in pages for fill in page] == everything
    assert all(len(page) == size for page in pages[:-1])
    keys = [(fill["executed_at"], fill["trade_id"], fill["side"]) for fill in everything]
    assert keys == sorted(keys, reverse=True)


def test_fills_are_filtered_by_symbol_and_time(alice: Client) -> None:
    trading.instrument("PETR4")
    seller = api.broker("seller", holdings={"PETR4": 1, "AAPL": 2})
    for symbol in ("AAPL", "PETR4", "AAPL"):
        place_order(seller, limit("ask", 1, "10", broker_id="seller", symbol=symbol))
        place_order(alice, limit("bid", 1, "10", symbol=symbol))
    third, second, first = alice.get("/brokers/alice/trades").body["trades"]
    for query, expected in [
        ("symbol=PETR4", [second]),
        ("symbol=NONE", []),
        (f"after={first['executed_at']}", [third, second]),
        (f"before={third['executed_at']}", [second, first]),
        (f"after={first['executed_at']}&before={third['executed_at']}&symbol=PETR4", [second]),
        (f"after={first['executed_at']}&symbol=AAPL", [third]),
    ]:
        assert alice.get(f"/brokers/alice/trades?{query}").body["trades"] == expected, query
    for name, value in [("after", ""), ("before", "x"), ("symbol", "a"), ("side", "bid"), ("limit", "501")]:
        assert list(assert_rejected(alice, "GET", f"/brokers/alice/trades?{name}={value}").fields) == [name]


# --- Arbitrary input ------------------------------------------------------------------------------------------------

PATHS = [
    "/orders",
    "/orders/{}",
    "/brokers/alice/orders",
    "/brokers/alice/trades",
    "/brokers/{}/orders",
    "/stocks/{}/price",
    "/stocks/{}/book",
    "/stocks/AAPL/book",
    "/stocks/AAPL/quote",
    "/stocks/AAPL/trades",
    "/{}",
]
NAMES = "client_order_id broker_id limit cursor status symbol side document_number created_after after depth quantity"
TEXT = st.text(max_size=40).map(lambda text: quote(text.encode("utf-8", "surrogatepass"), safe="")) | st.binary(
    max_size=40
).map(lambda data: quote(data, safe=""))
VALUE = TEXT | st.integers().map(str) | st.datetimes().map(lambda moment: f"{moment.isoformat()}Z")
QUERY = st.dictionaries(st.sampled_from(NAMES.split()) | TEXT, VALUE, max_size=3)


def test_no_path_or_parameter_causes_a_5xx_or_a_write(alice: Client, operator: Client) -> None:
    place_order(alice, LIMIT)
    before = trading.snapshot()

    @settings(max_examples=50, deadline=None)
    @given(st.sampled_from(["GET", "DELETE", "POST"]), st.sampled_from(PATHS), VALUE, QUERY, st.booleans())
    def send(method: str, path: str, segment: str, query: dict[str, str], as_operator: bool) -> None:
        text = "&".join(f"{name}={value}" for name, value in query.items())
        response = (operator if as_operator else alice).request(method, f"{path.format(segment)}?{text}")
        assert response.status < 500, response
        if response.status >= 400:
            api.assert_problem(response)

    send()
    assert trading.snapshot() == before
