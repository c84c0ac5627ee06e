"""Batches of commands: their statements, their effects on each other, and failures.

Every test ends with a check of all invariants (see conftest.py).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from exchange.database import database_now, own_transaction
from exchange.errors import ExchangeError
from exchange.models import Broker, Holding, Instrument
from exchange.rules import Pricing
from orders import expiry
from orders.enums import OrderStatus, Side, TimeInForce
from orders.matching import batches, service, store
from orders.matching.commands import Accepted, CancelOrder, CancelOrders, Command, ExpireOrders, Outcome, Replayed
from orders.models import Order, Trade
from tests import trading
from tests.database import rows_read
from tests.trading import execute_one, order, place

pytestmark = pytest.mark.django_db(transaction=True)

SYMBOLS = ["AAPL", "GOOG", "MSFT"]


# --- Statements -----------------------------------------------------------------------------------------------------

FIND = "SELECT id, symbol, broker_id"
LOCK = 'SELECT "exchange_instrument"'
READ = "SELECT orders_read_market_v2"
WRITE = "SELECT webhooks_publish"
Factory = Callable[[int], Sequence[Command]]


def bids(count: int) -> list[Command]:
    return [order(Side.BID, 1, "10.00") for _ in range(count)]


def bids_with_ids(count: int) -> list[Command]:
    return [order(Side.BID, 1, "10.00", client_order_id=f"id-{number}") for number in range(count)]


def asks_in_several_books(count: int) -> list[Command]:
    return [order(Side.ASK, 1, "10.00", symbol=SYMBOLS[number % 3]) for number in range(count)]


def takers_of_resting_orders(count: int) -> list[Command]:
    for symbol in SYMBOLS:
        service.execute([order(Side.ASK, 1, "10.00", by="bob", symbol=symbol) for _ in range(count)])
    return [order(Side.BID, 1, "10.00", symbol=SYMBOLS[number % 3]) for number in range(count)]


def orders_that_fill_each_other(count: int) -> list[Command]:
    return [order(side, 1, "10.00") for _ in range(count) for side in Side]


def unfundable_bids(count: int) -> list[Command]:
    return [order(Side.BID, 10**9, "10.00") for _ in range(count)]


def cancels(count: int) -> list[Command]:
    outcomes = service.execute(asks_in_several_books(count))
    return [CancelOrder(outcome.order.id, "alice") for outcome in outcomes if isinstance(outcome, Accepted)]


@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize(
    ("create", "last"),
    [
        (bids, WRITE),
        (bids_with_ids, WRITE),
        (asks_in_several_books, WRITE),
        (takers_of_resting_orders, WRITE),
        (orders_that_fill_each_other, WRITE),
        (unfundable_bids, "ROLLBACK"),
        (cancels, WRITE),
    ],
)
def test_a_batch_sends_as_many_statements_as_one_command(create: Factory, last: str, count: int) -> None:
    for broker_id in ("alice", "bob"):
        trading.broker(broker_id, holdings=dict.fromkeys(SYMBOLS, trading.SHARES))
    commands = create(count)
    with CaptureQueriesContext(connection) as captured:
        outcomes = service.execute(commands)
    sent = [str(query["sql"]).strip() for query in captured]
    steps = [FIND, LOCK, READ, last] if create is cancels else [LOCK, READ, last]
    expected = [f"BEGIN; {steps[0]}", *steps[1:]]
    assert [text[: len(start)] for text, start in zip(sent, expected, strict=True)] == expected
    assert (sent[-1].endswith("COMMIT")) == (last == WRITE)
    assert all(isinstance(outcome, ExchangeError) is (create is unfundable_bids) for outcome in outcomes)


# --- Commands of one batch ------------------------------------------------------------------------------------------


def execute(*commands: Command) -> list[str]:
    """Execute a batch and return a summary of each outcome."""
    return [summary(outcome) for outcome in batches.execute(commands, split_deep=True)]


def summary(outcome: Outcome) -> str:
    """The order's status, the error's code or the outcome's class name."""
    match outcome:
        case Accepted():
            return str(outcome.order.status)
        case ExchangeError():
            return outcome.code
    return type(outcome).__name__


