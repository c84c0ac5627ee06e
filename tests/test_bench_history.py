"""The history that benchmarks start from: all invariants hold, and trading continues from it."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from django.db import connection
from django.db.models import Count, F, Max, Min, Sum

from bench import history
from exchange.database import database_now
from exchange.models import Broker, Instrument
from exchange.rules import rounded
from orders import activity
from orders.enums import CancelReason, OrderStatus, Side
from orders.matching.events import OrderClosed, TradeExecuted
from orders.models import Bar, Order, Trade
from tests import celery_processes, trading
from webhooks.models import Delivery, Event, EventType

ORDERS, TRADES, DELIVERIES, RESTING = 400, 300, 100, 64
BROKERS, SYMBOLS = 5, 4
encode = msgspec.json.Encoder(decimal_format="number").encode
REASONS_WITH_EVENT = [CancelReason.BY_BROKER, CancelReason.BY_OPERATOR, CancelReason.BROKER_SUSPENDED]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _statistics_of_the_tables(transactional_db: None) -> Iterator[None]:
    """Remove the statistics of the history: truncating a table keeps them, and they affect the plans of later tests."""
    yield
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_clear_attribute_stats(schemaname, tablename, attname, inherited) FROM pg_stats"
            " WHERE schemaname = current_schema()"
        )


def load(**amounts: int) -> None:
    """A history in the test database."""
    history.load_history(celery_processes.environment()["DATABASE_URL"], **amounts)


@pytest.fixture
def loaded(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small history, written in three chunks."""
    monkeypatch.setattr(history, "CHUNK", 20 * history.GROUP)
    load(orders=ORDERS, trades=TRADES, deliveries=DELIVERIES, resting=RESTING, brokers=BROKERS, symbols=SYMBOLS)


def ended() -> Any:
    return Order.objects.exclude(pk__in=Order.objects.working())


def test_the_history_has_the_requested_sizes_and_reconciles(loaded: None) -> None:
    trading.assert_sound()
    assert (Broker.objects.count(), Instrument.objects.count()) == (BROKERS, SYMBOLS)
    assert (ended().count(), Order.objects.working().count()) == (ORDERS, RESTING)
    assert (Trade.objects.count(), Delivery.objects.count()) == (TRADES, DELIVERIES)
    assert not Delivery.objects.filter(completed_at=None).exists()


def test_orders_have_every_final_status_and_reason(loaded: None) -> None:
    cancelled = ended().filter(status=OrderStatus.CANCELLED)

    assert set(ended().values_list("status", flat=True)) == {"filled", "cancelled", "expired"}
    assert set(cancelled.values_list("cancel_reason", flat=True)) == {reason.value for reason in CancelReason}
    assert cancelled.filter(filled_quantity__gt=0, cancel_reason=CancelReason.BY_BROKER).exists()
    assert ended().filter(filled_quantity__gt=0, status=OrderStatus.EXPIRED).exists()


def test_ids_arrivals_and_times_ascend_together_and_end_before_the_price_window(loaded: None) -> None:
    for symbol in Instrument.objects.values_list("symbol", flat=True):
        orders = Order.objects.filter(instrument=symbol)
        by_arrival = list(orders.order_by("sequence").values_list("pk", flat=True))
        assert by_arrival == sorted(by_arrival)
        assert by_arrival == list(orders.order_by("created_at").values_list("pk", flat=True))
    (now,) = Order.objects.aggregate(last=Max("created_at")).values()
    assert now < Broker.objects.latest("updated_at").updated_at


def test_books_have_many_levels_and_all_brokers_on_both_sides(loaded: None) -> None:
    books = (
        Order.objects.working()
        .values("instrument", "side")
        .annotate(orders=Count("pk"), levels=Count("price", distinct=True), of=Count("broker", distinct=True))
        .values_list("orders", "levels", "of")
    )

    each = RESTING // SYMBOLS // 2
    assert list(books) == [(each, each, BROKERS)] * SYMBOLS * 2


def test_every_event_has_the_body_that_the_exchange_would_send(loaded: None) -> None:
    written = Event.objects.values_list("broker", "type", "occurred_at", "body")

    assert Counter(written) == Counter(trade_events()) + Counter(closing_events())
    assert not Event.objects.filter(body__contains="null").exists()


def trade_events() -> Iterator[tuple[str, str, datetime, str]]:
    """Yield the events of the maker and the taker of each trade, with their orders as they were after it."""
    remaining = dict(Order.objects.values_list("pk", "quantity"))
    for trade in Trade.objects.order_by("executed_at", "id").select_related("bid_order", "ask_order"):
        bid, ask = trade.bid_order, trade.ask_order
        for order in (ask, bid) if trade.taker_side == Side.BID else (bid, ask):
            remaining[order.pk] -= trade.quantity
            data = TradeExecuted(
                trade.pk,
                order.pk,
                order.symbol,
                Side(order.side),
                rounded(trade.price, 2),
                trade.quantity,
                OrderStatus.PARTIALLY_FILLED if remaining[order.pk] else OrderStatus.FILLED,
                remaining[order.pk],
            )
            yield order.broker_id, *event_row(EventType.TRADE_EXECUTED, trade.executed_at, data)


