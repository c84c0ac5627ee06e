"""Invariants under concurrent changes: real threads, real processes, real commits.

Every test ends with a check of all invariants (see conftest.py), so tests assert only additional facts.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import count
from random import Random
from threading import Event
from typing import Any
from uuid import UUID

import httpx
import pytest
from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import Max, Sum
from pytest_django import Settings

from config.local.processes import wait_until
from exchange import services as exchange_services
from exchange.database import database_now, lock_timeout, own_transaction
from exchange.errors import (
    BrokerSuspended,
    ClientOrderIdConflict,
    ExchangeError,
    InstrumentInUse,
    InsufficientBalance,
    InsufficientHoldings,
    OutcomeUnknown,
    SymbolNotFound,
    ValidationFailed,
)
from exchange.models import AuditHead, Broker, Holding, Instrument, Transfer
from exchange.rules import BrokerStatus, Pricing
from orders import expiry, services, tasks
from orders.enums import CancelReason, OrderStatus, OrderType, Side, TimeInForce
from orders.matching import service, store
from orders.matching.commands import Accepted, CancelOrder, Command, ExpireOrders, Outcome, PlaceOrder, Replayed
from orders.models import Order, Trade
from tests import live, trading
from tests.exchange.client import Client
from tests.trading import BY, execute_one, order, place, run_concurrently, start_thread

pytestmark = pytest.mark.django_db(transaction=True)

THREADS = 16  # below the size of the pool
PAIRS = 100
WAIT_SECONDS = 5.0


# --- Crossed books --------------------------------------------------------------------------------------------------


def pairs(seed: int = 1) -> list[PlaceOrder]:
    """Crossing bids and asks of equal total quantity, so that all of them trade in any order."""
    random = Random(seed)
    quantities = [random.randint(1, 20) for _ in range(PAIRS)]
    bids = [order(Side.BID, quantity, f"10.{random.randint(0, 50):02}", by="alice") for quantity in quantities]
    random.shuffle(quantities)
    asks = [order(Side.ASK, quantity, f"9.{random.randint(50, 99)}", by="bob") for quantity in quantities]
    return [command for pair in zip(bids, asks, strict=True) for command in pair]


def execute_each(commands: Sequence[Command]) -> list[Outcome]:
    return [execute_one(command) for command in commands]


def assert_all_pairs_traded() -> None:
    assert Order.objects.count() == 2 * PAIRS
    assert not Order.objects.exclude(status=OrderStatus.FILLED).exists()
    traded = sum(command.quantity for command in pairs() if command.side is Side.ASK)
    assert Trade.objects.aggregate(traded=Sum("quantity"))["traded"] == traded
    assert trading.shares("alice") == (trading.SHARES + traded, 0)
    assert trading.shares("bob") == (trading.SHARES - traded, 0)


def test_concurrent_bids_and_asks_never_leave_a_crossed_book() -> None:
    trading.broker("alice")
    trading.broker("bob")
    commands = pairs()
    run_concurrently([partial(execute_each, commands[thread::THREADS]) for thread in range(THREADS)])
    assert_all_pairs_traded()


PROCESSES = 3
PROCESS = """
import signal, sys, django
signal.alarm(60)
django.setup()
from tests.orders.matching import test_concurrency
print("ready", flush=True)
sys.stdin.readline()
test_concurrency.place_share_of_pairs(int(sys.argv[1]))
"""


def place_share_of_pairs(process: int) -> None:
    """Execute one process's share of the pairs, in four threads."""
    share = pairs()[process::PROCESSES]
    run_concurrently([partial(execute_each, share[thread::4]) for thread in range(4)])


def start_process(number: int) -> "subprocess.Popen[str]":
    base, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", PROCESS, str(number)],
        env=os.environ | {"DATABASE_URL": f"{base}/{connection.settings_dict['NAME']}"},
        cwd=live.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.processes
def test_bids_and_asks_of_several_processes_never_leave_a_crossed_book() -> None:
    trading.broker("alice")
    trading.broker("bob")
    processes = [start_process(number) for number in range(PROCESSES)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=trading.TIMEOUT_SECONDS)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES, errors
    assert_all_pairs_traded()


