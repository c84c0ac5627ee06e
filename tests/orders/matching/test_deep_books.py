"""Orders that reach very many resting orders: who cannot pay reads none of them, and who can keeps nobody else waiting.

The limits are set low, so that few orders are many. Every test ends with all invariants recomputed (see conftest.py).
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
from tests.orders.matching.test_write_path import said
from tests.trading import in_thread, order, place

pytestmark = pytest.mark.django_db(transaction=True)

AT_ONCE, PER_LIST, PER_COMMAND = 3, 6, 12


@pytest.fixture(autouse=True)
def _market(db: None, settings: Settings) -> None:
    """alice and bob have cash and shares; poor has a little cash and nothing else."""
    settings.MAX_MAKERS_READ_AT_ONCE, settings.MAX_MAKERS_PER_LIST = AT_ONCE, PER_LIST
    settings.MAX_MAKERS_PER_COMMAND = PER_COMMAND
    settings.SEQUENCER_ASIDE_SECONDS = trading.PATIENCE_SECONDS
    for broker_id in ("alice", "bob"):
        trading.broker(broker_id, holdings={"AAPL": 1_000, "GOOG": 1_000})
    trading.broker("poor", cash=100, holdings={})
    trading.broker("gatekeeper", holdings={GATE: 1})


def rest(side: Side, how_many: int, price: str = "10", by: str = "alice") -> None:
    """Orders of one share."""
    for _ in range(how_many):
        place(side, 1, price, by=by)


def executed(*commands: Command) -> list[str]:
    return [said(outcome) for outcome in batches.execute(commands, split_deep=True)]


def submitted(*commands: Command) -> list[str]:
    return [said(outcome) for outcome in sequencer.submit_all(commands)]


@contextmanager
def makers_read() -> Iterator[list[int]]:
    """How many rows of orders are read meanwhile, counted at the end of the `with`."""
    counted: list[int] = []
    before = _orders_fetched()
    yield counted
    counted.append(_orders_fetched() - before)


def _orders_fetched() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'orders_order'")
        return int(cursor.fetchone()[0])


# --- Who cannot pay -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("price", ["10", None])
def test_an_ask_without_shares_is_refused_for_that_however_deep_the_book(price: str | None) -> None:
    rest(Side.BID, PER_COMMAND + 10)
    with makers_read() as read:
        assert executed(*[order(Side.ASK, 10**12, price, by="poor") for _ in range(5)]) == ["insufficient_holdings"] * 5
    assert read[0] <= 2 * AT_ONCE


def test_a_limit_bid_without_cash_is_refused_for_that_however_deep_the_book() -> None:
    rest(Side.ASK, PER_COMMAND + 10)
    with makers_read() as read:
        assert executed(*[order(Side.BID, 10**6, "10", by="poor") for _ in range(5)]) == ["insufficient_balance"] * 5
    assert read[0] <= 2 * AT_ONCE


def test_by_itself_an_order_may_not_count_on_what_is_reserved() -> None:
    rest(Side.BID, PER_COMMAND + 10, by="bob")
    place(Side.ASK, 900, "20")
    with makers_read() as read:
        assert executed(order(Side.ASK, 101, "10")) == ["insufficient_holdings"]
    assert read[0] <= 2 * AT_ONCE


def test_in_a_list_others_are_filled_beside_those_who_cannot_pay() -> None:
    rest(Side.BID, PER_LIST)
    poor = partial(order, Side.ASK, 10**12, "10", by="poor")
    assert executed(poor(), order(Side.ASK, PER_LIST, "10", by="bob"), poor()) == [
        "insufficient_holdings",
        "filled",
        "insufficient_holdings",
    ]


def test_an_order_of_a_list_may_sell_what_an_earlier_one_bought() -> None:
    rest(Side.BID, PER_LIST, "10", by="bob")
    rest(Side.ASK, PER_LIST, "11", by="bob")
    trading.broker("rich", holdings={})
    assert executed(
        order(Side.BID, PER_LIST, "11", by="rich"),
        order(Side.ASK, PER_LIST, "10", by="rich"),
    ) == ["filled", "filled"]


def test_an_order_of_a_list_may_sell_what_another_sold_to_its_resting_bid() -> None:
    """The same shares change hands twice: the list takes more than its sellers had when it began."""
    trading.broker("five", holdings={"AAPL": 5})
    place(Side.BID, 5, "12", by="poor")
    rest(Side.BID, 5, "10")
    assert executed(
        order(Side.ASK, 5, "10", by="five"),
        order(Side.ASK, 5, "10", by="poor"),
    ) == ["filled", "filled"]
    assert Trade.objects.count() == 1 + 5


def test_an_order_of_a_list_may_spend_what_an_earlier_one_earned() -> None:
    rest(Side.ASK, PER_LIST, "20", by="bob")
    place(Side.BID, 4, "30", symbol="GOOG")
    trading.broker("seller", cash=0, holdings={"GOOG": 4})
    assert executed(
        order(Side.ASK, 4, "30", by="seller", symbol="GOOG"),
        order(Side.BID, PER_LIST, "20", by="seller"),
    ) == ["filled", "filled"]


def test_an_order_of_a_list_may_use_what_an_earlier_cancel_set_free() -> None:
    rest(Side.BID, PER_LIST, by="bob")
    resting = place(Side.ASK, 1_000, "20")
    assert executed(CancelOrder(resting.pk, "alice"), order(Side.ASK, PER_LIST, "10")) == ["Cancelled", "filled"]


@pytest.mark.unsound  # the shares come from nowhere
def test_whoever_has_come_to_shares_meanwhile_is_told_to_try_again() -> None:
    """Funds are looked at before the broker is locked; what comes between the two was not seen."""
    rest(Side.BID, PER_COMMAND)
    asks = [order(Side.ASK, PER_LIST, "10", by="poor") for _ in range(2)]
    with transaction.atomic():
        Broker.objects.select_for_update().get(pk="poor")
        first = in_thread(partial(executed, asks[0]))
        wait_for_lock_waiter()
        Holding.objects.create(broker_id="poor", instrument_id="AAPL", quantity=PER_LIST)
    assert first.result(trading.PATIENCE_SECONDS) == ["overloaded"]
    assert executed(asks[1]) == ["filled"]


def makers_of(command: PlaceOrder) -> int:
    """How many resting orders are read, to be filled, for a command by itself."""
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
    ids=["dear", "dear, more than there is", "too many", "FOK, too few", "FOK, dear", "FOK at a price, too few"],
)
def test_who_will_not_be_filled_reads_no_resting_order_of_a_deep_book(
    resting: int, price: str, taker: dict[str, Any], outcome: str
) -> None:
    rest(Side.ASK, resting, price)
    time_in_force = TimeInForce.FOK if taker.pop("fok", False) else TimeInForce.IOC
    command = order(by="poor", time_in_force=time_in_force, **{"price": None} | taker)
    assert makers_of(command) == 0
    assert executed(command) == [outcome]
    assert not Trade.objects.exists()


@pytest.mark.unsound  # the cash comes from nowhere
def test_whoever_has_come_to_cash_meanwhile_is_told_to_try_again() -> None:
    rest(Side.ASK, PER_COMMAND, "20")
    bids = [order(Side.BID, PER_COMMAND, None, by="poor") for _ in range(2)]
    with transaction.atomic():
        poor = Broker.objects.select_for_update().get(pk="poor")
        first = in_thread(partial(executed, bids[0]))
        wait_for_lock_waiter()
        poor.cash = 10_000
        poor.save()
    assert first.result(trading.PATIENCE_SECONDS) == ["overloaded"]
    assert executed(bids[1]) == ["filled"]


# --- Who can --------------------------------------------------------------------------------------------------------


def test_a_command_alone_fills_as_many_as_a_command_may() -> None:
    rest(Side.BID, PER_COMMAND + 1)
    assert submitted(order(Side.ASK, PER_COMMAND, "10", by="bob")) == ["filled"]
    assert Trade.objects.count() == PER_COMMAND


def test_a_list_that_reaches_too_many_is_executed_in_its_order() -> None:
    rest(Side.BID, PER_COMMAND)
    rest(Side.ASK, 1, "11", by="bob")
    assert submitted(
        order(Side.BID, 1, "11"),  # the only ask
        order(Side.ASK, PER_LIST + 1, "10", by="bob"),
        order(Side.ASK, PER_COMMAND, "10", by="bob", symbol="GOOG"),
        order(Side.ASK, PER_LIST, "10", by="bob"),  # one more than there are left
    ) == ["filled", "filled", "pending", "partially_filled"]


def test_what_is_deep_is_executed_aside_and_the_others_of_its_list_without_it() -> None:
    rest(Side.BID, PER_COMMAND)
    with batch_in_progress():
        deep = submit_in_thread([order(Side.ASK, PER_COMMAND, "10", by="bob")])
        usual = submit_in_thread([order(Side.BID, 1, "1", symbol="GOOG")])
        assert becomes_true(lambda: queue_length() == 2)
    assert [said(each) for each in usual.result(trading.PATIENCE_SECONDS)] == ["pending"]
    assert [said(each) for each in deep.result(trading.PATIENCE_SECONDS)] == ["filled"]


@pytest.fixture
def _long_lock_timeout() -> Iterator[None]:
    """This process's connections wait for locks as long as a test waits for anything."""
    with lock_timeout_ms(round(trading.PATIENCE_SECONDS * 1000)):
        yield


