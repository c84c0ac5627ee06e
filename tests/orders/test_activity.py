"""Bars agree with orders and trades, however late rows are committed and however rarely bars are rolled up."""

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, transaction
from pytest_django import DjangoAssertNumQueries, Settings

from exchange.database import database_now
from exchange.ids import first_id_at
from orders import activity
from orders.activity import MINUTE, Activity
from orders.enums import OrderStatus, OrderType, Side, TimeInForce
from orders.models import Bar, Order, Trade
from orders.tasks import roll_up
from tests import trading

# Orders and trades are inserted with arbitrary times, without changing the brokers' balances.
pytestmark = [pytest.mark.django_db, pytest.mark.unsound]

SECOND = timedelta(seconds=1)
NINE = datetime(2026, 3, 2, 9, tzinfo=UTC)
_numbers = itertools.count()
MIDNIGHT = datetime(2026, 3, 2, tzinfo=UTC)


def id_at(moment: datetime) -> UUID:
    """A new id with `moment` as its time."""
    return UUID(int=int(moment.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | next(_numbers))


def order_at(moment: datetime, symbol: str = "AAPL", *, chosen_at: datetime | None = None) -> None:
    """Insert an order created at `moment`."""
    Order.objects.create(
        id=id_at(chosen_at or moment),
        broker_id="alice",
        document_number="1",
        instrument_id=symbol,
        sequence=Order.objects.count() + 1,
        type=OrderType.LIMIT,
        side=Side.BID,
        price=Decimal(1),
        quantity=1,
        status=OrderStatus.PENDING,
        time_in_force=TimeInForce.GTC,
        created_at=moment,
    )


def trade_at(moment: datetime, quantity: int, price: str, symbol: str = "AAPL") -> None:
    """Insert a trade executed at `moment`."""
    Trade.objects.create(
        id=id_at(moment),
        instrument_id=symbol,
        price=Decimal(price),
        quantity=quantity,
        taker_side=Side.BID,
        bid_order_id=id_at(moment),
        ask_order_id=id_at(moment),
        bid_broker_id="alice",
        ask_broker_id="alice",
        executed_at=moment,
    )


def bars() -> list[tuple[Any, ...]]:
    """Every bar, oldest first: minute, symbol and figures."""
    names = ("minute", "instrument_id", "orders", "trades", "volume", "value", "open", "high", "low", "close")
    return list(Bar.objects.order_by("minute", "instrument").values_list(*names))


def counts_by_minute() -> dict[datetime, tuple[int, int]]:
    """Orders and trades of each minute that has a bar."""
    return {minute: (orders, trades) for minute, _, orders, trades, *_ in bars()}


@pytest.fixture(autouse=True)
def _instruments() -> None:
    trading.broker("alice")
    trading.instrument("GOOG")


# --- Bars -----------------------------------------------------------------------------------------------------------


def test_a_bar_covers_exactly_its_minute() -> None:
    for moment, quantity, price in [
        (NINE - SECOND / 1_000_000, 1, "99"),
        (NINE, 10, "20"),
        (NINE + 1 * SECOND, 2, "21.5"),
        (NINE + 1 * SECOND, 3, "19.25"),
        (NINE + 59.999999 * SECOND, 4, "20.5"),
        (NINE + 60 * SECOND, 5, "30"),
    ]:
        trade_at(moment, quantity, price)
        order_at(moment)
    trade_at(NINE + 2 * SECOND, 7, "5", "GOOG")
    order_at(NINE + 3 * SECOND, "GOOG")
    order_at(NINE + 65 * SECOND, "GOOG")

    roll_up()

    def money(*amounts: str) -> list[Decimal]:
        return [Decimal(amount) for amount in amounts]

    assert bars() == [
        (NINE - MINUTE, "AAPL", 1, 1, 1, *money("99", "99", "99", "99", "99")),
        (NINE, "AAPL", 4, 4, 19, *money("382.75", "20", "21.5", "19.25", "20.5")),
        (NINE, "GOOG", 1, 1, 7, *money("35", "5", "5", "5", "5")),
        (NINE + MINUTE, "AAPL", 1, 1, 5, *money("150", "30", "30", "30", "30")),
        (NINE + MINUTE, "GOOG", 1, 0, 0, Decimal(0), None, None, None, None),
    ]


def test_open_and_close_of_simultaneous_trades_follow_their_ids() -> None:
    for price in ("3", "1", "2"):
        trade_at(NINE, 1, price)

    roll_up()

    ((*_, open_, high, low, close),) = bars()
    assert (open_, high, low, close) == (3, 3, 1, 2)


@pytest.mark.django_db(transaction=True)
def test_placed_orders_are_counted_in_the_bar_of_their_minute() -> None:
    trading.broker("bob")
    trading.place(Side.ASK, 10, "10", by="bob")
    for quantity in (4, 5):
        trading.place(Side.BID, quantity, "11")

    roll_up()

    assert [sum(column) for column in zip(*(bar[2:6] for bar in bars()), strict=True)] == [3, 2, 9, 90]


def test_an_order_counts_by_created_at_and_not_by_the_time_in_its_id() -> None:
    order_at(NINE + 1 * SECOND, chosen_at=NINE - 50 * SECOND)
    order_at(NINE + 59 * SECOND, chosen_at=NINE + 110 * SECOND)
    order_at(NINE - 1 * SECOND, chosen_at=NINE + 30 * SECOND)

    with connection.cursor() as cursor:
        cursor.execute(activity.ROLL_UP, activity.roll_up_parameters(NINE, NINE + MINUTE))

    assert counts_by_minute() == {NINE: (2, 0)}


def test_a_second_roll_up_writes_nothing() -> None:
    now = database_now()
    order_at(now)
    trade_at(now, 1, "1")
    roll_up()
    before, versions = bars(), Bar.objects.extra(select={"xmin": "xmin::text"}).values_list("pk", "xmin")
    written = list(versions)

    roll_up()

    assert (bars(), list(versions)) == (before, written)


def test_rows_committed_late_are_added_by_the_next_roll_up() -> None:
    now = database_now()
    this, last = activity._minute_of(now), activity._minute_of(now) - MINUTE
    order_at(last + 59 * SECOND)
    order_at(this)
    roll_up()
    assert counts_by_minute() == {last: (1, 0), this: (1, 0)}

    order_at(last + 45 * SECOND)
    trade_at(last + 45 * SECOND, 3, "2")
    roll_up()

    assert counts_by_minute() == {last: (2, 1), this: (1, 0)}
    assert [bar[4:6] for bar in bars()] == [(3, 6), (0, 0)]


def test_rows_committed_late_before_a_pause_are_added_after_it() -> None:
    order_at(NINE + 30 * SECOND)
    roll_up()
    order_at(NINE - 10 * SECOND)
    order_at(NINE + 40 * SECOND)
    order_at(NINE + 600 * SECOND)

    roll_up()

    assert counts_by_minute() == {NINE - MINUTE: (1, 0), NINE: (2, 0), NINE + 10 * MINUTE: (1, 0)}


def test_each_roll_up_catches_up_a_few_steps(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "STEP_ROWS", 0)  # a minute is a step
    settings.BARS_TIME_LIMIT_SECONDS = 0  # the fewest steps that make progress
    began = activity._minute_of(database_now()) - 300 * MINUTE
    moments = [began + n * MINUTE + SECOND for n in range(300)]
    for moment in moments:
        trade_at(moment, 1, "1")
        order_at(moment)

    roll_up()
    first_time = len(bars())
    assert 0 < first_time < 5
    for _ in range(300):
        roll_up()

    assert counts_by_minute() == {moment - SECOND: (1, 1) for moment in moments}


def test_years_without_orders_take_one_step(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    order_at(NINE - timedelta(days=3_000))
    order_at(NINE)

    with django_assert_num_queries(4):  # the time, the last bar, the step's end, the step
        roll_up()

    assert len(bars()) == 2


def test_a_clock_set_back_does_not_stop_the_roll_up() -> None:
    Bar.objects.create(instrument_id="AAPL", minute=activity._minute_of(database_now()) + timedelta(hours=5))
    order_at(database_now())

    roll_up()

    assert sum(bar[2] for bar in bars()) == 1


def test_old_rows_are_not_read_again() -> None:
    now = database_now()
    for n in range(200):
        order_at(now - timedelta(hours=2) + n * SECOND)
        trade_at(now - timedelta(hours=2) + n * SECOND, 1, "1")
    order_at(now)
    roll_up()

    begin = activity._minute_of(now) - MINUTE
    assert rows_read(activity.ROLL_UP, activity.roll_up_parameters(begin, now + MINUTE)) <= 2
    assert rows_read(activity._LIVE, {"last": begin, "since": begin, "first_id": first_id_at(begin)}) <= 2


def rows_read(statement: str, parameters: dict[str, Any]) -> int:
    """Count the orders and trades that a statement reads with the indexes used for large tables."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        (plans,) = cursor.fetchone()
    plan = json.loads(plans) if isinstance(plans, str) else plans
    reads = [node for node in nodes(plan[0]["Plan"]) if node.get("Relation Name") in ("orders_order", "orders_trade")]
    return sum(
        round((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]) for node in reads
    )


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


# --- Dashboard ------------------------------------------------------------------------------------------------------


def test_last_minute_covers_the_60_seconds_until_now() -> None:
    now = NINE + 30 * SECOND
    for age, price in [(60, "100"), (59.9, "2"), (0, "3")]:
        order_at(now - age * SECOND)
        trade_at(now - age * SECOND, 10, price)
    order_at(now, chosen_at=now - 50 * SECOND)

    assert activity.overview(now, MIDNIGHT, 1).last_minute == Activity(orders=3, trades=2, value=Decimal(50))
    assert activity.overview(now + MINUTE, MIDNIGHT, 1).last_minute == Activity()


def test_today_is_exact_before_the_roll_up_and_counts_nothing_twice() -> None:
    for moment in (MIDNIGHT - SECOND, MIDNIGHT, NINE - 90 * SECOND, NINE - 30 * SECOND, NINE, NINE + 10 * SECOND):
        order_at(moment)
        trade_at(moment, 2, "10")
    roll_up()
    order_at(NINE + 20 * SECOND)  # not in its bar yet

    today = activity.overview(NINE + 30 * SECOND, MIDNIGHT, 1).today
    assert today == Activity(orders=6, trades=5, value=Decimal(100))


def test_today_excludes_yesterday_just_after_midnight() -> None:
    for moment in (MIDNIGHT - 20 * SECOND, MIDNIGHT + 5 * SECOND):
        order_at(moment)

    overview = activity.overview(MIDNIGHT + 10 * SECOND, MIDNIGHT, 1)
    assert (overview.last_minute.orders, overview.today.orders) == (2, 1)


def test_minutes_add_up_all_instruments() -> None:
    for minute, symbol, quantity in [
        (-9, "AAPL", 100),
        (-4, "AAPL", 1),
        (-4, "GOOG", 2),
        (-1, "GOOG", 4),
        (0, "GOOG", 8),
    ]:
        trade_at(MIDNIGHT + minute * MINUTE, quantity, "10", symbol)
        order_at(MIDNIGHT + minute * MINUTE, symbol)
    roll_up()

    assert activity.overview(MIDNIGHT + 30 * SECOND, MIDNIGHT, 4).minutes == [
        Activity(2, 2, Decimal(30)), Activity(), Activity(), Activity(1, 1, Decimal(40)),
    ]  # fmt: skip
    assert activity.volumes(MIDNIGHT - 4 * MINUTE) == {"AAPL": 1, "GOOG": 14}


def test_behind_since_returns_the_first_missing_minute() -> None:
    assert activity.behind_since(NINE) is None
    order_at(NINE + 5 * SECOND)
    assert activity.behind_since(NINE + 1 * MINUTE) is None  # not late yet
    assert activity.behind_since(NINE + 2 * MINUTE) == NINE
    roll_up()
    assert activity.behind_since(NINE + 2 * MINUTE) is None

    trade_at(NINE + 9 * MINUTE, 1, "1")
    assert activity.behind_since(NINE + 10 * MINUTE) is None
    assert activity.behind_since(NINE + 11 * MINUTE) == NINE
    roll_up()
    assert activity.behind_since(NINE + 11 * MINUTE) is None