# --- client_order_id ------------------------------------------------------------------------------------------------


def test_concurrent_orders_with_one_client_order_id_create_one_order() -> None:
    trading.broker("alice")
    jobs = [partial(execute_one, order(Side.BID, 10, "10.00", client_order_id="once")) for _ in range(THREADS)]
    outcomes = run_concurrently(jobs)
    accepted = [outcome.order.id for outcome in outcomes if isinstance(outcome, Accepted)]
    replayed = [outcome.order_id for outcome in outcomes if isinstance(outcome, Replayed)]
    assert len(accepted) == 1
    assert replayed == accepted * (THREADS - 1)
    assert list(Order.objects.values_list("pk", flat=True)) == accepted
    assert trading.balance("alice") == (trading.CASH, Decimal(100))


def test_concurrent_posts_with_one_client_order_id_create_one_order(server: live.Server) -> None:
    key = trading.broker("alice")
    body = {
        "broker_id": "alice",
        "document_number": "12345678900",
        "side": "bid",
        "symbol": "AAPL",
        "price": 10,
        "quantity": 10,
        "time_in_force": "gtc",
        "client_order_id": "once",
    }

    def post() -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{server.url}/orders", json=body, headers=headers, timeout=10, trust_env=False)

    responses = run_concurrently([post] * THREADS)
    statuses = Counter((response.status_code, response.headers.get("Idempotent-Replayed")) for response in responses)
    assert statuses == {(201, None): 1, (200, "true"): THREADS - 1}
    assert len({response.json()["order_id"] for response in responses}) == 1
    assert Order.objects.count() == 1
    assert trading.balance("alice") == (trading.CASH, Decimal(100))


# --- Reads after a lock wait ----------------------------------------------------------------------------------------


@contextmanager
def uncommitted(command: Command) -> Iterator[Outcome]:
    """Execute a command like `service.execute`, but commit at the end of the `with` block."""
    with own_transaction() as cursor:
        market = trading.load_market(cursor, [command])
        yield market.apply(command)
        store.save_market(cursor, market)


def awaited_locks() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        (waiting,) = cursor.fetchone()
    return int(waiting)


def wait_for_lock_waiter(count: int = 1) -> None:
    assert wait_until(lambda: awaited_locks() >= count, WAIT_SECONDS), "no lock is awaited"


def test_a_taker_sees_an_order_committed_while_it_waited() -> None:
    trading.broker("alice")
    trading.broker("bob")
    with uncommitted(order(Side.ASK, 10, "10.00", by="alice")):
        taker = start_thread(partial(place, Side.BID, 10, "10.00", by="bob"))
        wait_for_lock_waiter()
    assert taker.result(WAIT_SECONDS).status == OrderStatus.FILLED
    assert trading.fills() == [(10, Decimal(10))]


def test_an_edit_sees_an_order_committed_while_it_waited() -> None:
    trading.broker("alice")
    rules: dict[str, Any] = {"name": "", "tick_size": Decimal("0.05"), "lot_size": 1, "pricing": Pricing.SELLER}
    with uncommitted(order(Side.ASK, 10, "10.01", by="alice")):
        edit = start_thread(partial(services.edit_instrument, "AAPL", **rules, by=BY))
        wait_for_lock_waiter()
    with pytest.raises(ValidationFailed):
        edit.result(WAIT_SECONDS)


def test_a_removal_sees_an_order_committed_while_it_waited() -> None:
    trading.broker("alice")
    trading.instrument("GOOG")
    with uncommitted(order(Side.BID, 10, "10", symbol="GOOG")):
        removal = start_thread(partial(exchange_services.remove_instrument, "GOOG", by=BY))
        wait_for_lock_waiter()
    with pytest.raises(InstrumentInUse):
        removal.result(WAIT_SECONDS)
    assert Order.objects.get().instrument.symbol == "GOOG"


@contextmanager
def uncommitted_removal(symbol: str) -> Iterator[None]:
    """Remove an instrument in another session, which commits at the end of the `with` block."""
    with transaction.atomic():
        AuditHead.objects.select_for_update().get()  # the removal waits for it at last
        removal = start_thread(partial(exchange_services.remove_instrument, symbol, by=BY))
        wait_for_lock_waiter()
        yield
    removal.result(WAIT_SECONDS)