@pytest.fixture
def brokers() -> None:
    trading.broker("alice")
    trading.broker("bob")


@pytest.mark.usefixtures("brokers")
def test_a_rejection_does_not_affect_the_rest_of_its_batch() -> None:
    outcomes = execute(
        order(Side.ASK, 5, "10.00", by="alice"),
        order(Side.BID, 10**6, "10.00", by="bob"),
        order(Side.BID, 1, "10.00", by="nobody"),
        order(Side.BID, 1, "10.00", by="bob", symbol="NONE"),
        order(Side.BID, 1, "10.001", by="bob"),
        order(Side.BID, 5, "10.00", by="bob"),
    )
    rejections = ["insufficient_balance", "broker_not_found", "symbol_not_found", "validation_error"]
    assert outcomes == ["pending", *rejections, "filled"]
    assert trading.fills() == [(5, Decimal(10))]
    assert Order.objects.count() == 2


@pytest.mark.usefixtures("brokers")
def test_cash_reserved_by_one_command_is_missing_for_the_next() -> None:
    bid = order(Side.BID, 60_000, "10.00", by="bob")
    assert execute(bid, order(Side.BID, 60_000, "10.00", by="bob")) == ["pending", "insufficient_balance"]
    assert trading.balance("bob") == (trading.CASH, Decimal(600_000))


@pytest.mark.usefixtures("brokers")
def test_the_second_of_two_orders_with_one_client_order_id_is_a_replay() -> None:
    first, second = (order(Side.BID, 5, "10.00", client_order_id="twice") for _ in range(2))
    one, other = service.execute([first, second])
    assert isinstance(one, Accepted)
    assert isinstance(other, Replayed)
    assert other.order_id == one.order.id == first.order_id
    assert Order.objects.count() == 1
    assert trading.balance("alice") == (trading.CASH, Decimal(50))


@pytest.mark.usefixtures("brokers")
def test_a_different_order_with_a_client_order_id_of_its_batch_is_a_conflict() -> None:
    bids = [order(Side.BID, quantity, "10.00", client_order_id="twice") for quantity in (5, 6)]
    assert execute(*bids) == ["pending", "client_order_id_conflict"]
    assert Order.objects.get().quantity == 5


@pytest.mark.usefixtures("brokers")
def test_a_rejected_order_leaves_its_client_order_id_to_the_next() -> None:
    bids = [order(Side.BID, quantity, "10.00", client_order_id="twice") for quantity in (10**6, 6)]
    assert execute(*bids) == ["insufficient_balance", "pending"]


@pytest.mark.usefixtures("brokers")
def test_a_taker_before_the_cancel_of_its_maker_trades_with_it() -> None:
    maker = place(Side.ASK, 5, "10.00", by="alice")
    outcomes = execute(order(Side.BID, 5, "10.00", by="bob"), CancelOrder(maker.pk, "alice"))
    assert outcomes == ["filled", "order_not_cancellable"]
    assert trading.fills() == [(5, Decimal(10))]


@pytest.mark.usefixtures("brokers")
def test_a_taker_after_the_cancel_of_its_maker_fills_the_next_maker() -> None:
    maker, next_maker = place(Side.ASK, 5, "10.00", by="alice"), place(Side.ASK, 5, "11.00", by="alice")
    outcomes = execute(CancelOrder(maker.pk, "alice"), order(Side.BID, 5, "11.00", by="bob"))
    assert outcomes == ["Cancelled", "filled"]
    assert trading.fills() == [(5, Decimal(11))]
    next_maker.refresh_from_db()
    assert next_maker.status == OrderStatus.FILLED


@pytest.mark.usefixtures("brokers")
def test_orders_of_one_batch_match_by_price_and_then_position() -> None:
    last, first, second = (order(Side.ASK, 5, price, by="alice") for price in ("11.00", "10.00", "10.00"))
    outcomes = service.execute([last, first, second, order(Side.BID, 12, "11.00", by="bob")])
    taken = outcomes[-1]
    assert isinstance(taken, Accepted)
    assert [trade.ask_order_id for trade in taken.trades] == [first.order_id, second.order_id, last.order_id]
    assert [trade.quantity for trade in taken.trades] == [5, 5, 2]


