"""Orders that reach many resting orders: unfundable ones read none of them, fundable ones do not delay others.

The limits are low, so that few orders exceed them. Every test ends with a check of all invariants (see conftest.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction
from pytest_django import Settings

from exchange.database import own_transaction
from exchange.models import Broker, Holding, Instrument
from orders.enums import Side, TimeInForce
from orders.matching import batches, sequencer, service
from orders.matching.commands import CancelOrder, Command, Outcome, PlaceOrder
from orders.models import Trade
from tests import trading
from tests.orders.matching.test_sequencer import (
    GATE,
    batch_in_progress,
    becomes_true,
    lock_timeout_ms,
    locked_row,
    queue_length,
    submit_in_thread,
    wait_for_lock_waiter,
)
from tests.orders.matching.test_write_path import summary
from tests.trading import order, place, start_thread

pytestmark = pytest.mark.django_db(transaction=True)

AT_ONCE, PER_LIST, PER_COMMAND = 3, 6, 12


@pytest.fixture(autouse=True)
def _market(db: None, settings: Settings) -> None:
    """Brokers: alice and bob with cash and shares, poor with little cash."""
    settings.MAX_MAKERS_READ_AT_ONCE, settings.MAX_MAKERS_PER_BATCH = AT_ONCE, PER_LIST
    settings.MAX_MAKERS_PER_COMMAND = PER_COMMAND
    settings.SEQUENCER_DEEP_TIME_LIMIT_SECONDS = trading.TIMEOUT_SECONDS
    for broker_id in ("alice", "bob"):
        trading.broker(broker_id, holdings={"AAPL": 1_000, "GOOG": 1_000})
    trading.broker("poor", cash=100, holdings={})
    trading.broker("gatekeeper", holdings={GATE: 1})


def place_resting(side: Side, count: int, price: str = "10", by: str = "alice") -> None:
    """Place orders of one share."""
    for _ in range(count):
        place(side, 1, price, by=by)


def execute(*commands: Command) -> list[str]:
    return [summary(outcome) for outcome in batches.execute(commands, split_deep=True)]


def submit(*commands: Command) -> list[str]:
    return [summary(outcome) for outcome in sequencer.submit_all(commands)]


@contextmanager
def makers_read() -> Iterator[list[int]]:
    """Yield a list that has the number of orders read in the `with` block at its end."""
    counts: list[int] = []
    before = _count_orders_read()
    yield counts
    counts.append(_count_orders_read() - before)


def _count_orders_read() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'orders_order'")
        return int(cursor.fetchone()[0])


# --- Unfundable orders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("price", ["10", None])
def test_an_ask_without_shares_is_rejected_without_reading_a_deep_book(price: str | None) -> None:
    place_resting(Side.BID, PER_COMMAND + 10)
    with makers_read() as read:
        assert execute(*[order(Side.ASK, 10**12, price, by="poor") for _ in range(5)]) == ["insufficient_holdings"] * 5
    assert read[0] <= 2 * AT_ONCE


def test_a_limit_bid_without_cash_is_rejected_without_reading_a_deep_book() -> None:
    place_resting(Side.ASK, PER_COMMAND + 10)
    with makers_read() as read:
        assert execute(*[order(Side.BID, 10**6, "10", by="poor") for _ in range(5)]) == ["insufficient_balance"] * 5
    assert read[0] <= 2 * AT_ONCE


def test_a_single_order_cannot_use_reserved_shares() -> None:
    place_resting(Side.BID, PER_COMMAND + 10, by="bob")
    place(Side.ASK, 900, "20")
    with makers_read() as read:
        assert execute(order(Side.ASK, 101, "10")) == ["insufficient_holdings"]
    assert read[0] <= 2 * AT_ONCE


def test_unfundable_orders_do_not_affect_the_rest_of_their_batch() -> None:
    place_resting(Side.BID, PER_LIST)
    poor = partial(order, Side.ASK, 10**12, "10", by="poor")
    assert execute(poor(), order(Side.ASK, PER_LIST, "10", by="bob"), poor()) == [
        "insufficient_holdings",
        "filled",
        "insufficient_holdings",
    ]


def test_an_order_may_sell_shares_bought_earlier_in_its_batch() -> None:
    place_resting(Side.BID, PER_LIST, "10", by="bob")
    place_resting(Side.ASK, PER_LIST, "11", by="bob")
    trading.broker("rich", holdings={})
    assert execute(
        order(Side.BID, PER_LIST, "11", by="rich"),
        order(Side.ASK, PER_LIST, "10", by="rich"),
    ) == ["filled", "filled"]


def test_an_order_may_sell_shares_its_resting_bid_bought_in_its_batch() -> None:
    """Shares are sold twice, so the batch sells more than its sellers had at its start."""
    trading.broker("five", holdings={"AAPL": 5})
    place(Side.BID, 5, "12", by="poor")
    place_resting(Side.BID, 5, "10")
    assert execute(
        order(Side.ASK, 5, "10", by="five"),
        order(Side.ASK, 5, "10", by="poor"),
    ) == ["filled", "filled"]
    assert Trade.objects.count() == 1 + 5


def test_an_order_may_spend_cash_earned_earlier_in_its_batch() -> None:
    place_resting(Side.ASK, PER_LIST, "20", by="bob")
    place(Side.BID, 4, "30", symbol="GOOG")
    trading.broker("seller", cash=0, holdings={"GOOG": 4})
    assert execute(
        order(Side.ASK, 4, "30", by="seller", symbol="GOOG"),
        order(Side.BID, PER_LIST, "20", by="seller"),
    ) == ["filled", "filled"]


def test_an_order_may_use_a_reservation_released_earlier_in_its_batch() -> None:
    place_resting(Side.BID, PER_LIST, by="bob")
    resting = place(Side.ASK, 1_000, "20")
    assert execute(CancelOrder(resting.pk, "alice"), order(Side.ASK, PER_LIST, "10")) == ["Cancelled", "filled"]


@pytest.mark.unsound  # shares are created without a transfer
def test_an_ask_is_overloaded_if_shares_arrive_after_the_fund_check() -> None:
    """Funds are checked before the broker is locked."""
    place_resting(Side.BID, PER_COMMAND)
    asks = [order(Side.ASK, PER_LIST, "10", by="poor") for _ in range(2)]
    with transaction.atomic():
        Broker.objects.select_for_update().get(pk="poor")
        first = start_thread(partial(execute, asks[0]))
        wait_for_lock_waiter()
        Holding.objects.create(broker_id="poor", instrument_id="AAPL", quantity=PER_LIST)
    assert first.result(trading.TIMEOUT_SECONDS) == ["overloaded"]
    assert execute(asks[1]) == ["filled"]


def count_makers(command: PlaceOrder) -> int:
    """Count the resting orders read for a single command."""
    with own_transaction() as cursor:
        market = trading.load_market(cursor, [command], allow_deep=True)
    return len(market.books[command.symbol].resting[command.side.opposite])


@pytest.mark.parametrize(
    ("resting", "price", "taker", "outcome"),
    [
        (PER_COMMAND, "20", {"side": Side.BID, "quantity": PER_COMMAND, "price": None}, "insufficient_balance"),
        (PER_COMMAND, "20", {"side": Side.BID, "quantity": 10**6, "price": None}, "insufficient_balance"),
        (PER_COMMAND + 1, "1", {"side": Side.BID, "quantity": 10**6, "price": None}, "too_many_fills"),
        (PER_COMMAND, "20", {"side": Side.BID, "quantity": 10**6, "price": None, "fok": True}, "cancelled"),
        (PER_COMMAND, "20", {"side": Side.BID, "quantity": PER_COMMAND, "fok": True}, "insufficient_balance"),
        (PER_COMMAND, "1", {"side": Side.BID, "quantity": PER_COMMAND + 1, "price": "2", "fok": True}, "cancelled"),
    ],
    ids=["no cash", "no cash, large", "too many", "FOK, too few", "FOK, no cash", "FOK at a price, too few"],
)
def test_an_order_that_cannot_fill_reads_no_resting_orders(
    resting: int, price: str, taker: dict[str, Any], outcome: str
) -> None:
    place_resting(Side.ASK, resting, price)
    time_in_force = TimeInForce.FOK if taker.pop("fok", False) else TimeInForce.IOC
    command = order(by="poor", time_in_force=time_in_force, **{"price": None} | taker)
    assert count_makers(command) == 0
    assert execute(command) == [outcome]
    assert not Trade.objects.exists()


@pytest.mark.unsound  # cash is created without a transfer
def test_a_bid_is_overloaded_if_cash_arrives_after_the_fund_check() -> None:
    place_resting(Side.ASK, PER_COMMAND, "20")
    bids = [order(Side.BID, PER_COMMAND, None, by="poor") for _ in range(2)]
    with transaction.atomic():
        poor = Broker.objects.select_for_update().get(pk="poor")
        first = start_thread(partial(execute, bids[0]))
        wait_for_lock_waiter()
        poor.cash = 10_000
        poor.save()
    assert first.result(trading.TIMEOUT_SECONDS) == ["overloaded"]
    assert execute(bids[1]) == ["filled"]


# --- Fundable orders ------------------------------------------------------------------------------------------------


def test_a_single_command_fills_up_to_its_maker_limit() -> None:
    place_resting(Side.BID, PER_COMMAND + 1)
    assert submit(order(Side.ASK, PER_COMMAND, "10", by="bob")) == ["filled"]
    assert Trade.objects.count() == PER_COMMAND


def test_a_batch_over_the_maker_limit_is_executed_in_order() -> None:
    place_resting(Side.BID, PER_COMMAND)
    place_resting(Side.ASK, 1, "11", by="bob")
    assert submit(
        order(Side.BID, 1, "11"),  # the only ask
        order(Side.ASK, PER_LIST + 1, "10", by="bob"),
        order(Side.ASK, PER_COMMAND, "10", by="bob", symbol="GOOG"),
        order(Side.ASK, PER_LIST, "10", by="bob"),  # one more than the book has left
    ) == ["filled", "filled", "pending", "partially_filled"]


def test_a_deep_order_is_executed_apart_from_its_batch() -> None:
    place_resting(Side.BID, PER_COMMAND)
    with batch_in_progress():
        deep = submit_in_thread([order(Side.ASK, PER_COMMAND, "10", by="bob")])
        usual = submit_in_thread([order(Side.BID, 1, "1", symbol="GOOG")])
        assert becomes_true(lambda: queue_length() == 2)
    assert [summary(each) for each in usual.result(trading.TIMEOUT_SECONDS)] == ["pending"]
    assert [summary(each) for each in deep.result(trading.TIMEOUT_SECONDS)] == ["filled"]


@pytest.fixture
def _long_lock_timeout() -> Iterator[None]:
    """Raise the lock timeout of this process's connections to the timeout of the tests."""
    with lock_timeout_ms(round(trading.TIMEOUT_SECONDS * 1000)):
        yield