def test_an_order_that_waited_for_a_removal_finds_no_instrument() -> None:
    trading.broker("alice")
    trading.instrument("GOOG")
    with uncommitted_removal("GOOG"):
        outcome = start_thread(partial(execute_one, order(Side.BID, 10, "10", symbol="GOOG")))
        wait_for_lock_waiter(2)
    assert isinstance(outcome.result(WAIT_SECONDS), SymbolNotFound)
    assert not Order.objects.exists()


def test_a_transfer_that_waited_for_a_removal_finds_no_instrument() -> None:
    trading.broker("alice")
    trading.instrument("GOOG")
    with uncommitted_removal("GOOG"):
        booked = start_thread(
            partial(exchange_services.transfer, "alice", reference="r", symbol="GOOG", quantity=1, reason="x", by=BY)
        )
        wait_for_lock_waiter(2)
    with pytest.raises(SymbolNotFound):
        booked.result(WAIT_SECONDS)
    assert not Transfer.objects.filter(reference="r").exists()


def test_an_admission_that_waited_for_a_removal_lists_the_instrument_again() -> None:
    trading.instrument("GOOG", lot=7)
    with uncommitted_removal("GOOG"):
        admission = start_thread(partial(trading.broker, "alice", holdings={"GOOG": 5}))
        wait_for_lock_waiter(2)
    admission.result(WAIT_SECONDS)
    assert trading.shares("alice", "GOOG") == (5, 0)
    assert Instrument.objects.get().lot_size == 1


def test_a_removal_sees_shares_booked_while_it_waited() -> None:
    trading.broker("alice")
    trading.instrument("GOOG")
    with transaction.atomic():
        AuditHead.objects.select_for_update().get()
        booking = start_thread(
            partial(exchange_services.transfer, "alice", reference="r", symbol="GOOG", quantity=1, reason="x", by=BY)
        )
        wait_for_lock_waiter()
        removal = start_thread(partial(exchange_services.remove_instrument, "GOOG", by=BY))
        wait_for_lock_waiter(2)
    booking.result(WAIT_SECONDS)
    with pytest.raises(InstrumentInUse):
        removal.result(WAIT_SECONDS)


def test_a_taker_does_not_fill_an_order_cancelled_while_it_waited() -> None:
    trading.broker("alice")
    trading.broker("bob")
    ask = place(Side.ASK, 10, "10.00", by="alice")
    with uncommitted(CancelOrder(ask.pk, "alice")):
        taker = start_thread(partial(place, Side.BID, 10, "10.00", by="bob"))
        wait_for_lock_waiter()
    assert taker.result(WAIT_SECONDS).status == OrderStatus.PENDING
    assert trading.fills() == []


def test_concurrent_cancels_release_a_reservation_once() -> None:
    trading.broker("alice")
    bid = place(Side.BID, 10, "10.00")
    with uncommitted(CancelOrder(bid.pk, "alice")):
        second = start_thread(partial(trading.cancel, bid))
        wait_for_lock_waiter()
    outcome = second.result(WAIT_SECONDS)
    assert isinstance(outcome, ExchangeError)
    assert outcome.code == "order_not_cancellable"
    assert trading.balance("alice") == (trading.CASH, Decimal(0))


def test_the_clock_is_read_after_the_lock_is_acquired() -> None:
    """Otherwise an order could arrive after another and have an earlier time."""
    trading.broker("alice")
    with uncommitted(order(Side.BID, 1, "10.00")) as first:
        waiting = start_thread(partial(place, Side.BID, 1, "10.00"))
        wait_for_lock_waiter()
        time.sleep(0.3)
        released_at = database_now()
    second = waiting.result(WAIT_SECONDS)
    assert isinstance(first, Accepted)
    assert second.created_at > released_at
    assert second.sequence == first.order.sequence + 1


