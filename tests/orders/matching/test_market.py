"""The contract's rules of matching, funds and time, on real rows."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db.models import F
from django.utils import timezone

from exchange import services as exchange_services
from exchange.errors import ExchangeError
from exchange.models import Instrument
from exchange.rules import Pricing
from orders import expiry, services
from orders.enums import CancelReason, Side, TimeInForce
from orders.matching.commands import Accepted, Cancelled, CancelOrder, ExpireOrders, Swept
from orders.models import Order
from tests import trading
from tests.trading import BY, balance, cancel, execute_one, fills, order, place, rejection_code, replay, shares
from webhooks.models import Event

pytestmark = pytest.mark.django_db(transaction=True)

BID, ASK = Side.BID, Side.ASK
GTD, DAY, IOC, FOK = TimeInForce.GTD, TimeInForce.DAY, TimeInForce.IOC, TimeInForce.FOK


@pytest.fixture(autouse=True)
def _members() -> None:
    for broker_id in ("alice", "bob"):
        trading.broker(broker_id)


def backdate(resting: Order) -> None:
    """Move an order's `expires_at` into the past."""
    Order.objects.filter(pk=resting.pk).update(expires_at=timezone.now() - timedelta(seconds=1))


def in_an_hour() -> datetime:
    return timezone.now() + timedelta(hours=1)


# --- Price-time priority --------------------------------------------------------------------------------------------


def test_orders_at_one_price_fill_each_other() -> None:
    ask = place(ASK, 1000, "10", by="alice")
    bid = place(BID, 1000, "10", by="bob")

    ask.refresh_from_db()
    assert fills() == [(1000, Decimal(10))]
    assert (ask.status, bid.status) == ("filled", "filled")


def test_orders_that_do_not_cross_both_rest() -> None:
    ask, bid = place(ASK, 5, "20", by="alice"), place(BID, 5, "10", by="bob")

    assert fills() == []
    assert (ask.status, bid.status) == ("pending", "pending")


@pytest.mark.parametrize(("first", "second"), [(ASK, BID), (BID, ASK)])
def test_a_bid_of_20_and_an_ask_of_10_trade_at_10_in_either_order(first: Side, second: Side) -> None:
    prices = {BID: "20", ASK: "10"}
    place(first, 5, prices[first], by="alice")
    place(second, 5, prices[second], by="bob")

    assert fills() == [(5, Decimal(10))]


def test_maker_pricing_trades_at_the_resting_price() -> None:
    trading.instrument("PETR4", pricing=Pricing.MAKER)
    trading.broker("carol", holdings={"PETR4": 5})
    place(BID, 5, "20", by="alice", symbol="PETR4")
    place(ASK, 5, "10", by="carol", symbol="PETR4")

    assert fills() == [(5, Decimal(20))]


def test_asks_of_500_and_500_and_a_bid_of_1500_leave_500_of_the_bid() -> None:
    asks = [place(ASK, 500, "10", by="alice") for _ in range(2)]
    bid = place(BID, 1500, "10", by="bob")

    assert fills() == [(500, Decimal(10)), (500, Decimal(10))]
    assert [Order.objects.get(pk=ask.pk).status for ask in asks] == ["filled", "filled"]
    assert (bid.status, bid.filled_quantity, bid.remaining_quantity) == ("partially_filled", 1000, 500)


def test_equal_prices_fill_in_arrival_order() -> None:
    first, second = place(ASK, 5, "10", by="alice"), place(ASK, 5, "10", by="alice")
    place(BID, 7, "10", by="bob")

    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.filled_quantity, second.filled_quantity) == (5, 2)


def test_a_better_price_precedes_an_earlier_arrival() -> None:
    earlier, better = place(BID, 5, "10", by="alice"), place(BID, 5, "11", by="alice")
    place(ASK, 5, "9", by="bob")

    earlier.refresh_from_db()
    better.refresh_from_db()
    assert (earlier.filled_quantity, better.filled_quantity) == (0, 5)


