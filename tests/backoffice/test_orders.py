"""Orders in the back office: search, filters, history, queue position and cancellation."""

from datetime import timedelta
from html import escape
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from backoffice import lists
from backoffice.links import list_url, page_url
from backoffice.queries import order_history
from exchange import services as exchange_services
from exchange.models import AuditEntry
from orders.enums import CancelReason, OrderStatus, Side, TimeInForce
from orders.matching import service
from orders.models import Order, Trade
from tests import trading
from tests.backoffice.admin_client import (
    REASON,
    action_path,
    form_errors,
    has_button,
    impact,
    listed_rows,
    live_parts,
    page,
    perform,
    result_messages,
    sign_in,
)
from tests.trading import place
from webhooks import services as webhook_services
from webhooks.models import Delivery, Event, EventType

pytestmark = pytest.mark.django_db(transaction=True)

MAX_QUERIES = 20


@pytest.fixture
def market(db: None) -> None:
    """Alice and Bob, each with ample cash and shares of AAPL and GOOG."""
    for each in ("alice", "bob"):
        trading.broker(each, holdings={"AAPL": 10_000, "GOOG": 10_000})


def ids(*orders: Order) -> list[UUID]:
    return [order.pk for order in orders]


def found(client: Client, **filters: Any) -> list[UUID]:
    return [order.pk for order in listed_rows(client, Order, **filters)]


# --- The list -------------------------------------------------------------------------------------------------------


def test_each_filter_finds_exactly_the_matching_rows(root: Client, market: None) -> None:
    bid = place(Side.BID, 5, "10")
    filled = place(Side.ASK, 2, "10", by="bob")
    goog = place(Side.ASK, 7, "20", symbol="GOOG", by="bob", time_in_force=TimeInForce.DAY)
    missed = place(Side.BID, 1, None, symbol="GOOG", document_number="X1")  # filled by goog
    nothing = place(Side.ASK, 1, None, symbol="GOOG", by="bob")  # no bids
    closed = place(Side.BID, 3, "9")
    trading.cancel(closed)

    assert found(root) == ids(closed, nothing, missed, goog, filled, bid)
    assert found(root, status="working") == ids(bid, goog)
    assert found(root, status="partially_filled") == ids(bid, goog)
    assert found(root, status="pending") == []
    assert found(root, status="filled") == ids(missed, filled)
    assert found(root, status="cancelled") == ids(closed, nothing)
    assert found(root, symbol="GOOG") == ids(nothing, missed, goog)
    assert found(root, symbol="goog") == ids(nothing, missed, goog)
    assert found(root, side="ask") == ids(nothing, goog, filled)
    assert found(root, type="market") == ids(nothing, missed)
    assert found(root, broker="bob") == ids(nothing, goog, filled)
    assert found(root, broker="bob", symbol="GOOG", side="ask", type="limit") == ids(goog)
    assert found(root, status="working", broker="bob") == ids(goog)
    assert found(root, status="working", broker="bob", symbol="AAPL") == []
    assert found(root, status="working", side="bid") == ids(bid)
    assert found(root, status="working", symbol="AAPL", type="market") == []
    assert found(root, broker="nobody") == found(root, symbol="NONE") == []


def test_working_orders_of_a_book_are_listed_by_priority(root: Client, market: None) -> None:
    worst, best = place(Side.BID, 1, "8"), place(Side.BID, 1, "9")
    late, early = place(Side.ASK, 1, "11"), place(Side.ASK, 1, "10.5")
    later = place(Side.ASK, 1, "10.5", by="bob")
    elsewhere = place(Side.ASK, 1, "1", symbol="GOOG")
    assert found(root, status="working", symbol="AAPL") == ids(early, later, late, best, worst)
    assert found(root, status="working", symbol="AAPL", side="bid") == ids(best, worst)
    assert found(root, status="working") == ids(early, later, late, best, worst, elsewhere)
    assert found(root, status="working", broker="alice") == ids(worst, best, late, early, elsewhere)
    assert found(root, status="working", broker="alice", symbol="AAPL") == ids(early, late, best, worst)