def test_an_order_that_expires_while_its_taker_waits_does_not_trade() -> None:
    trading.broker("alice")
    trading.broker("bob")
    expires_at = database_now() + timedelta(seconds=0.5)
    place(Side.ASK, 10, "10.00", by="alice", time_in_force=TimeInForce.GTD, expires_at=expires_at)
    with uncommitted(order(Side.BID, 1, "1.00", by="alice")):
        taker = start_thread(partial(place, Side.BID, 10, "10.00", by="bob"))
        wait_for_lock_waiter()
        time.sleep(0.5)
    assert taker.result(WAIT_SECONDS).status == OrderStatus.PENDING
    assert trading.fills() == []


def test_an_instrument_listed_while_its_order_waits_for_another_book_is_not_found() -> None:
    trading.broker("alice", holdings={"AAPL": 100})

    def list_and_rest() -> None:
        trading.broker("bob", holdings={"NEW": 10})
        place(Side.ASK, 1, "10.00", by="bob", symbol="NEW")

    both = [order(Side.BID, 1, "10.00"), order(Side.BID, 1, "10.00", symbol="NEW")]
    with uncommitted(order(Side.BID, 1, "10.00")):
        late = start_thread(partial(service.execute, both))
        wait_for_lock_waiter()
        start_thread(list_and_rest).result(WAIT_SECONDS)
    accepted, rejected = late.result(WAIT_SECONDS)
    assert isinstance(accepted, Accepted)
    assert isinstance(rejected, SymbolNotFound)


def test_takers_of_two_books_do_not_spend_cash_twice() -> None:
    """Only the broker's lock prevents it, because the books differ."""
    trading.broker("alice", cash=100, holdings={})
    trading.broker("bob", holdings={"AAPL": 10, "MSFT": 10})
    with uncommitted(order(Side.BID, 10, "10.00", by="alice", symbol="AAPL")):
        second = start_thread(partial(execute_one, order(Side.BID, 10, "10.00", by="alice", symbol="MSFT")))
        wait_for_lock_waiter()
    assert isinstance(second.result(WAIT_SECONDS), InsufficientBalance)
    assert trading.balance("alice") == (Decimal(100), Decimal(100))


def test_a_transfer_and_an_order_do_not_spend_cash_twice() -> None:
    trading.broker("alice", cash=100)
    withdrawal = partial(exchange_services.transfer, "alice", reference="out", cash=Decimal(-1), reason="out", by=BY)
    with uncommitted(order(Side.BID, 10, "10.00")):
        transfer = start_thread(withdrawal)
        wait_for_lock_waiter()
    assert isinstance(transfer.exception(WAIT_SECONDS), InsufficientBalance)
    assert trading.balance("alice") == (Decimal(100), Decimal(100))


def test_an_order_does_not_sell_shares_transferred_out_while_it_waited() -> None:
    trading.broker("alice", holdings={"AAPL": 10})
    with transaction.atomic():
        Broker.objects.select_for_update(no_key=True).get(pk="alice")
        Transfer.objects.create(
            reference="out",
            broker_id="alice",
            instrument_id="AAPL",
            quantity=-10,
            reason="out",
            created_at=database_now(),
        )
        Holding.objects.filter(broker="alice").update(quantity=0)
        late = start_thread(partial(execute_one, order(Side.ASK, 10, "10.00", by="alice")))
        wait_for_lock_waiter()
    assert isinstance(late.result(WAIT_SECONDS), InsufficientHoldings)


def test_one_client_order_id_in_two_concurrent_books_is_a_conflict() -> None:
    """Only the broker's lock prevents two orders, because the books differ."""
    trading.broker("alice", holdings={"AAPL": 10, "MSFT": 10})
    with uncommitted(order(Side.BID, 1, "10.00", symbol="AAPL", client_order_id="once")):
        late = start_thread(partial(execute_one, order(Side.BID, 1, "10.00", symbol="MSFT", client_order_id="once")))
        wait_for_lock_waiter()
    assert isinstance(late.result(WAIT_SECONDS), ClientOrderIdConflict)
    assert Order.objects.count() == 1