def test_a_partly_filled_order_keeps_its_queue_position() -> None:
    first, second = place(ASK, 5, "10", by="alice"), place(ASK, 5, "10", by="alice")
    place(BID, 3, "10", by="bob")
    place(BID, 3, "10", by="bob")

    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.filled_quantity, second.filled_quantity) == (5, 1)


def test_a_brokers_own_orders_may_trade_with_each_other() -> None:
    before = balance("alice"), shares("alice")
    place(ASK, 5, "10", by="alice")
    place(BID, 5, "10", by="alice")

    assert fills() == [(5, Decimal(10))]
    assert (balance("alice"), shares("alice")) == before


def test_average_price_is_the_value_over_the_quantity() -> None:
    place(ASK, 1, "10.00", by="alice")
    place(ASK, 2, "10.01", by="alice")
    bid = place(BID, 3, "11", by="bob")

    assert bid.filled_value == Decimal("30.02")


# --- Orders that cannot rest ----------------------------------------------------------------------------------------


def test_a_market_order_without_liquidity_is_cancelled() -> None:
    bid = place(BID, 5, None, by="bob")

    assert (bid.status, bid.cancel_reason, bid.filled_quantity) == ("cancelled", "no_liquidity", 0)


def test_a_partly_filled_market_order_is_cancelled() -> None:
    place(ASK, 3, "10", by="alice")
    bid = place(BID, 5, None, by="bob")

    assert (bid.status, bid.cancel_reason, bid.filled_quantity) == ("cancelled", "no_liquidity", 3)
    assert balance("bob") == (trading.CASH - 30, 0)


def test_a_partly_filled_ioc_is_cancelled() -> None:
    place(ASK, 3, "10", by="alice")
    place(ASK, 3, "12", by="alice")
    bid = place(BID, 5, "11", by="bob", time_in_force=IOC)

    assert (bid.status, bid.cancel_reason, bid.filled_quantity) == ("cancelled", "ioc_remainder", 3)


@pytest.mark.parametrize("price", ["10", None])
def test_an_unfillable_fok_trades_nothing(price: str | None) -> None:
    place(ASK, 3, "10", by="alice")
    bid = place(BID, 5, price, by="bob", time_in_force=FOK)

    assert (bid.status, bid.cancel_reason, bid.filled_quantity) == ("cancelled", "fok_not_filled", 0)
    assert fills() == []
    assert balance("bob") == (trading.CASH, 0)


def test_a_fillable_fok_is_filled() -> None:
    place(ASK, 3, "10", by="alice")
    place(ASK, 2, "11", by="alice")
    bid = place(BID, 5, "11", by="bob", time_in_force=FOK)

    assert bid.status == "filled"


def test_an_immediate_cancel_publishes_no_event() -> None:
    place(BID, 5, None, by="bob")
    place(BID, 5, "10", by="bob", time_in_force=IOC)
    place(BID, 5, "10", by="bob", time_in_force=FOK)

    assert Event.objects.count() == 0


# --- Funds ----------------------------------------------------------------------------------------------------------


def test_a_bid_reserves_its_value_and_an_ask_its_shares() -> None:
    place(BID, 10, "9.50", by="alice")
    place(ASK, 10, "11", by="alice")

    assert balance("alice") == (trading.CASH, Decimal(95))
    assert shares("alice") == (trading.SHARES, 10)


def test_a_fill_below_the_limit_releases_the_difference() -> None:
    place(BID, 10, "20", by="alice")
    place(ASK, 4, "10", by="bob")

    assert balance("alice") == (trading.CASH - 40, Decimal(120))
    assert shares("alice") == (trading.SHARES + 4, 0)
    assert balance("bob") == (trading.CASH + 40, 0)
    assert shares("bob") == (trading.SHARES - 4, 0)