@pytest.mark.usefixtures("_long_lock_timeout")
def test_others_continue_while_a_deep_order_waits_and_its_broker_is_overloaded() -> None:
    place_resting(Side.BID, PER_COMMAND)
    with locked_row(Broker, "bob"):  # the deep order needs it
        deep = submit_in_thread([order(Side.ASK, PER_COMMAND, "10", by="bob")])
        wait_for_lock_waiter()
        assert submit(
            order(Side.BID, 1, "1", symbol="GOOG", by="bob"),
            order(Side.BID, 1, "1", symbol="GOOG", by="poor"),
        ) == ["overloaded", "pending"]
        assert not deep.done()
    assert [summary(outcome) for outcome in deep.result(trading.TIMEOUT_SECONDS)] == ["filled"]


def test_deep_orders_beyond_their_time_limit_are_not_executed(settings: Settings) -> None:
    place_resting(Side.BID, PER_COMMAND)
    settings.SEQUENCER_DEEP_TIME_LIMIT_SECONDS = 0.0
    assert submit(*[order(Side.ASK, PER_LIST + 1, "10", by="bob") for _ in range(3)]) == ["overloaded"] * 3
    assert not Trade.objects.exists()


def test_deep_orders_beyond_their_queue_limit_are_overloaded(settings: Settings) -> None:
    place_resting(Side.BID, PER_COMMAND)
    settings.SEQUENCER_DEEP_REQUESTS = 0
    for quantity in (AT_ONCE + 1, PER_COMMAND):
        assert submit(order(Side.ASK, quantity, "10", by="bob")) == ["overloaded"]
    assert submit(order(Side.ASK, AT_ONCE, "10", by="bob")) == ["filled"]