def test_equal_prices_fill_by_arrival_under_concurrency() -> None:
    trading.broker("alice")
    trading.broker("bob")
    ask = partial(place, Side.ASK, 5, "10.00", by="alice")
    asks = sorted(run_concurrently([ask] * THREADS), key=lambda order: order.sequence)
    taken = execute_one(order(Side.BID, 5 * THREADS - 2, "10.00", by="bob"))
    assert isinstance(taken, Accepted)
    assert [trade.ask_order_id for trade in taken.trades] == [ask.pk for ask in asks]
    assert [trade.quantity for trade in taken.trades] == [5] * (THREADS - 1) + [3]
    assert [ask.created_at for ask in asks] == sorted(ask.created_at for ask in asks)


# --- Conservation of cash and shares --------------------------------------------------------------------------------

BROKERS = ["alice", "bob", "carol", "dave"]
SYMBOLS = ["AAPL", "GOOG", "MSFT", "PETR4", "VALE3"]


@dataclass
class Trader:
    """A client with seeded random commands, which remembers its orders to cancel some of them."""

    random: Random
    symbols: list[str]
    now: datetime
    orders: list[tuple[UUID, str]] = field(default_factory=list)

    def execute_batch(self, size: int) -> None:
        for outcome in service.execute([self.new_command() for _ in range(size)]):
            if isinstance(outcome, Accepted):
                self.orders.append((outcome.order.id, outcome.order.broker_id))

    def new_command(self) -> Command:
        chance = self.random.random()
        if chance < 0.2 and self.orders:
            return CancelOrder(*self.orders.pop(self.random.randrange(len(self.orders))))
        if chance < 0.25:
            return ExpireOrders(self.random.choice(self.symbols))
        return self.new_order()

    def new_order(self) -> PlaceOrder:
        is_market = self.random.random() < 0.2
        immediate = (TimeInForce.IOC, TimeInForce.FOK)
        time_in_force = self.random.choice(immediate if is_market else tuple(TimeInForce))
        lifetime = timedelta(seconds=self.random.uniform(0.1, 5)) if time_in_force is TimeInForce.GTD else None
        return order(
            self.random.choice(list(Side)),
            self.random.randint(1, 50),
            None if is_market else str(Decimal(self.random.randint(99_000, 101_000)).scaleb(-4)),
            by=self.random.choice(BROKERS),
            symbol=self.random.choice(self.symbols),
            time_in_force=time_in_force,
            expires_at=self.now + lifetime if lifetime else None,
        )


def traders(number: int, symbols: list[str]) -> list[Trader]:
    now = database_now()
    return [Trader(Random(seed), symbols, now) for seed in range(number)]


def totals() -> dict[str, Any]:
    """The total cash, and the total shares of each instrument."""
    cash = Broker.objects.aggregate(cash=Sum("cash"))["cash"]
    shares = Holding.objects.values_list("instrument").annotate(quantity=Sum("quantity")).order_by("instrument")
    return {"cash": cash, **dict(shares)}


def test_concurrent_random_orders_conserve_cash_and_shares() -> None:
    trading.instrument(tick="0.0001")
    for broker_id in BROKERS:
        trading.broker(broker_id, cash=2_000, holdings={"AAPL": 300})  # low enough for some rejections
    before = totals()

    def trade(trader: Trader) -> None:
        for _ in range(60):
            trader.execute_batch(1)

    run_concurrently([partial(trade, trader) for trader in traders(8, ["AAPL"])])
    assert totals() == before == {"cash": Decimal(8_000), "AAPL": Decimal(1_200)}
    assert Trade.objects.count() > 50
    assert set(Order.objects.values_list("type", "time_in_force").distinct()) >= {
        *[(OrderType.LIMIT, time_in_force) for time_in_force in TimeInForce],
        *[(OrderType.MARKET, time_in_force) for time_in_force in (TimeInForce.IOC, TimeInForce.FOK)],
    }


# --- Deadlocks ------------------------------------------------------------------------------------------------------

DEADLOCK_SECONDS = 3.0


def count_deadlocks() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        (number,) = cursor.fetchone()
    return int(number)


def repeat_until(is_over: Callable[[], bool], action: Callable[[], object]) -> int:
    """Repeat `action` until `is_over`. Return the number of times."""
    for times in count():
        if is_over():
            return times
        action()
    raise AssertionError