@pytest.mark.parametrize("time_in_force", [TimeInForce.GTC, IOC, FOK])
def test_a_limit_bid_requires_price_times_quantity(time_in_force: TimeInForce) -> None:
    place(ASK, 10, "1", by="alice")
    trading.broker("poor", cash=Decimal("99.99"), holdings={})

    assert rejection_code(order(BID, 10, "10", by="poor", time_in_force=time_in_force)) == "insufficient_balance"


def test_exactly_sufficient_funds_are_accepted() -> None:
    trading.broker("poor", cash=Decimal(100), holdings={"AAPL": 10})

    assert place(BID, 10, "10", by="poor").status == "pending"
    assert place(ASK, 10, "11", by="poor").status == "pending"


def test_reserved_funds_are_not_available() -> None:
    trading.broker("poor", cash=Decimal(100), holdings={"AAPL": 10})
    place(BID, 6, "10", by="poor")
    place(ASK, 6, "11", by="poor")

    assert rejection_code(order(BID, 5, "10", by="poor")) == "insufficient_balance"
    assert rejection_code(order(ASK, 5, "11", by="poor")) == "insufficient_holdings"


@pytest.mark.parametrize("price", ["10", None])
def test_an_ask_requires_its_whole_quantity(price: str | None) -> None:
    place(BID, 1, "10", by="alice")
    trading.broker("poor", holdings={"AAPL": 4})

    assert rejection_code(order(ASK, 5, price, by="poor")) == "insufficient_holdings"


def test_a_market_bid_requires_the_cost_of_its_fills() -> None:
    place(ASK, 5, "10", by="alice")
    trading.broker("poor", cash=Decimal(49), holdings={})

    assert rejection_code(order(BID, 5, None, by="poor")) == "insufficient_balance"
    assert place(BID, 4, None, by="poor").status == "filled"
    assert balance("poor") == (Decimal(9), 0)


def test_a_first_purchase_creates_a_holding() -> None:
    trading.broker("poor", holdings={})
    place(ASK, 5, "10", by="alice")
    place(BID, 5, "10", by="poor")

    assert shares("poor") == (5, 0)


def test_seventeen_digits_of_cash_stay_exact() -> None:
    trading.broker("rich", cash=Decimal("999999999999999.9999"), holdings={"AAPL": 10**12})
    trading.instrument("FINE", tick="0.0001")
    trading.broker("seller", cash=0, holdings={"FINE": 10**12})
    place(ASK, 9_999_999_999, "99999.9999", by="seller", symbol="FINE")
    place(BID, 9_999_999_999, "99999.9999", by="rich", symbol="FINE")

    paid = Decimal("99999.9999") * 9_999_999_999
    assert balance("seller") == (paid, 0)
    assert balance("rich") == (Decimal("999999999999999.9999") - paid, 0)


# --- Tick, lot, halt, suspension ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantity", "price", "fields"),
    [(10, "10.03", ["price"]), (15, "10.05", ["quantity"]), (15, "10.03", ["price", "quantity"])],
)
def test_off_tick_and_off_lot_values_are_rejected_not_rounded(quantity: int, price: str, fields: list[str]) -> None:
    trading.instrument("PETR4", tick="0.05", lot=10)
    outcome = execute_one(order(BID, quantity, price, symbol="PETR4"))

    assert isinstance(outcome, ExchangeError)
    assert outcome.code == "validation_error"
    assert [error.field for error in outcome.errors] == fields
    assert Order.objects.count() == 0


def test_an_unlisted_symbol_is_not_found() -> None:
    assert rejection_code(order(BID, 1, "10", symbol="NONE")) == "symbol_not_found"


def test_a_halted_instrument_rejects_orders_but_not_cancels_or_expiry() -> None:
    resting = place(BID, 5, "10")
    due = place(BID, 5, "10", time_in_force=GTD, expires_at=in_an_hour())
    exchange_services.halt("AAPL", "news", by=BY)

    assert rejection_code(order(ASK, 5, "10")) == "instrument_halted"
    assert isinstance(cancel(resting), Cancelled)
    backdate(due)
    expiry.expire_due_orders()
    due.refresh_from_db()
    assert due.status == "expired"
    exchange_services.resume("AAPL", by=BY)
    assert place(ASK, 5, "10").status == "pending"