def test_small_orders_stay_in_the_batch_of_a_deep_order(settings: Settings) -> None:
    place_resting(Side.BID, PER_COMMAND)
    settings.SEQUENCER_DEEP_REQUESTS = 0
    with batch_in_progress():
        deep = submit_in_thread([order(Side.ASK, PER_COMMAND, "10", by="bob")])
        small = [submit_in_thread([order(Side.ASK, 1, "10", by="bob")]) for _ in range(PER_LIST)]
        assert becomes_true(lambda: queue_length() == 1 + PER_LIST)
    assert [summary(each.result(trading.TIMEOUT_SECONDS)[0]) for each in small] == ["filled"] * PER_LIST
    assert [summary(each) for each in deep.result(trading.TIMEOUT_SECONDS)] == ["overloaded"]


def test_the_largest_of_orders_jointly_over_the_maker_limit_are_set_aside(settings: Settings) -> None:
    place_resting(Side.BID, PER_COMMAND)
    settings.SEQUENCER_DEEP_REQUESTS = 0
    with batch_in_progress():
        asks = [submit_in_thread([order(Side.ASK, quantity, "10", by="bob")]) for quantity in (3, 2, 3, 1)]
        assert becomes_true(lambda: queue_length() == len(asks))
    outcomes = [summary(each.result(trading.TIMEOUT_SECONDS)[0]) for each in asks]
    assert (sorted(outcomes[::2]), outcomes[1::2]) == (["filled", "overloaded"], ["filled", "filled"])


# --- Orders of other brokers ----------------------------------------------------------------------------------------


def test_a_cancel_of_another_brokers_order_locks_nothing() -> None:
    resting = place(Side.BID, 1, "10")
    with locked_row(Instrument, "AAPL"), locked_row(Broker, "alice"):
        outcomes: list[Outcome] = start_thread(partial(service.execute, [CancelOrder(resting.pk, "bob")])).result(
            trading.TIMEOUT_SECONDS
        )
    assert [summary(outcome) for outcome in outcomes] == ["order_not_found"]
    assert execute(CancelOrder(resting.pk, "bob"), CancelOrder(resting.pk, "alice")) == [
        "order_not_found",
        "Cancelled",
    ]