def transfer_randomly(random: Random, references: Iterator[int]) -> None:
    """Transfer cash or shares in or out, which may be rejected."""
    amount: dict[str, Any] = {"cash": Decimal(random.randint(-500, 500)) or Decimal(1)}
    if random.random() < 0.5:
        amount = {"symbol": random.choice(SYMBOLS), "quantity": random.randint(-50, 50) or 1}
    reference = f"transfer-{next(references)}"
    with suppress(InsufficientBalance, InsufficientHoldings):
        exchange_services.transfer(random.choice(BROKERS), reference=reference, reason="test", **amount, by=BY)


def suspend_and_reinstate(random: Random) -> None:
    broker_id = random.choice(BROKERS)
    services.suspend(broker_id, cancel_orders=random.random() < 0.5, by=BY)
    time.sleep(0.01)
    services.reinstate(broker_id, by=BY)
    time.sleep(0.05)


def cancel_all_of_one_broker(random: Random) -> None:
    services.cancel_all(random.choice(BROKERS), reason=CancelReason.BY_OPERATOR)
    time.sleep(0.1)


def halt_and_resume(random: Random) -> None:
    symbol = random.choice(SYMBOLS)
    exchange_services.halt(symbol, by=BY)
    time.sleep(0.01)
    exchange_services.resume(symbol, by=BY)
    time.sleep(0.05)


def test_random_orders_and_operator_actions_never_deadlock() -> None:
    for symbol in SYMBOLS:
        trading.instrument(symbol, tick="0.0001")
    for broker_id in BROKERS:
        trading.broker(broker_id, holdings=dict.fromkeys(SYMBOLS, 10_000))
    before, deadline = count_deadlocks(), time.monotonic() + DEADLOCK_SECONDS

    def is_over() -> bool:
        """After `DEADLOCK_SECONDS` and 100 trades, and after a minute at the latest."""
        overdue = time.monotonic() - deadline
        return overdue > 0 and (Trade.objects.count() > 100 or overdue > 60)

    def trade(trader: Trader) -> None:
        trader.execute_batch(trader.random.randint(1, 8))

    actions: list[Callable[[], object]] = [partial(trade, trader) for trader in traders(10, SYMBOLS)]
    actions += [partial(transfer_randomly, Random(1), count()), partial(suspend_and_reinstate, Random(2))]
    actions += [partial(cancel_all_of_one_broker, Random(3)), partial(halt_and_resume, Random(4))]
    times = run_concurrently(
        [partial(repeat_until, is_over, action) for action in actions]
    )  # a deadlock raises in its victim
    assert min(times) > 0
    assert count_deadlocks() == before
    assert Trade.objects.count() > 100


def test_batches_over_books_in_opposite_orders_never_deadlock() -> None:
    for broker_id in BROKERS:
        trading.broker(broker_id, holdings=dict.fromkeys(SYMBOLS, 10_000))
    before = count_deadlocks()

    def trade(symbols: list[str], brokers: list[str]) -> None:
        for _ in range(40):
            service.execute(
                [
                    order(side, 1, "10.00", by=by, symbol=symbol)
                    for symbol in symbols
                    for by, side in zip(brokers, [Side.BID, Side.ASK], strict=True)
                ]
            )

    directions = [(SYMBOLS, ["alice", "bob"]), (SYMBOLS[::-1], ["bob", "alice"])]
    run_concurrently([partial(trade, *direction) for direction in directions * 4])
    assert count_deadlocks() == before
    assert Trade.objects.count() == 8 * 40 * len(SYMBOLS)


def test_batches_of_different_books_with_shared_brokers_never_deadlock() -> None:
    """Only the order of the brokers' locks prevents deadlocks, because no book is shared."""
    for broker_id in BROKERS:
        trading.broker(broker_id, holdings=dict.fromkeys(SYMBOLS, 10_000))
    before = count_deadlocks()

    def trade(symbol: str, brokers: list[str]) -> None:
        for _ in range(40):
            service.execute([order(side, 1, "10.00", by=by, symbol=symbol) for side in Side for by in brokers])

    run_concurrently([partial(trade, symbol, BROKERS[n % 4 :] + BROKERS[: n % 4]) for n, symbol in enumerate(SYMBOLS)])
    assert count_deadlocks() == before
    assert Trade.objects.count() == 40 * len(SYMBOLS) * len(BROKERS)