@pytest.mark.usefixtures("brokers")
def test_takers_of_one_batch_share_the_resting_orders() -> None:
    for price in ("10.00", "11.00", "12.00"):
        place(Side.ASK, 5, price, by="alice")
    takers = [order(Side.BID, 7, None, by="bob"), order(Side.BID, 8, "12.00", by="bob")]
    assert execute(*takers) == ["filled", "filled"]
    assert trading.fills() == [(5, Decimal(10)), (2, Decimal(11)), (3, Decimal(11)), (5, Decimal(12))]


@pytest.mark.usefixtures("brokers")
def test_an_order_cancelled_twice_in_one_batch_is_cancelled_once() -> None:
    bid = place(Side.BID, 5, "10.00")
    assert execute(CancelOrder(bid.pk, "alice"), CancelOrder(bid.pk, "alice")) == ["Cancelled", "order_not_cancellable"]
    assert trading.balance("alice") == (trading.CASH, Decimal(0))


# --- Maker limit ----------------------------------------------------------------------------------------------------

MAKERS_MAX = 5


@pytest.fixture
def limited(brokers: None, settings: Settings) -> None:
    trading.limit_makers(settings, MAKERS_MAX)


def place_asks(count: int) -> None:
    """Place asks of one share each, at one price."""
    for _ in range(count):
        place(Side.ASK, 1, "10.00", by="alice")


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("price", ["10.00", None])
def test_a_command_fills_makers_up_to_the_limit(price: str | None) -> None:
    place_asks(MAKERS_MAX + 1)
    assert place(Side.BID, MAKERS_MAX, price, by="bob").status == OrderStatus.FILLED
    assert Trade.objects.count() == MAKERS_MAX


@pytest.mark.usefixtures("limited")
def test_a_command_that_empties_the_book_may_exceed_the_limit() -> None:
    place_asks(MAKERS_MAX)
    assert place(Side.BID, MAKERS_MAX + 1, "10.00", by="bob").status == OrderStatus.PARTIALLY_FILLED


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("time_in_force", [TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK])
@pytest.mark.parametrize("price", ["10.00", None])
def test_a_command_that_needs_more_makers_than_the_limit_is_rejected(
    price: str | None, time_in_force: TimeInForce
) -> None:
    place_asks(MAKERS_MAX + 1)
    taker = order(Side.BID, MAKERS_MAX + 1, price, by="bob", time_in_force=time_in_force)
    assert trading.rejection_code(taker) == "too_many_fills"


@pytest.mark.usefixtures("limited")
def test_commands_jointly_over_the_maker_limit_all_succeed() -> None:
    place_asks(3 * MAKERS_MAX)
    takers = [order(Side.BID, MAKERS_MAX - 1, "10.00", by="bob") for _ in range(3)]
    assert execute(*takers) == ["filled"] * 3
    assert Trade.objects.count() == 3 * (MAKERS_MAX - 1)
    assert [taken.sequence for taken in by_arrival("bob")] == [3 * MAKERS_MAX + 1 + n * MAKERS_MAX for n in range(3)]


def by_arrival(broker_id: str) -> Iterator[Order]:
    return iter(Order.objects.filter(broker=broker_id).order_by("sequence"))


@pytest.mark.usefixtures("limited")
def test_a_command_over_the_maker_limit_does_not_affect_its_batch() -> None:
    place_asks(2 * MAKERS_MAX)
    outcomes = execute(*(order(Side.BID, quantity, "10.00", by="bob") for quantity in (2, MAKERS_MAX + 1, 3)))
    assert outcomes == ["filled", "too_many_fills", "filled"]