def test_old_working_orders_are_found(root: Client, market: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MAX_SCANNED_ROWS", 3)
    old = place(Side.BID, 1, "5")
    for _ in range(5):
        trading.cancel(place(Side.BID, 1, "6"))
    assert found(root, status="working") == ids(old)
    assert found(root, status="working", broker="alice") == ids(old)
    assert found(root, status="pending", symbol="AAPL", side="bid") == ids(old)


def test_periods_include_their_start_and_exclude_their_end_in_every_query(root: Client, market: None) -> None:
    first, second, third = (place(Side.BID, 1, "5", client_order_id=f"c{n}") for n in range(3))
    noon = timezone.now().replace(second=0, microsecond=0) - timedelta(days=2)
    for order, hours in ((first, 0), (second, 1), (third, 2)):
        move(order, noon + timedelta(hours=hours))
    first, second, third = Order.objects.order_by("created_at")
    period = {
        "since": f"{noon + timedelta(hours=1):%Y-%m-%dT%H:%M}",
        "until": f"{noon + timedelta(hours=2):%Y-%m-%dT%H:%M}",
    }
    for filters in ({}, {"broker": "alice"}, {"symbol": "AAPL"}, {"status": "working"}, {"q": "12345678900"}):
        assert found(root, **period, **filters) == ids(second), filters
        assert found(root, since=period["since"], **filters) == (
            ids(second, third) if filters.get("status") else ids(third, second)
        )
        assert found(root, until=period["since"], **filters) == ids(first)


def move(order: Order, at: Any) -> None:
    """Move an order to another time, with an ID of that time."""
    new_id = UUID(int=(int(at.timestamp() * 1000) << 80) | (order.pk.int & (1 << 80) - 1))
    Order.objects.filter(pk=order.pk).update(id=new_id, created_at=at)


def test_an_id_older_than_the_order_does_not_hide_it(root: Client, market: None) -> None:
    order = place(Side.BID, 1, "5")
    at = timezone.now().replace(microsecond=0) - timedelta(days=1)
    move(order, at - timedelta(seconds=50))
    Order.objects.update(created_at=at)
    assert len(found(root, since=f"{at:%Y-%m-%dT%H:%M:%S}")) == 1
    assert len(found(root, until=f"{at:%Y-%m-%dT%H:%M:%S}")) == 0


# --- The search -----------------------------------------------------------------------------------------------------


def test_the_search_finds_order_ids_client_order_ids_and_document_numbers(root: Client, market: None) -> None:
    one = place(Side.BID, 1, "5", client_order_id="mine-1", document_number="A1")
    other = place(Side.BID, 1, "6", client_order_id="mine-1", document_number="B2", by="bob")
    third = place(Side.BID, 1, "7", client_order_id="A1", document_number="C3", by="bob")
    assert found(root, q=str(one.pk)) == ids(one)
    assert found(root, q=str(one.pk).upper().replace("-", "")) == ids(one)
    assert found(root, q="mine-1") == ids(other, one)  # of all brokers
    assert found(root, q="mine-1", broker="bob") == ids(other)
    assert found(root, q="B2") == ids(other)
    assert found(root, q="A1") == ids(third, one)  # a client order ID and a document number
    assert found(root, q="A1", side="ask") == []
    assert found(root, q="mine") == found(root, q="no such thing!") == found(root, q=str(UUID(int=0))) == []


def test_the_search_for_a_client_order_id_uses_its_index(root: Client, market: None) -> None:
    place(Side.BID, 1, "5", client_order_id="mine-1")
    with CaptureQueriesContext(connection) as queries:
        found(root, q="mine-1")
    (probe,) = [query["sql"] for query in queries if "exchange_broker" in query["sql"] and "LATERAL" in query["sql"]]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")  # the table is too small for the planner to choose an index
        cursor.execute(f"EXPLAIN {probe}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "order_client_order_id_unique" in plan, plan


# --- Queries --------------------------------------------------------------------------------------------------------

FILTERS: list[dict[str, Any]] = [
    {}, {"last": 1}, {"status": "working"}, {"status": "filled"}, {"symbol": "AAPL"}, {"side": "bid"},
    {"broker": "alice"}, {"broker": "alice", "symbol": "AAPL", "type": "limit"}, {"since": "2026-01-01T00:00"},
    {"q": "12345678900"}, {"q": "c1", "status": "pending"},
]  # fmt: skip


def test_a_list_takes_few_queries_and_counts_nothing(root: Client, market: None) -> None:
    for number in range(70):
        place(Side.BID, 1, "5", client_order_id=f"c{number}")
    for filters in FILTERS:
        with CaptureQueriesContext(connection) as queries:
            assert root.get(list_url(Order, **filters)).status_code == 200
        assert len(queries) < MAX_QUERIES, filters
        own = [query for query in queries if "orders_order" in query["sql"]]
        most = 5 if "q" in filters else 2  # the lookup of the term, and per index the scan limit and the rows
        assert len(own) <= most, filters
        assert not any("count(" in query["sql"].lower() for query in queries), filters


def test_the_page_of_an_order_takes_few_queries(root: Client, market: None) -> None:
    order = place(Side.BID, 100, "10")
    webhook_services.subscribe("alice", url="http://127.0.0.1:9/", events=[EventType.TRADE_EXECUTED])
    for _ in range(60):
        place(Side.ASK, 1, "10", by="bob")
    with CaptureQueriesContext(connection) as queries:
        answer: Any = root.get(page(order))
    assert len(queries) < MAX_QUERIES
    assert len(answer.context["fills"]) == order_history.FILL_ROWS
    assert answer.context["has_more_fills"]
    assert (answer.context["fills"][0].remaining, answer.context["fills"][-1].remaining) == (40, 89)
    assert f'href="{list_url(Trade, q=order.pk)}"' in answer.content.decode()


# --- History --------------------------------------------------------------------------------------------------------


def history_of(client: Client, order: Order) -> list[tuple[str, str]]:
    answer: Any = client.get(page(order))
    assert answer.status_code == 200
    return [(entry.title, entry.detail) for entry in answer.context["history"]]


def history_events(client: Client, order: Order) -> list[tuple[int, list[str]] | None]:
    """Return the sequence and the delivery states of each event in the history."""
    answer: Any = client.get(page(order))
    lookups = [entry.event_lookup for entry in answer.context["history"] if entry.event_lookup]
    return [
        each.event and (each.event.sequence, [str(delivery.state) for delivery in each.event.deliveries])
        for each in lookups
    ]


def test_the_history_shows_all_fills(root: Client, market: None) -> None:
    place(Side.ASK, 2, "9.5", by="bob")
    order = place(Side.BID, 5, "10")
    place(Side.ASK, 3, "10", by="bob")
    assert history_of(root, order) == [
        ("Accepted", "bid 5 at 10.00, gtc, book sequence 2"),
        ("Filled", "2 at 9.50 as taker, 3 remaining"),
        ("Filled", "3 at 10.00 as maker, 0 remaining"),
    ]


def test_the_history_shows_reason_and_operator_of_the_end(root: Client, market: None) -> None:
    by_broker, by_operator, expired = (place(Side.BID, 5, "10") for _ in range(3))
    trading.cancel(by_broker)
    perform(root, Order, "cancel", by_operator.pk, reason="asked by telephone")
    Order.objects.filter(pk=expired.pk).update(
        status=OrderStatus.EXPIRED, expired_at=timezone.now(), expires_at=timezone.now()
    )
    assert history_of(root, by_broker)[1:] == [("Cancelled", "by broker, 5 unfilled")]
    assert history_of(root, by_operator)[1:] == [
        ("Cancelled", "by operator, 5 unfilled: user root, “asked by telephone”")
    ]
    assert history_of(root, expired)[1:] == [("Expired", "5 unfilled")]


def test_the_history_finds_the_events_and_deliveries_of_each_fill(root: Client, market: None) -> None:
    webhook_services.subscribe(
        "alice", url="http://127.0.0.1:9/", events=[EventType.TRADE_EXECUTED, EventType.ORDER_CANCELLED]
    )
    neighbour = place(Side.BID, 1, "11")
    order = place(Side.BID, 5, "10")
    place(Side.ASK, 3, "10", by="bob")  # one trade with each order
    trading.cancel(order)
    trades, cancelled = (
        Delivery.objects.filter(event__type="trade.executed").order_by("id"),
        Delivery.objects.latest("id"),
    )
    Delivery.objects.filter(pk=trades[1].pk).update(
        claimed_at=timezone.now(), completed_at=timezone.now(), status_code=500
    )
    assert cancelled.event.type == "order.cancelled"

    assert history_events(root, order) == [(2, ["failed"]), (3, ["due"])]
    assert history_events(root, neighbour) == [(1, ["due"])]
    (resting,) = Order.objects.filter(broker="bob")
    assert history_events(root, resting) == [(1, []), (2, [])]  # not subscribed
    assert page_url(Delivery, trades[1].pk) in root.get(page(order)).content.decode()
    assert webhook_services.redeliver([trades[1].pk], by=trading.BY, reason="they ask") == 1
    assert history_events(root, order) == [(2, ["failed", "due"]), (3, ["due"])]


def test_orders_that_never_rested_have_no_closing_event(root: Client, market: None) -> None:
    order = place(Side.BID, 5, None)
    assert order.cancel_reason == CancelReason.NO_LIQUIDITY
    assert history_of(root, order)[1:] == [("Cancelled", "no liquidity, 5 unfilled")]
    assert history_events(root, order) == []


def test_the_search_for_events_stops_at_its_limit(root: Client, market: None, monkeypatch: pytest.MonkeyPatch) -> None:
    order = place(Side.BID, 5, "10")
    place(Side.ASK, 5, "10", by="bob")
    (event,) = Event.objects.filter(broker="alice")
    Event.objects.filter(pk=event.pk).update(broker="bob", sequence=100)  # hide it from the search
    assert history_events(root, order) == [None]
    assert "No event found." in root.get(page(order)).content.decode()
    monkeypatch.setattr(order_history, "MAX_SCANNED_EVENTS", 1)
    assert "not found among the next 1 events" in root.get(page(order)).content.decode()


def test_the_page_of_an_order_refreshes_automatically(root: Client, market: None) -> None:
    assert live_parts(root.get(page(place(Side.BID, 5, "10")))) == ["figures", "queue", "history", "trades", "audit"]


# --- Queue position -------------------------------------------------------------------------------------------------


def queue_position_of(client: Client, order: Order) -> tuple[int, ...] | None:
    answer: Any = client.get(page(order))
    found: order_history.QueuePosition | None = answer.context["queue_position"]
    return None if found is None else (
        found.orders_at_price, found.quantity_at_price, found.better_levels, found.better_orders, found.better_quantity
    )  # fmt: skip


@pytest.mark.parametrize(("side", "better", "own", "worse"), [(Side.BID, "11", "10", "9"), (Side.ASK, "9", "10", "11")])
def test_a_resting_order_has_a_queue_position(
    root: Client, market: None, side: Side, better: str, own: str, worse: str
) -> None:
    place(side, 4, own)
    place(side, 5, own, by="bob")
    order = place(side, 7, own)
    place(side, 9, own)  # behind it
    place(side, 1, worse)
    place(side, 2, better)
    place(side, 3, better)
    place(side, 6, "12" if side is Side.BID else "8")
    place(side.opposite, 1, better if side is Side.BID else "8", by="bob")  # takes one of the best orders
    place(Side.BID, 50, "5", symbol="GOOG")
    timed = place(side, 8, own, time_in_force=TimeInForce.GTD, expires_at=timezone.now() + timedelta(hours=1))
    assert queue_position_of(root, order) == (2, 9, 2, 3, 10)
    assert queue_position_of(root, timed) == (4, 25, 2, 3, 10)
    trading.cancel(order)
    order.refresh_from_db()
    assert queue_position_of(root, order) is None
    assert queue_position_of(root, timed) == (3, 18, 2, 3, 10)


def test_expired_orders_do_not_count_in_the_queue_position(root: Client, market: None) -> None:
    timed = place(Side.BID, 8, "10", time_in_force=TimeInForce.GTD, expires_at=timezone.now() + timedelta(hours=1))
    order = place(Side.BID, 1, "10")
    assert queue_position_of(root, order) == (1, 8, 0, 0, 0)
    Order.objects.filter(pk=timed.pk).update(expires_at=timezone.now())
    assert queue_position_of(root, order) == (0, 0, 0, 0, 0)


def test_the_queue_position_is_counted_up_to_a_limit(
    root: Client, market: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(Side.BID, 1, "11")
    for _ in range(3):
        place(Side.BID, 1, "10")
    order = place(Side.BID, 1, "10")
    monkeypatch.setattr(order_history, "MAX_AHEAD", 3)
    assert queue_position_of(root, order) == (3, 3, 0, 0, 0)
    assert "more may be ahead" in root.get(page(order)).content.decode()


# --- Cancellation ---------------------------------------------------------------------------------------------------


def audit_entries() -> list[tuple[str, str, str, str]]:
    return list(
        AuditEntry.objects.filter(action="order.cancel")
        .order_by("id")
        .values_list("actor_kind", "actor", "subject", "reason")
    )


def test_one_order_is_cancelled_with_a_reason(root: Client, market: None) -> None:
    order = place(Side.BID, 5, "10")
    place(Side.ASK, 2, "10", by="bob")
    assert result_messages(perform(root, Order, "cancel", order.pk)) == [("success", "Order cancelled.")]
    order.refresh_from_db()
    assert (order.status, order.cancel_reason, order.filled_quantity) == ("cancelled", "by_operator", 2)
    assert trading.balance("alice")[1] == 0
    assert audit_entries() == [("user", "root", str(order.pk), REASON)]
    assert not has_button(root, action_path(Order, "cancel", order.pk), page(order))


def test_the_page_of_a_cancellation_shows_what_it_releases(root: Client, market: None) -> None:
    bids = [place(Side.BID, quantity, price) for quantity, price in [(5, "10"), (3, "9.50")]]
    asks = [place(Side.ASK, 2, "10", by="bob"), place(Side.ASK, 7, "20", by="bob")]  # the first one trades
    path = action_path(Order, "cancel", *ids(*bids, *asks))

    assert impact(root.get(path)) == [["bid", "2", "6", "58.50"], ["ask", "1", "7", "140.00"]]


def test_without_a_reason_nothing_is_cancelled(root: Client, market: None) -> None:
    order = place(Side.BID, 5, "10")
    before = trading.snapshot()
    for reason in ("", "   ", "x" * 201):
        assert set(form_errors(perform(root, Order, "cancel", order.pk, reason=reason))) == {"reason"}
    assert trading.snapshot() == before
    assert audit_entries() == []


def test_a_bulk_cancellation_names_the_orders_not_cancelled(root: Client, market: None) -> None:
    orders = [place(Side.BID, 1, "10") for _ in range(4)]
    filled = place(Side.BID, 1, "11")
    place(Side.ASK, 1, "11", by="bob")
    trading.cancel(orders[3])
    answer = perform(root, Order, "cancel", *ids(*orders, filled))
    refused = [f"{orders[3].pk}: The order is already cancelled.", f"{filled.pk}: The order is already filled."]
    assert result_messages(answer) == [("warning", " ".join(["3 of 5 orders cancelled. Not cancelled:", *refused]))]
    assert [subject for _, _, subject, _ in audit_entries()] == [str(order.pk) for order in orders[:3]]


def test_a_bulk_cancellation_returns_to_the_filtered_list(root: Client, market: None) -> None:
    order = place(Side.BID, 1, "10")
    url = list_url(Order, broker="alice", status="working")
    assert 'name="_changelist_filters" value="broker=alice&amp;status=working"' in root.get(url).content.decode()
    path = f"{action_path(Order, 'cancel', order.pk)}&_changelist_filters=broker%3Dalice%26status%3Dworking"

    content = root.get(path).content.decode()
    answer: Any = root.post(path, {"reason": REASON})

    assert f'<a class="o-button" href="{escape(url)}">Keep orders</a>' in content
    assert (answer.status_code, answer["Location"]) == (302, url)


def test_a_bulk_cancellation_returns_to_this_list_only(root: Client, market: None) -> None:
    path = f"{action_path(Order, 'cancel')}?_changelist_filters="
    for query in ("", "//evil.example/", "model=x&%0D%0ASet-Cookie: a=b"):
        answer: Any = root.get(path + quote(query))
        assert answer["Location"].partition("?")[0] == list_url(Order), query


def test_a_bulk_cancellation_names_a_limited_number_of_orders(root: Client, market: None) -> None:
    orders = [place(Side.BID, 1, "10") for _ in range(8)]
    for order in orders:
        trading.cancel(order)
    ((level, message),) = result_messages(perform(root, Order, "cancel", *ids(*orders)))
    assert level == "warning"
    assert message.startswith("0 of 8 orders cancelled. Not cancelled:")
    assert [str(order.pk) in message for order in orders] == [True] * 5 + [False] * 3
    assert message.endswith("and 3 more.")


def test_the_maximum_number_of_orders_is_cancelled_in_one_action(root: Client, market: None) -> None:
    commands = [trading.order(Side.BID, 1, "10") for _ in range(500)]
    service.execute(commands)
    chosen = [command.order_id for command in commands]
    assert result_messages(perform(root, Order, "cancel", *chosen)) == [("success", "500 orders cancelled.")]
    assert len(audit_entries()) == 500
    assert root.get(action_path(Order, "cancel", *chosen, UUID(int=1))).status_code == 404


def test_cancelling_a_filled_order_is_rejected_on_the_form(root: Client, market: None) -> None:
    order = place(Side.BID, 1, "10")
    assert has_button(root, action_path(Order, "cancel", order.pk), page(order))
    place(Side.ASK, 1, "10", by="bob")
    assert form_errors(perform(root, Order, "cancel", order.pk)) == {"__all__": ["The order is already filled."]}


def test_a_busy_book_is_reported_on_the_form(root: Client, market: None, settings: Settings) -> None:
    order = place(Side.BID, 1, "10")
    settings.SEQUENCER_QUEUE_REQUESTS = 0
    assert list(form_errors(perform(root, Order, "cancel", order.pk))) == ["__all__"]
    assert audit_entries() == []


def test_orders_of_a_halted_instrument_can_be_cancelled(root: Client, market: None) -> None:
    order = place(Side.BID, 1, "10")
    exchange_services.halt("AAPL", "news", by=trading.BY)
    assert result_messages(perform(root, Order, "cancel", order.pk)) == [("success", "Order cancelled.")]


def test_viewers_see_no_button_and_are_refused(client: Client, market: None) -> None:
    order = place(Side.BID, 1, "10")
    viewer = sign_in(client, "vera", ["orders.view_order"])
    path = action_path(Order, "cancel", order.pk)
    assert not has_button(viewer, path, page(order))
    listed = viewer.get(list_url(Order)).content.decode()
    assert "Cancel selected orders" not in listed
    assert 'name="id"' not in listed
    assert (viewer.get(path).status_code, viewer.post(path, {"reason": "no"}).status_code) == (403, 403)
    assert audit_entries() == []


def test_users_without_view_permission_are_refused_everywhere(client: Client, market: None) -> None:
    order = place(Side.BID, 1, "10")
    nobody = sign_in(client, "nobody", ["orders.view_trade"])
    for path in (list_url(Order), page(order), action_path(Order, "cancel", order.pk), action_path(Order, "export")):
        assert nobody.get(path).status_code == 403


def test_only_cancellable_orders_can_be_selected(root: Client, market: None) -> None:
    orders = [place(Side.BID, 1, "10") for _ in range(3)]
    trading.cancel(orders[2])
    listed = root.get(list_url(Order)).content.decode()
    assert [f'name="id" value="{order.pk}"' in listed for order in orders] == [True, True, False]
    assert f'formaction="{action_path(Order, "cancel")}"' in listed
    assert 'id="rows" data-live' in listed


def test_the_page_of_an_unknown_order_is_not_found(root: Client) -> None:
    for key in (UUID(int=0), "x", "%00", "9" * 40):
        assert root.get(f"{list_url(Order)}{key}/change/").status_code == 404


def test_the_write_path_rejects_an_outer_transaction(root: Client, market: None) -> None:
    """The write path opens its own durable transaction."""
    order = place(Side.BID, 1, "10")
    with transaction.atomic(), pytest.raises(RuntimeError, match="cannot be part of another"):
        trading.cancel(order)