def test_resting_orders_of_a_suspended_broker_trade_and_can_be_cancelled() -> None:
    first, second = place(ASK, 5, "10", by="alice"), place(ASK, 5, "10", by="alice")
    assert services.suspend("alice", cancel_orders=False, by=BY) == 0

    assert rejection_code(order(ASK, 5, "10", by="alice")) == "broker_suspended"
    place(BID, 5, "10", by="bob")
    first.refresh_from_db()
    assert first.status == "filled"
    assert isinstance(cancel(second), Cancelled)
    services.reinstate("alice", by=BY)
    assert place(ASK, 5, "10", by="alice").status == "pending"


def test_a_suspension_can_cancel_all_orders_of_the_broker() -> None:
    trading.instrument("PETR4")
    mine = [place(ASK, 5, "10"), place(BID, 5, "9"), place(BID, 5, "9", symbol="PETR4")]
    other = place(BID, 5, "8", by="bob")

    assert services.suspend("alice", cancel_orders=True, by=BY) == 3
    ended = Order.objects.filter(pk__in=[each.pk for each in mine])
    assert set(ended.values_list("status", "cancel_reason")) == {("cancelled", "broker_suspended")}
    other.refresh_from_db()
    assert other.status == "pending"
    assert balance("alice") == (trading.CASH, 0)


# --- Cancel and expiry ----------------------------------------------------------------------------------------------


def test_a_cancel_keeps_trades_and_releases_the_reservation() -> None:
    bid = place(BID, 10, "10", by="alice")
    place(ASK, 4, "10", by="bob")
    assert isinstance(cancel(bid), Cancelled)

    bid.refresh_from_db()
    assert (bid.status, bid.filled_quantity, bid.remaining_quantity) == ("cancelled", 4, 6)
    assert bid.cancel_reason == "by_broker"
    assert bid.cancelled_at is not None
    assert balance("alice") == (trading.CASH - 40, 0)


@pytest.mark.parametrize("state", ["filled", "cancelled", "expired"])
def test_a_final_order_is_not_cancellable_and_the_detail_names_its_status(state: str) -> None:
    resting = place(BID, 5, "10", by="alice", time_in_force=GTD, expires_at=in_an_hour())
    if state == "filled":
        place(ASK, 5, "10", by="bob")
    elif state == "cancelled":
        cancel(resting)
    else:
        backdate(resting)
        expiry.expire_due_orders()
    outcome = cancel(resting)

    assert isinstance(outcome, ExchangeError)
    assert outcome.code == "order_not_cancellable"
    assert state in outcome.detail


def test_a_cancel_past_expires_at_expires_the_order() -> None:
    bid = place(BID, 5, "10", time_in_force=GTD, expires_at=in_an_hour())
    backdate(bid)
    outcome = cancel(bid)

    bid.refresh_from_db()
    assert isinstance(outcome, ExchangeError)
    assert outcome.code == "order_not_cancellable"
    assert (bid.status, bid.expired_at) == ("expired", bid.expires_at)
    assert balance("alice") == (trading.CASH, 0)
    assert Event.objects.get().type == "order.expired"


def test_an_order_of_another_broker_is_not_found() -> None:
    bid = place(BID, 5, "10", by="alice")

    assert rejection_code(CancelOrder(bid.pk, "bob")) == "order_not_found"


def test_an_operator_cancels_an_order_of_any_broker() -> None:
    bid = place(BID, 5, "10", by="alice")
    execute_one(CancelOrder(bid.pk, None, CancelReason.BY_OPERATOR))

    bid.refresh_from_db()
    assert bid.cancel_reason == "by_operator"