# --- Atomicity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "corrupted",
    [
        {"reserved_cash": 0},  # violates a CHECK when orders, trades and balances are saved
        {"event_sequence": 0},  # violates a unique index when events are saved, which is the last step
    ],
)
def test_a_failed_save_rolls_back_the_whole_batch(corrupted: dict[str, int]) -> None:
    trading.broker("alice", holdings={"AAPL": 100, "MSFT": 100})
    trading.broker("bob")
    place(Side.BID, 1, "10.00", by="bob")
    place(Side.ASK, 1, "10.00", by="alice")  # bob's first event
    place(Side.BID, 10, "10.00", by="bob")
    bob = Broker.objects.filter(pk="bob")
    original = {name: getattr(bob.get(), name) for name in corrupted}
    bob.update(**corrupted)
    before = trading.snapshot()
    with pytest.raises(IntegrityError):
        service.execute([order(Side.ASK, 1, "11.00", symbol="MSFT"), order(Side.ASK, 10, "10.00", by="alice")])
    assert trading.snapshot() == before
    bob.update(**original)


def test_a_failed_batch_releases_its_locks() -> None:
    trading.broker("alice")
    trading.broker("bob")
    place(Side.BID, 10, "10.00", by="bob")
    bob = Broker.objects.filter(pk="bob")
    bob.update(reserved_cash=0)
    with pytest.raises(IntegrityError):
        execute_one(order(Side.ASK, 10, "10.00", by="alice"))
    bob.update(reserved_cash=100)
    assert place(Side.ASK, 10, "10.00", by="alice").status == OrderStatus.FILLED


# --- Deep books -----------------------------------------------------------------------------------------------------

RESTING = 20_000
_INSERT_ASKS = """
INSERT INTO orders_order (id, broker_id, document_number, symbol, sequence, type, side, price, quantity,
  filled_quantity, filled_value, status, time_in_force, expires_at, created_at)
SELECT gen_random_uuid(), 'alice', '12345678900', 'AAPL', n, 'limit', 'ask', 10 + (n * 7919 %% 10000) / 100.0, 2, 0, 0,
  'pending', CASE WHEN n %% 2 = 0 THEN 'gtc' ELSE 'gtd' END,
  CASE WHEN n %% 2 = 1 THEN now() + interval '1 hour' END, now()
FROM generate_series(1, %s) n
"""


@pytest.fixture
def deep_book() -> None:
    """20,000 asks of two shares each from 10.00 up, two at each price, every second one with an expiry."""
    trading.broker("alice", holdings={"AAPL": 2 * RESTING})
    trading.broker("bob")
    with connection.cursor() as cursor:
        cursor.execute(_INSERT_ASKS, [RESTING])
        Instrument.objects.filter(pk="AAPL").update(sequence=RESTING)
        Holding.objects.filter(broker="alice").update(reserved=2 * RESTING, open_orders=RESTING)
        cursor.execute("ANALYZE orders_order")


def walk_plan(wanted: int, worst_rank: str = "Infinity") -> list[dict[str, Any]]:
    """The plan nodes that read asks for takers of `wanted` shares."""
    demand = {"book": "AAPL", "book_side": "ask", "wanted": wanted, "worst_rank": worst_rank}
    with connection.cursor() as cursor:  # a generic plan, not one for these values
        cursor.execute(
            "PREPARE reachable(json, uuid[], timestamptz, int) AS SELECT * FROM orders_reachable_v2($1, $2, $3, $4)"
        )
        cursor.execute(
            f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE reachable('{json.dumps([demand])}', '{{}}', 'now', {RESTING})"
        )
        (plans,) = cursor.fetchone()
        cursor.execute("DEALLOCATE reachable")
    plan = json.loads(plans) if isinstance(plans, str) else plans
    return [node for node in nodes(plan[0]["Plan"]) if "rank" in node.get("Index Cond", "")]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


@pytest.mark.usefixtures("deep_book")
@pytest.mark.parametrize("worst_rank", ["Infinity", "10.5"])
def test_a_deep_book_is_read_by_index_and_only_as_far_as_needed(worst_rank: str) -> None:
    reads = walk_plan(wanted=6, worst_rank=worst_rank)
    assert {(read["Node Type"], read["Index Name"]) for read in reads} == {("Index Scan", "order_book_in_priority")}
    assert sum(read["Actual Rows"] * read["Actual Loops"] for read in reads) == 3
    assert sum(read.get("Rows Removed by Filter", 0) for read in reads) == 0