# --- Suspension -----------------------------------------------------------------------------------------------------

SUSPENSION_ROUNDS = 5


def test_an_order_that_waited_for_a_suspension_is_rejected() -> None:
    trading.broker("alice")
    with transaction.atomic():
        Broker.objects.filter(pk="alice").update(status=BrokerStatus.SUSPENDED)
        late = start_thread(partial(execute_one, order(Side.BID, 1, "10.00", by="alice")))
        wait_for_lock_waiter()
    assert isinstance(late.result(WAIT_SECONDS), BrokerSuspended)
    assert Order.objects.count() == 0


def test_a_suspension_cancels_an_order_that_it_waited_for() -> None:
    trading.broker("alice")
    with uncommitted(order(Side.BID, 1, "10.00", by="alice")):
        suspension = start_thread(partial(services.suspend, "alice", cancel_orders=True, by=BY))
        wait_for_lock_waiter()
    assert suspension.result(WAIT_SECONDS) == 1
    assert [(order.status, order.cancel_reason) for order in Order.objects.all()] == [
        (OrderStatus.CANCELLED, CancelReason.BROKER_SUSPENDED)
    ]


def test_no_order_rests_after_a_suspension_with_cancels() -> None:
    symbols = SYMBOLS[:3]
    trading.broker("alice", holdings=dict.fromkeys(symbols, 10_000))
    for _ in range(SUSPENSION_ROUNDS):
        is_suspended, placed = Event(), Event()

        def place_until_suspended(symbol: str, is_suspended: Event = is_suspended, placed: Event = placed) -> Outcome:
            """Place orders. Return the outcome of the first one sent after the suspension returned."""
            while True:
                is_last = is_suspended.is_set()
                outcome = execute_one(order(Side.BID, 1, "0.01", by="alice", symbol=symbol))
                if isinstance(outcome, Accepted):
                    placed.set()
                if is_last:
                    return outcome

        placing = [start_thread(partial(place_until_suspended, symbol)) for symbol in symbols * 3]
        assert placed.wait(WAIT_SECONDS)
        cancelled = services.suspend("alice", cancel_orders=True, by=BY)
        is_suspended.set()
        assert not Order.objects.working().filter(broker="alice").exists()
        assert [type(future.result(WAIT_SECONDS)) for future in placing] == [BrokerSuspended] * len(placing)
        assert not Order.objects.working().filter(broker="alice").exists()
        assert cancelled > 0
        services.reinstate("alice", by=BY)


# --- Halts ----------------------------------------------------------------------------------------------------------


def test_an_order_that_waited_for_a_halt_is_rejected() -> None:
    trading.broker("alice")
    with transaction.atomic():
        Instrument.objects.filter(pk="AAPL").update(status="halted")
        late = start_thread(partial(execute_one, order(Side.BID, 1, "10.00")))
        wait_for_lock_waiter()
    outcome = late.result(WAIT_SECONDS)
    assert isinstance(outcome, ExchangeError)
    assert outcome.code == "instrument_halted"
    assert Order.objects.aggregate(last=Max("sequence"))["last"] is None


def suspend_with_short_lock_timeout(broker_id: str) -> int:
    with lock_timeout("100ms"):
        return services.suspend(broker_id, cancel_orders=True, by=BY)


def test_a_suspension_with_failed_cancels_is_an_unknown_outcome() -> None:
    trading.broker("alice")
    trading.broker("bob")
    place(Side.ASK, 1, "10.00", by="alice")
    with uncommitted(order(Side.BID, 1, "9.00", by="bob")):
        suspension = start_thread(partial(suspend_with_short_lock_timeout, "alice"))
        with pytest.raises(OutcomeUnknown):
            suspension.result(WAIT_SECONDS)
    assert Broker.objects.get(pk="alice").status == BrokerStatus.SUSPENDED