def test_an_expired_order_never_trades_before_the_sweep() -> None:
    late = place(ASK, 5, "9", by="alice", time_in_force=GTD, expires_at=in_an_hour())
    place(ASK, 5, "10", by="alice")
    backdate(late)
    place(BID, 5, "10", by="bob")

    late.refresh_from_db()
    assert fills() == [(5, Decimal(10))]
    assert (late.status, late.filled_quantity) == ("pending", 0)


def test_the_sweep_expires_due_orders_once() -> None:
    due = place(BID, 5, "10", time_in_force=GTD, expires_at=in_an_hour())
    later = place(BID, 5, "10", time_in_force=GTD, expires_at=in_an_hour())
    backdate(due)

    assert execute_one(ExpireOrders("AAPL")) == Swept(closed=1, cancelled=0)
    assert execute_one(ExpireOrders("AAPL")) == Swept(closed=0, cancelled=0)
    due.refresh_from_db()
    later.refresh_from_db()
    assert (due.status, later.status) == ("expired", "pending")
    assert due.expired_at == due.expires_at
    assert balance("alice") == (trading.CASH, Decimal(50))
    event = Event.objects.get()
    assert (event.type, event.occurred_at) == ("order.expired", due.expires_at)


def test_a_sweep_larger_than_a_batch_continues_to_the_end(settings: pytest.FixtureRequest) -> None:
    settings.SWEEP_BATCH = 2  # type: ignore[attr-defined]
    for _ in range(5):
        backdate(place(BID, 1, "10", time_in_force=GTD, expires_at=in_an_hour()))
        place(ASK, 1, "20")
    expiry.expire_due_orders()

    assert Order.objects.filter(status="expired").count() == 5
    assert services.cancel_all("alice", reason=CancelReason.BY_OPERATOR) == 5


def test_expires_at_in_the_past_is_rejected() -> None:
    outcome = execute_one(order(BID, 1, "10", time_in_force=GTD, expires_at=timezone.now() - timedelta(seconds=1)))

    assert isinstance(outcome, ExchangeError)
    assert [error.field for error in outcome.errors] == ["expires_at"]


def test_a_day_order_ends_at_the_next_midnight_utc() -> None:
    bid = place(BID, 1, "10", time_in_force=DAY)

    tomorrow = bid.created_at.astimezone(UTC).date() + timedelta(days=1)
    assert bid.expires_at == datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=UTC)


# --- client_order_id ------------------------------------------------------------------------------------------------


def test_a_replay_returns_the_current_order() -> None:
    first = execute_one(order(BID, 5, "10", client_order_id="mine"))
    assert isinstance(first, Accepted)
    place(ASK, 5, "10", by="bob")

    again = replay(order(BID, 5, "10.00", client_order_id="mine"))
    assert (again.pk, again.status) == (first.order.id, "filled")
    assert Order.objects.count() == 2


def test_a_replay_precedes_expiry_halt_suspension_and_funds() -> None:
    trading.broker("poor", cash=Decimal(50), holdings={})
    until = in_an_hour()
    fields = {"by": "poor", "client_order_id": "mine", "time_in_force": GTD}
    first = place(BID, 5, "10", **fields, expires_at=until)
    Order.objects.filter(pk=first.pk).update(expires_at=F("expires_at") - timedelta(hours=2))
    exchange_services.halt("AAPL", "news", by=BY)
    services.suspend("poor", cancel_orders=False, by=BY)

    assert replay(order(BID, 5, "10", **fields, expires_at=until - timedelta(hours=2))).pk == first.pk


def test_a_replay_of_a_day_order_has_no_expires_at() -> None:
    first = place(BID, 5, "10", client_order_id="mine", time_in_force=DAY)

    assert replay(order(BID, 5, "10", client_order_id="mine", time_in_force=DAY)).pk == first.pk