@pytest.mark.usefixtures("deep_book")
def test_a_market_order_fills_the_best_asks_of_a_deep_book() -> None:
    taken = execute_one(order(Side.BID, 6, None, by="bob"))
    assert isinstance(taken, Accepted)
    assert [(trade.quantity, trade.price) for trade in taken.trades] == [
        (2, Decimal("10.00")),
        (2, Decimal("10.00")),
        (2, Decimal("10.01")),
    ]
    arrivals = dict(Order.objects.values_list("pk", "sequence"))
    assert [arrivals[trade.ask_order_id] for trade in taken.trades[:2]] == [10_000, 20_000]


# --- Reads ----------------------------------------------------------------------------------------------------------

_INSERT_HISTORY = """
INSERT INTO orders_trade (id, symbol, price, quantity, taker_side, bid_order_id, ask_order_id, bid_broker_id,
  ask_broker_id, executed_at)
SELECT gen_random_uuid(), 'AAPL', 10, 1, 'bid', gen_random_uuid(), o.id, 'bob', 'alice', now()
FROM orders_order o;
INSERT INTO exchange_holding (broker_id, symbol, quantity, reserved)
SELECT 'bob', 'X' || n, 1, 0 FROM generate_series(1, 2000) n;
UPDATE orders_order SET filled_quantity = 1, status = 'partially_filled' WHERE sequence = 1;
UPDATE orders_order SET broker_id = 'bob', client_order_id = 'used' WHERE sequence = 2;
UPDATE orders_order SET expires_at = now() WHERE sequence = 3
"""


def one_of_each_kind(maker: UUID) -> list[Command]:
    return [
        order(Side.BID, 3, "10.00", by="bob", client_order_id="new"),
        order(Side.BID, 1, "10.00", by="bob", client_order_id="used"),
        CancelOrder(maker, "alice"),
        CancelOrders("bob", "AAPL", side=Side.ASK),
        ExpireOrders("AAPL"),
    ]


@pytest.mark.usefixtures("brokers")
@pytest.mark.parametrize("few", [0, 3])
def test_plans_made_for_small_tables_read_few_rows_of_large_ones(few: int) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("TRUNCATE orders_order, orders_trade")  # also small on disk
        cursor.execute("DISCARD PLANS")
        cursor.execute(_INSERT_ASKS, [few])
        cursor.execute("ANALYZE orders_order, orders_trade, exchange_holding")
        trading.load_market(cursor, one_of_each_kind(uuid4()))
        Order.objects.all().delete()
        cursor.execute(_INSERT_ASKS, [RESTING])
        cursor.execute(_INSERT_HISTORY)
        maker = Order.objects.get(sequence=1).pk
        before = rows_read()
        market = trading.load_market(cursor, one_of_each_kind(maker))
        read = rows_read() - before
        transaction.set_rollback(True)
    assert {order.sequence for order in market.orders.values()} == {1, 2, 3, 10_000, 20_000}
    assert len(market.earlier_trades[maker]) == 1
    assert set(market.brokers["bob"].used_client_order_ids) == {"used"}
    assert read.total() < 50, read
    assert not {"orders_order", "orders_trade", "exchange_holding"} & read.keys()


def assert_stored(state: object, table: str, names: Sequence[str], key: str, value: str | UUID) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(names)} FROM {table} WHERE {key} = %s", [value])  # noqa: S608
        (row,) = cursor.fetchall()
    assert [str(getattr(state, name)) for name in names] == [str(each) for each in row]


ACCOUNT = ["id", "status", "cash", "reserved_cash", "event_sequence"]
BOOK = ["symbol", "status", "tick_size", "lot_size", "pricing", "sequence"]
POSITION = ["quantity", "reserved", "open_orders"]