# --- Reads and sweeps during writes ---------------------------------------------------------------------------------


def test_an_order_read_during_trades_agrees_with_its_trades() -> None:
    alice = Client(trading.broker("alice"))
    trading.broker("bob")
    ask = place(Side.ASK, 10, "10.00", by="alice")
    place(Side.BID, 3, "10.00", by="bob")

    def trade_before_each_read(execute: Any, sql: str, *arguments: Any) -> Any:
        if "orders_" in sql:
            start_thread(partial(place, Side.BID, 1, "10.00", by="bob")).result(WAIT_SECONDS)
        return execute(sql, *arguments)

    with connection.execute_wrapper(trade_before_each_read):
        body = alice.get(f"/orders/{ask.pk}").body
    assert body["filled_quantity"] == sum(trade["quantity"] for trade in body["trades"]) == 3 + 1


def test_expiry_skips_locked_books_and_brokers_until_the_next_sweep() -> None:
    for broker_id in ["alice", "bob", "carol"]:
        trading.broker(broker_id)
    trading.instrument("GOOG")
    expiring: dict[str, Any] = {"time_in_force": TimeInForce.GTD, "expires_at": database_now() + timedelta(hours=1)}
    in_locked_book = place(Side.BID, 1, "10.00", **expiring)
    of_locked_broker = place(Side.BID, 1, "10.00", symbol="GOOG", by="bob", **expiring)
    other = place(Side.BID, 1, "10.00", symbol="GOOG", by="carol", **expiring)
    Order.objects.update(expires_at=database_now())

    def statuses() -> list[str]:
        return [Order.objects.get(pk=each.pk).status for each in (in_locked_book, of_locked_broker, other)]

    with transaction.atomic():
        Instrument.objects.select_for_update(no_key=True).get(pk="AAPL")
        Broker.objects.select_for_update(no_key=True).get(pk="bob")
        start_thread(tasks.sweep_expired).result(settings.DATABASE_LOCK_TIMEOUT_MS / 1000 / 2)
        assert statuses() == [OrderStatus.PENDING, OrderStatus.PENDING, OrderStatus.EXPIRED]
    tasks.sweep_expired()
    assert statuses() == [OrderStatus.EXPIRED] * 3


def test_only_one_process_sweeps_at_a_time() -> None:
    trading.broker("alice")
    due = place(Side.BID, 1, "10.00", time_in_force=TimeInForce.GTD, expires_at=database_now() + timedelta(hours=1))
    Order.objects.update(expires_at=database_now())
    with expiry._sweep_lock() as is_ours:
        assert is_ours
        start_thread(tasks.sweep_expired).result(WAIT_SECONDS)
        due.refresh_from_db()
        assert due.status == OrderStatus.PENDING
    start_thread(tasks.sweep_expired).result(WAIT_SECONDS)
    due.refresh_from_db()
    assert due.status == OrderStatus.EXPIRED


def test_a_frozen_process_loses_the_sweep(settings: Settings) -> None:
    settings.IDLE_LOCK_TIMEOUT_MS = 200
    trading.broker("alice")
    place(Side.BID, 1, "10.00", time_in_force=TimeInForce.GTD, expires_at=database_now() + timedelta(hours=1))
    Order.objects.update(expires_at=database_now())

    has_lock, continues = Event(), Event()

    def freeze() -> None:
        with expiry._sweep_lock():
            has_lock.set()
            continues.wait(WAIT_SECONDS)

    def is_expired() -> bool:
        tasks.sweep_expired()
        return Order.objects.filter(status=OrderStatus.EXPIRED).exists()

    frozen = start_thread(freeze)
    assert has_lock.wait(WAIT_SECONDS)
    assert not is_expired()
    assert wait_until(is_expired, WAIT_SECONDS)
    continues.set()
    assert isinstance(frozen.exception(WAIT_SECONDS), OperationalError)


def test_a_session_that_has_swept_may_be_idle() -> None:
    tasks.sweep_expired()
    with connection.cursor() as cursor:
        cursor.execute("SHOW idle_session_timeout")
        assert cursor.fetchone() == ("0",)