def closing_events() -> Iterator[tuple[str, str, datetime, str]]:
    """Yield the events of orders that rested and then expired or were cancelled."""
    expired = ended().filter(status=OrderStatus.EXPIRED)
    for order in expired | ended().filter(cancel_reason__in=REASONS_WITH_EVENT):
        at = order.expired_at or order.cancelled_at
        assert at is not None
        assert order.price is not None
        data = OrderClosed(
            order.pk,
            order.symbol,
            Side(order.side),
            rounded(order.price, 2),
            order.quantity,
            order.filled_quantity,
            order.remaining_quantity,
            OrderStatus(order.status),
        )
        yield order.broker_id, *event_row(EventType(f"order.{order.status}"), at, data)


def event_row(type_: EventType, at: datetime, data: msgspec.Struct) -> tuple[str, datetime, str]:
    body = {"event": type_, "timestamp": at, "data": data}
    return type_.value, at, encode(body).decode()


def test_each_brokers_events_are_in_chronological_order(loaded: None) -> None:
    for broker_id in Broker.objects.values_list("pk", flat=True):
        times = list(Event.objects.filter(broker=broker_id).order_by("sequence").values_list("occurred_at", flat=True))
        assert times == sorted(times)


def test_the_makers_event_of_a_trade_precedes_the_takers(transactional_db: None) -> None:
    load(orders=80, trades=70, brokers=1, symbols=2)

    events = Event.objects.filter(type=EventType.TRADE_EXECUTED).order_by("sequence")
    assert list(events.values_list("broker", "type", "occurred_at", "body")) == list(trade_events())


def test_the_sequence_of_a_book_counts_every_arrival_fill_and_close(loaded: None) -> None:
    closes = Event.objects.exclude(type=EventType.TRADE_EXECUTED).count()

    counted = sum(Instrument.objects.values_list("sequence", flat=True))
    assert counted == Order.objects.count() + Trade.objects.count() + closes


def test_deliveries_belong_to_their_brokers_events(loaded: None) -> None:
    assert not Delivery.objects.exclude(
        subscription__broker=F("event__broker"), subscription__event_type=F("event__type")
    ).exists()
    assert Delivery.objects.values("event").distinct().count() == DELIVERIES


def test_every_minute_has_its_bars(loaded: None) -> None:
    sums = Bar.objects.aggregate(Sum("orders"), Sum("trades"), Sum("volume"))
    (shares,) = Trade.objects.aggregate(Sum("quantity")).values()

    assert list(sums.values()) == [ORDERS + RESTING, TRADES, shares]
    assert activity.behind_since(database_now()) is None


def test_trading_continues(loaded: None) -> None:
    taker = trading.place(Side.BID, 150, "100.02", by="bench-2", symbol="S1")

    assert taker.status == OrderStatus.FILLED
    assert trading.fills()[-2:] == [(100, Decimal("100.01")), (50, Decimal("100.02"))]
    trading.assert_sound()
    assert Delivery.objects.count() == DELIVERIES  # its subscriptions are deleted


def test_a_history_may_have_more_trades_than_pairs_of_orders(transactional_db: None) -> None:
    load(orders=30, trades=200, brokers=2, symbols=1)

    trading.assert_sound()
    assert (ended().count(), Trade.objects.count()) == (30, 200)


def test_a_history_may_have_fewer_trades_than_pairs_of_orders(transactional_db: None) -> None:
    load(orders=90, trades=7, brokers=1, symbols=3)

    trading.assert_sound()
    assert (ended().count(), Trade.objects.count()) == (90, 7)


def test_a_history_may_consist_of_resting_orders_only(transactional_db: None) -> None:
    load(orders=0, trades=0, resting=20_000, brokers=3, symbols=1)

    trading.assert_sound()
    ranks = Order.objects.values("side").annotate(levels=Count("price", distinct=True), lowest=Min("price"))
    assert sorted(ranks.values_list("side", "levels", "lowest")) == [
        ("ask", 500, Decimal("100.01")),
        ("bid", 500, Decimal("95.00")),
    ]


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({"orders": 1, "trades": 1}, "two orders"),
        ({"orders": 10, "trades": 5, "deliveries": 11}, "two deliveries"),
        ({"orders": 10, "trades": 5, "brokers": 0}, "needs a broker"),
    ],
)
def test_impossible_sizes_are_rejected(transactional_db: None, amounts: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(**amounts)
    assert not Broker.objects.exists()