@pytest.mark.usefixtures("_long_lock_timeout")
def test_others_go_on_while_a_deep_order_waits_and_what_it_may_hold_is_refused_soon() -> None:
    rest(Side.BID, PER_COMMAND)
    with locked_row(Broker, "bob"):  # whom the deep order needs
        deep = submit_in_thread([order(Side.ASK, PER_COMMAND, "10", by="bob")])
        wait_for_lock_waiter()
        assert submitted(
            order(Side.BID, 1, "1", symbol="GOOG", by="bob"),
            order(Side.BID, 1, "1", symbol="GOOG", by="poor"),
        ) == ["overloaded", "pending"]
        assert not deep.done()
    assert [said(outcome) for outcome in deep.result(trading.PATIENCE_SECONDS)] == ["filled"]


def test_what_is_left_when_the_time_is_up_is_overloaded_and_not_done(settings: Settings) -> None:
    rest(Side.BID, PER_COMMAND)
    settings.SEQUENCER_ASIDE_SECONDS = 0.0
    assert submitted(*[order(Side.ASK, PER_LIST + 1, "10", by="bob") for _ in range(3)]) == ["overloaded"] * 3
    assert not Trade.objects.exists()


def test_no_more_wait_aside_than_there_is_room_for(settings: Settings) -> None:
    rest(Side.BID, PER_COMMAND)
    settings.SEQUENCER_ASIDE_REQUESTS = 0
    for quantity in (AT_ONCE + 1, PER_COMMAND):
        assert submitted(order(Side.ASK, quantity, "10", by="bob")) == ["overloaded"]
    assert submitted(order(Side.ASK, AT_ONCE, "10", by="bob")) == ["filled"]