@pytest.mark.parametrize(
    ("difference", "field"),
    [
        ({"quantity": 6}, "quantity"),
        ({"price": "10.01"}, "price"),
        ({"side": ASK}, "side"),
        ({"document_number": "other"}, "document_number"),
        ({"symbol": "PETR4"}, "symbol"),
        ({"time_in_force": IOC}, "time_in_force"),
    ],
)
def test_a_client_order_id_used_for_another_order_is_a_conflict(difference: dict[str, object], field: str) -> None:
    trading.instrument("PETR4")
    same = {"side": BID, "quantity": 5, "price": "10", "client_order_id": "mine"}
    place(**same)  # type: ignore[arg-type]
    outcome = execute_one(order(**(same | difference)))  # type: ignore[arg-type]

    assert isinstance(outcome, ExchangeError)
    assert outcome.code == "client_order_id_conflict"
    assert [error.field for error in outcome.errors] == [field]
    assert Order.objects.count() == 1


def test_client_order_ids_are_unique_per_broker() -> None:
    place(BID, 5, "10", by="alice", client_order_id="mine")
    place(BID, 5, "10", by="bob", client_order_id="mine")

    assert Order.objects.count() == 2


def test_a_rejected_order_does_not_use_up_its_client_order_id() -> None:
    exchange_services.halt("AAPL", "news", by=BY)
    assert rejection_code(order(BID, 5, "10", client_order_id="mine")) == "instrument_halted"
    exchange_services.resume("AAPL", by=BY)

    assert place(BID, 5, "10", client_order_id="mine").status == "pending"


# --- Events and the book's sequence ---------------------------------------------------------------------------------


def test_both_sides_of_a_trade_get_an_event_for_their_order() -> None:
    ask = place(ASK, 5, "10", by="alice")
    bid = place(BID, 8, "11", by="bob")

    bodies = {event.broker_id: event.body for event in Event.objects.all()}
    trade = bid.trades_as_bid.get()
    moment = trade.executed_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    assert bodies["alice"] == (
        f'{{"event":"trade.executed","timestamp":"{moment}","data":{{"trade_id":"{trade.pk}","order_id":"{ask.pk}",'
        '"symbol":"AAPL","side":"ask","price":10.00,"quantity":5,"status":"filled","remaining_quantity":0}}'
    )
    assert bodies["bob"] == (
        f'{{"event":"trade.executed","timestamp":"{moment}","data":{{"trade_id":"{trade.pk}","order_id":"{bid.pk}",'
        '"symbol":"AAPL","side":"bid","price":10.00,"quantity":5,"status":"partially_filled","remaining_quantity":3}}'
    )


def test_the_event_of_a_cancel_has_the_final_state_of_the_order() -> None:
    ask = place(ASK, 1000, "155")
    cancel(ask)

    event = Event.objects.get()
    ask.refresh_from_db()
    assert ask.cancelled_at is not None
    moment = ask.cancelled_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    assert event.body == (
        f'{{"event":"order.cancelled","timestamp":"{moment}","data":{{"order_id":"{ask.pk}","symbol":"AAPL",'
        '"side":"ask","price":155.00,"quantity":1000,"filled_quantity":0,"remaining_quantity":1000,'
        '"status":"cancelled"}}'
    )


def test_events_are_numbered_per_broker_without_gaps() -> None:
    for _ in range(3):
        cancel(place(ASK, 5, "10", by="alice"))
        place(ASK, 5, "10", by="bob")
        place(BID, 5, "10", by="alice")

    for broker_id, expected in (("alice", 6), ("bob", 3)):
        numbers = Event.objects.filter(broker=broker_id).order_by("sequence").values_list("sequence", flat=True)
        assert list(numbers) == list(range(1, expected + 1))


def test_the_sequence_counts_every_change_of_a_book() -> None:
    counted = []
    for change in (
        lambda: place(ASK, 5, "10", by="alice"),  # an order
        lambda: place(BID, 3, "10", by="bob"),  # an order and a fill
        lambda: services.cancel_all("alice", reason=CancelReason.BY_OPERATOR),  # a cancel
    ):
        before = Instrument.objects.get(pk="AAPL").sequence
        change()
        counted.append(Instrument.objects.get(pk="AAPL").sequence - before)

    assert counted == [1, 2, 1]