def test_the_loaded_market_equals_the_tables_to_the_digit() -> None:
    trading.instrument(tick="0.0001", lot=1, pricing=Pricing.MAKER)
    trading.broker("alice", cash=10**15)
    trading.broker("bob")
    expires_at = database_now() + timedelta(days=1)
    bid = place(Side.BID, 10**12, "0.0007", client_order_id="x", time_in_force=TimeInForce.GTD, expires_at=expires_at)
    place(Side.ASK, 4, "0.0001", by="bob")
    ask = place(Side.ASK, 1, "100000000000000.1235", by="bob")
    with transaction.atomic(), connection.cursor() as cursor:
        Broker.objects.filter(pk="alice").update(cash=Decimal("12345678901234567890123456.7891"))
        Holding.objects.filter(broker="alice").update(quantity=Decimal(10**29 + 1))
        market = trading.load_market(
            cursor, [order(Side.BID, 1, None, client_order_id="x"), CancelOrder(bid.pk, "alice")]
        )
        alice = market.brokers["alice"]
        used, (trade,) = alice.used_client_order_ids["x"], market.earlier_trades[bid.pk]
        for state in (market.orders[bid.pk], market.orders[ask.pk], used):
            assert_stored(state, "orders_order", state.__struct_fields__, "id", state.id)
        assert_stored(trade, "orders_trade", trade.__struct_fields__, "id", trade.id)
        assert_stored(alice, "exchange_broker", ACCOUNT, "id", "alice")
        assert_stored(market.books["AAPL"], "exchange_instrument", BOOK, "symbol", "AAPL")
        assert_stored(alice.positions["AAPL"], "exchange_holding", POSITION, "broker_id", "alice")
        transaction.set_rollback(True)
    assert used == market.orders[bid.pk]
    assert (used.side, used.expires_at, used.created_at) == (Side.BID, expires_at, bid.created_at)
    assert market.books["AAPL"].resting == {Side.BID: [], Side.ASK: [market.orders[ask.pk]]}


# --- Lost commit responses ------------------------------------------------------------------------------------------


def test_was_saved_is_false_if_another_transaction_expired_an_order() -> None:
    trading.broker("alice")
    due, kept = place(Side.ASK, 1, "11.00"), place(Side.ASK, 1, "10.00")
    Order.objects.filter(pk=due.pk).update(expires_at=database_now())
    cancels = [CancelOrder(due.pk, "alice"), CancelOrder(kept.pk, "alice")]
    with own_transaction() as cursor:
        market = trading.load_market(cursor, cancels)
        for command in cancels:
            market.apply(command)
    expiry.expire_due_orders()  # a sweep expires the first order, as the cancels would
    with transaction.atomic(), connection.cursor() as cursor:
        assert not store.was_saved(cursor, market)


def test_was_saved_is_true_if_the_batch_expired_an_order() -> None:
    trading.broker("alice")
    due, kept = place(Side.ASK, 1, "11.00"), place(Side.ASK, 1, "10.00")
    Order.objects.filter(pk=due.pk).update(expires_at=database_now())
    cancels = [CancelOrder(due.pk, "alice"), CancelOrder(kept.pk, "alice")]
    with own_transaction() as cursor:
        market = trading.load_market(cursor, cancels)
        for command in cancels:
            market.apply(command)
        store.save_market(cursor, market)
    with transaction.atomic(), connection.cursor() as cursor:
        assert store.was_saved(cursor, market)


# --- Transactions ---------------------------------------------------------------------------------------------------


def test_a_batch_is_not_executed_inside_an_outer_transaction() -> None:
    trading.broker("alice")
    with transaction.atomic(), pytest.raises(RuntimeError):
        service.execute([order(Side.BID, 1, "10.00")])
    with own_transaction() as cursor:
        cursor.execute("SELECT 1")
        with pytest.raises(RuntimeError):
            service.execute([order(Side.BID, 1, "10.00")])
    assert not Order.objects.exists()


def test_a_failed_batch_is_rolled_back_and_leaves_a_usable_connection() -> None:
    trading.broker("alice")
    taken = place(Side.BID, 1, "10.00")
    with pytest.raises(IntegrityError):
        service.execute([order(Side.BID, 1, "9.00"), order(Side.BID, 1, "10.00", order_id=taken.pk)])
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id_if_assigned() IS NULL AND now() = statement_timestamp()")
        assert cursor.fetchone() == (True,), "a transaction is open"
    assert Order.objects.count() == 1