def test_small_orders_stay_with_their_list_however_deep_another_of_it_is(settings: Settings) -> None:
    rest(Side.BID, PER_COMMAND)
    settings.SEQUENCER_ASIDE_REQUESTS = 0
    with batch_in_progress():
        deep = submit_in_thread([order(Side.ASK, PER_COMMAND, "10", by="bob")])
        small = [submit_in_thread([order(Side.ASK, 1, "10", by="bob")]) for _ in range(PER_LIST)]
        assert becomes_true(lambda: queue_length() == 1 + PER_LIST)
    assert [said(each.result(trading.PATIENCE_SECONDS)[0]) for each in small] == ["filled"] * PER_LIST
    assert [said(each) for each in deep.result(trading.PATIENCE_SECONDS)] == ["overloaded"]


def test_of_orders_that_reach_too_many_only_together_the_largest_are_set_aside(settings: Settings) -> None:
    rest(Side.BID, PER_COMMAND)
    settings.SEQUENCER_ASIDE_REQUESTS = 0
    with batch_in_progress():
        asks = [submit_in_thread([order(Side.ASK, quantity, "10", by="bob")]) for quantity in (3, 2, 3, 1)]
        assert becomes_true(lambda: queue_length() == len(asks))
    outcomes = [said(each.result(trading.PATIENCE_SECONDS)[0]) for each in asks]
    assert (sorted(outcomes[::2]), outcomes[1::2]) == (["filled", "overloaded"], ["filled", "filled"])


# --- Whose order it is ----------------------------------------------------------------------------------------------


def test_another_broker_s_order_is_not_there_and_nothing_of_it_is_locked() -> None:
    mine = place(Side.BID, 1, "10")
    with locked_row(Instrument, "AAPL"), locked_row(Broker, "alice"):
        outcomes: list[Outcome] = in_thread(partial(service.execute, [CancelOrder(mine.pk, "bob")])).result(
            trading.PATIENCE_SECONDS
        )
    assert [said(outcome) for outcome in outcomes] == ["order_not_found"]
    assert executed(CancelOrder(mine.pk, "bob"), CancelOrder(mine.pk, "alice")) == [
        "order_not_found",
        "Cancelled",
    ]
