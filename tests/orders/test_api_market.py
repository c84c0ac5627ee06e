"""Prices, book, quotes and trade tape over HTTP (contract: 4)."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from orders import expiry
from orders.enums import Side
from orders.models import Order, Trade
from tests import trading
from tests.api import LATER, all_pages, assert_rejected, limit, market, place_order, without
from tests.exchange.client import Client

pytestmark = pytest.mark.django_db(transaction=True)

ENDPOINTS = ["price", "book", "quote?side=bid&quantity=1", "trades"]
BY_BOB = {"broker_id": "bob"}


def trade(quantity: int, price: str, *, minutes_ago: float = 0) -> None:
    """Let alice trade with herself, `minutes_ago`."""
    trading.place(Side.ASK, quantity, price)
    trading.place(Side.BID, quantity, price)
    newest = Trade.objects.order_by("-id")[:1].values("pk")
    Trade.objects.filter(pk__in=newest).update(executed_at=timezone.now() - timedelta(minutes=minutes_ago))


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_unknown_and_malformed_symbols_are_404(alice: Client, endpoint: str) -> None:
    response = assert_rejected(alice, "GET", f"/stocks/NONE/{endpoint}")
    assert (response.status, response.code) == (404, "symbol_not_found")
    for symbol in ("aapl", "A" * 13, "A%20B", "A%00", "%C3%81", ""):
        response = assert_rejected(alice, "GET", f"/stocks/{symbol}/{endpoint}")
        assert (response.status, response.code) == (404, "not_found"), symbol


@pytest.mark.parametrize(
    "endpoint", ["price?window=5m", "book?deep=1", "quote?side=bid&quantity=1&price=3", "trades?x=1"]
)
def test_an_unknown_parameter_is_400(alice: Client, endpoint: str) -> None:
    response = assert_rejected(alice, "GET", f"/stocks/AAPL/{endpoint}")

    assert list(response.fields.values()) == ["unknown_parameter"]


# --- Price ----------------------------------------------------------------------------------------------------------


def price(client: Client, symbol: str = "AAPL") -> Any:
    return client.get(f"/stocks/{symbol}/price").body


def test_an_empty_market_has_no_prices(alice: Client) -> None:
    assert alice.get("/stocks/AAPL/price").content.decode() == (
        '{"symbol":"AAPL","current_price":null,"window":"5m","trades_in_window":0,"last_price":null,'
        '"last_trade_at":null,"best_bid":null,"best_ask":null,"mid":null,"moving_average":null}'
    )


def test_prices_are_exact_and_have_the_instruments_decimals(alice: Client) -> None:
    trade(500, "148")
    place_order(alice, limit("bid", 1, "147"))
    place_order(alice, limit("ask", 1, "150"))
    moment = price(alice)["last_trade_at"]

    assert moment.endswith("Z")
    assert alice.get("/stocks/AAPL/price").content.decode() == (
        '{"symbol":"AAPL","current_price":148.00,"window":"5m","trades_in_window":1,"last_price":148.00,'
        f'"last_trade_at":"{moment}","best_bid":147.00,"best_ask":150.00,"mid":148.50,"moving_average":148.25}}'
    )


def test_the_current_price_is_weighted_by_volume_over_five_minutes(alice: Client) -> None:
    trade(1_000, "90", minutes_ago=5.01)
    trade(3, "10", minutes_ago=4.9)
    trade(1, "11")
    body = price(alice)

    assert (body["current_price"], body["trades_in_window"]) == (Decimal("10.25"), 2)
    assert body["last_price"] == Decimal("11.00")


@pytest.mark.parametrize(("prices", "shown"), [(("10.00", "10.01"), "10.00"), (("10.01", "10.02"), "10.02")])
def test_averages_and_mid_are_rounded_half_to_even(alice: Client, prices: tuple[str, str], shown: str) -> None:
    for each in prices:
        trade(1, each)
    place_order(alice, limit("bid", 1, prices[0]))
    place_order(alice, limit("ask", 1, prices[1]))
    body = price(alice)

    assert [str(body[name]) for name in ("current_price", "mid", "moving_average")] == [shown] * 3


def test_the_current_price_without_trades_in_the_window_is_the_last_price(alice: Client) -> None:
    trade(5, "10", minutes_ago=20)
    trade(5, "11", minutes_ago=10)
    body = price(alice)

    assert (body["current_price"], body["last_price"], body["trades_in_window"]) == (Decimal(11), Decimal(11), 0)
    assert (
        datetime.fromisoformat(body["last_trade_at"]) == Trade.objects.order_by("executed_at").reverse()[0].executed_at
    )


def test_the_moving_average_covers_limit_orders_accepted_in_the_window(alice: Client, settings: Settings) -> None:
    settings.MOVING_AVERAGE_ORDERS = 3
    place_order(alice, limit("bid", 1, "7"))
    Order.objects.update(created_at=timezone.now() - timedelta(minutes=5.01))
    assert price(alice)["moving_average"] is None
    place_order(alice, market("bid", 1))
    assert_rejected(alice, "POST", "/orders", limit("bid", 10**9, "900"))
    place_order(alice, limit("bid", 100, "8"))
    place_order(alice, limit("ask", 1, "11", time_in_force="fok"))
    assert str(price(alice)["moving_average"]) == "9.50"  # regardless of quantity and status
    place_order(alice, limit("ask", 1, "12"))
    place_order(alice, limit("ask", 1, "13"))

    assert str(price(alice)["moving_average"]) == "12.00"  # the latest three orders


def test_best_prices_exclude_expired_and_cancelled_orders(alice: Client) -> None:
    gtd = without(limit("bid", 1, "9"), "time_in_force") | {"expires_at": LATER}
    late = place_order(alice, gtd)["order_id"]
    place_order(alice, limit("bid", 1, "8"))
    gone = place_order(alice, limit("ask", 1, "10"))["order_id"]
    place_order(alice, limit("ask", 1, "11"))
    assert [price(alice)[name] for name in ("best_bid", "best_ask", "mid")] == [9, 10, Decimal("9.50")]
    Order.objects.filter(pk=late).update(expires_at=timezone.now())
    alice.delete(f"/orders/{gone}")

    assert [price(alice)[name] for name in ("best_bid", "best_ask", "mid")] == [8, 11, Decimal("9.50")]


# --- Book -----------------------------------------------------------------------------------------------------------


def test_a_book_lists_its_levels_best_first(alice: Client, bob: Client) -> None:
    for side, quantity, at in [
        ("bid", 5, "147.5"),
        ("bid", 7, "148"),
        ("ask", 3, "151"),
        ("ask", 2, "150"),
        ("bid", 10, "148.00"),
    ]:
        place_order(alice, limit(side, quantity, at))
    place_order(bob, limit("ask", 4, "148", **BY_BOB))  # fills 4 of the first bid at 148
    response = alice.get("/stocks/AAPL/book")

    assert response.content.decode() == (
        '{"symbol":"AAPL","bids":[{"price":148.00,"total_quantity":13,"order_count":2},'
        '{"price":147.50,"total_quantity":5,"order_count":1}],'
        '"asks":[{"price":150.00,"total_quantity":2,"order_count":1},{"price":151.00,"total_quantity":3,"order_count":1}],'
        f'"spread":2.00,"sequence":{response.body["sequence"]},"snapshot_at":"{response.body["snapshot_at"]}"}}'
    )
    assert abs(datetime.fromisoformat(response.body["snapshot_at"]) - timezone.now()) < timedelta(minutes=1)


def test_an_empty_side_leaves_the_spread_null(alice: Client) -> None:
    body = alice.get("/stocks/AAPL/book").body
    assert [body[name] for name in ("bids", "asks", "spread", "sequence")] == [[], [], None, 0]
    place_order(alice, limit("bid", 5, "10"))

    assert alice.get("/stocks/AAPL/book").body["spread"] is None


def test_depth_limits_the_levels_per_side_to_1_to_50(alice: Client) -> None:
    for step in range(12):
        place_order(alice, limit("bid", 1, f"{20 - step}"))
        place_order(alice, limit("ask", 1, f"{30 + step}"))
    for query, levels in [("", 10), ("?depth=1", 1), ("?depth=11", 11), ("?depth=50", 12)]:
        body = alice.get(f"/stocks/AAPL/book{query}").body
        assert [level["price"] for level in body["bids"]] == [20 - step for step in range(levels)]
        assert [level["price"] for level in body["asks"]] == [30 + step for step in range(levels)]
    for value in ("0", "51", "-1", "abc", "", "1.0", "%D9%A1", "1" * 30):
        assert list(assert_rejected(alice, "GET", f"/stocks/AAPL/book?depth={value}").fields) == ["depth"], value


def test_an_expired_order_is_in_no_book_and_no_quote_before_the_sweep(alice: Client) -> None:
    gtd = without(limit("ask", 1, "10"), "time_in_force") | {"expires_at": LATER}
    place_order(alice, gtd)
    Order.objects.update(expires_at=timezone.now())

    assert alice.get("/stocks/AAPL/book").body["asks"] == []
    assert alice.get("/stocks/AAPL/quote?side=bid&quantity=1").body["fillable_quantity"] == 0


def test_the_sequence_counts_every_change_of_the_book(alice: Client, bob: Client) -> None:
    def sequence() -> int:
        counted: int = alice.get("/stocks/AAPL/book").body["sequence"]
        return counted

    counted = [sequence()]
    resting = place_order(alice, limit("ask", 5, "10"))["order_id"]
    counted.append(sequence())
    place_order(bob, limit("bid", 2, "10", **BY_BOB))
    counted.append(sequence())
    alice.delete(f"/orders/{resting}")
    counted.append(sequence())
    place_order(alice, without(limit("ask", 5, "10"), "time_in_force") | {"expires_at": LATER})
    counted.append(sequence())
    Order.objects.filter(time_in_force="gtd").update(expires_at=timezone.now())
    expiry.expire_due_orders()
    counted.append(sequence())

    assert counted == sorted(set(counted))
    assert_rejected(alice, "POST", "/orders", limit("ask", 10**9, "10"))
    assert sequence() == counted[-1]


# --- Quote ----------------------------------------------------------------------------------------------------------


def test_a_quote_fills_level_by_level(alice: Client) -> None:
    for quantity, at in [(5, "10"), (5, "10"), (5, "10.5"), (5, "11")]:
        place_order(alice, limit("ask", quantity, at))
    response = alice.get("/stocks/AAPL/quote?side=bid&quantity=17")

    assert response.content.decode() == (
        '{"symbol":"AAPL","side":"bid","quantity":17,"fillable_quantity":17,"average_price":10.26,"total":174.50,'
        '"levels":[{"price":10.00,"quantity":10},{"price":10.50,"quantity":5},{"price":11.00,"quantity":2}]}'
    )


def test_a_quote_for_more_than_the_book_holds_is_partial(alice: Client) -> None:
    place_order(alice, limit("bid", 5, "10"))
    response = alice.get("/stocks/AAPL/quote?side=ask&quantity=9")

    assert b'"quantity":9,"fillable_quantity":5,"average_price":10.00,"total":50.00,' in response.content


@pytest.mark.parametrize("quantity", [1, 10**12])
def test_a_quote_on_an_empty_book_has_no_average_price(alice: Client, quantity: int) -> None:
    assert alice.get(f"/stocks/AAPL/quote?side=bid&quantity={quantity}").content.decode() == (
        f'{{"symbol":"AAPL","side":"bid","quantity":{quantity},"fillable_quantity":0,"average_price":null,"total":0.00,'
        '"levels":[]}'
    )


def test_a_quote_reads_at_most_the_configured_number_of_makers(alice: Client, settings: Settings) -> None:
    settings.MAX_MAKERS_PER_QUOTE = 3
    for price in ("12", "10", "11", "10"):
        place_order(alice, limit("ask", 5, price))

    within, beyond = (alice.get(f"/stocks/AAPL/quote?side=bid&quantity={quantity}").body for quantity in (13, 10**12))
    assert (within["fillable_quantity"], within["levels"]) == (
        13,
        [{"price": Decimal("10.00"), "quantity": 10}, {"price": Decimal("11.00"), "quantity": 3}],
    )
    assert (beyond["fillable_quantity"], beyond["levels"]) == (
        15,
        [{"price": Decimal("10.00"), "quantity": 10}, {"price": Decimal("11.00"), "quantity": 5}],
    )


def test_the_total_of_a_quote_has_two_to_four_decimals(alice: Client) -> None:
    trading.instrument("FINE", tick="0.0001")
    trading.broker("seller", holdings={"FINE": 3})
    trading.place(Side.ASK, 2, "1.5", by="seller", symbol="FINE")
    trading.place(Side.ASK, 1, "1.5001", by="seller", symbol="FINE")
    for quantity, shown in [
        (2, b'"average_price":1.5000,"total":3.00,'),
        (3, b'"average_price":1.5000,"total":4.5001,'),
    ]:
        assert shown in alice.get(f"/stocks/FINE/quote?side=bid&quantity={quantity}").content


@pytest.mark.parametrize("quantity", [4, 10, 25])
@pytest.mark.parametrize("side", ["bid", "ask"])
def test_a_market_order_fills_as_quoted(alice: Client, bob: Client, side: str, quantity: int) -> None:
    for step in range(4):
        place_order(alice, limit("ask", 3 + step, f"{10 + step}.03"))
        place_order(alice, limit("bid", 3 + step, f"{9 - step}.07"))
    quote = bob.get(f"/stocks/AAPL/quote?side={side}&quantity={quantity}").body
    order = place_order(bob, market(side, quantity, **BY_BOB))

    assert (quote["fillable_quantity"], quote["average_price"]) == (order["filled_quantity"], order["average_price"])
    assert quote["levels"] == [{"price": fill["price"], "quantity": fill["quantity"]} for fill in order["trades"]]
    cash = bob.get("/brokers/bob/balance").body["cash_balance"]
    assert quote["total"] == abs(trading.CASH - cash)


def test_invalid_quote_parameters_are_400_on_their_fields(alice: Client) -> None:
    trading.instrument("LOTS", lot=10)
    for query, fields in [
        ("", ["quantity", "side"]),
        ("?side=bid", ["quantity"]),
        ("?quantity=1", ["side"]),
        ("?side=buy&quantity=0", ["quantity", "side"]),
        *[
            (f"?side=bid&quantity={bad}", ["quantity"])
            for bad in ("", "0", "-1", "1.0", "1e1", "abc", "1000000000001", "15")
        ],
    ]:
        response = assert_rejected(alice, "GET", f"/stocks/LOTS/quote{query}")
        assert (response.status, sorted(response.fields)) == (400, fields), query
    assert alice.get("/stocks/LOTS/quote?side=bid&quantity=20").status == 200


# --- Tape -----------------------------------------------------------------------------------------------------------


def test_the_tape_shows_trades_newest_first_without_brokers(alice: Client, bob: Client) -> None:
    place_order(alice, limit("ask", 5, "10"))
    place_order(bob, limit("bid", 7, "11", **BY_BOB))
    place_order(alice, limit("ask", 1, "11"))
    response = Client(bob.key).get("/stocks/AAPL/trades")

    newer, older = Trade.objects.order_by("-executed_at")
    seconds = [trade["executed_at"] for trade in response.body["trades"]]
    assert response.content.decode() == (
        f'{{"trades":[{{"trade_id":"{newer.pk}","price":11.00,"quantity":1,"taker_side":"ask","executed_at":"{seconds[0]}"}},'
        f'{{"trade_id":"{older.pk}","price":10.00,"quantity":5,"taker_side":"bid","executed_at":"{seconds[1]}"}}],'
        '"next_cursor":null}'
    )
    assert list(map(datetime.fromisoformat, seconds)) == [newer.executed_at, older.executed_at]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_pages_of_the_tape_show_each_trade_once(alice: Client, bob: Client, size: int) -> None:
    for _ in range(4):
        place_order(alice, limit("ask", 1, "10"))
    place_order(bob, limit("bid", 4, "10", **BY_BOB))  # four trades at one time
    trade(1, "12")
    pages = all_pages(alice, "/stocks/AAPL/trades", "trades", size)

    newest = Trade.objects.order_by("-executed_at", "-id").values_list("pk", flat=True)
    assert [trade["trade_id"] for page in pages for trade in page] == [str(pk) for pk in newest]
    assert len(pages[0]) == size
    assert list(assert_rejected(alice, "GET", "/stocks/AAPL/trades?limit=0").fields) == ["limit"]


def test_the_tape_covers_one_symbol(alice: Client) -> None:
    trading.instrument("PETR4")
    trade(1, "10")

    assert alice.get("/stocks/PETR4/trades").body == {"trades": [], "next_cursor": None}


@pytest.mark.parametrize(("quantity", "requests"), [(1, 1), (25, 1), (26, 2), (1_000, 40), (10**12, 40)])
def test_the_rate_limit_cost_of_a_quote_grows_with_its_quantity(
    alice: Client, settings: Settings, quantity: int, requests: int
) -> None:
    left = settings.RATE_LIMIT_BURST - requests
    response = alice.get(f"/stocks/AAPL/quote?side=bid&quantity={quantity}")
    assert response.headers["RateLimit"].startswith(f'"requests";r={left};')
