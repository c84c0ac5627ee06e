"""Concurrent actions of operators on real connections take effect once (design: "One path for every change")."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from threading import Barrier

import pytest
from django.db import connection, transaction

from exchange import services
from exchange.database import database_now
from exchange.errors import ExchangeError
from exchange.models import Broker, Holding, Instrument, Transfer
from tests.trading import BY

THREADS = 8

pytestmark = pytest.mark.django_db(transaction=True)


def run_concurrently(*actions: Callable[[], object]) -> Counter[str]:
    """Run all actions together and count their results: `done`, or the code of the error."""
    start = Barrier(len(actions))

    def run(action: Callable[[], object]) -> str:
        try:
            start.wait()
            action()
            return "done"
        except ExchangeError as rejection:
            return rejection.code
        finally:
            connection.close()

    with ThreadPoolExecutor(len(actions)) as pool:
        return Counter(pool.map(run, actions))


def _broker(broker_id: str, cash: int = 1000) -> None:
    services.create_broker(broker_id, initial_cash=Decimal(cash), initial_holdings={"AAPL": 100}, by=BY)


def test_a_broker_is_created_once() -> None:
    assert run_concurrently(*[lambda: _broker("alice")] * THREADS) == {"done": 1, "broker_already_exists": THREADS - 1}
    assert (Broker.objects.get().cash, Transfer.objects.count()) == (Decimal(1000), 2)


def test_a_listed_symbol_cannot_be_listed_again() -> None:
    found = run_concurrently(*[lambda: services.list_instrument("AAPL", by=BY)] * THREADS)

    assert found == {"done": 1, "symbol_already_listed": THREADS - 1}


def test_brokers_with_the_same_new_symbols_do_not_deadlock() -> None:
    def admit(broker_id: str, symbols: str) -> None:
        services.create_broker(broker_id, initial_cash=Decimal(0), initial_holdings=dict.fromkeys(symbols, 1), by=BY)

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():  # a third session locks M until both wait, each with its first symbol listed
            Instrument.objects.create(symbol="M", name="M", created_at=database_now())
            both = pool.submit(run_concurrently, lambda: admit("a", "AMZ"), lambda: admit("b", "ZMA"))
            _wait_for_blocked_sessions(2)
        assert both.result() == {"done": 2}
    assert (Instrument.objects.count(), Holding.objects.count()) == (3, 6)


def _wait_for_blocked_sessions(sessions: int) -> None:
    for _ in range(200):
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            if cursor.fetchone() == (sessions,):
                return
        time.sleep(0.02)
    raise AssertionError("no session waits")


def test_one_reference_is_one_transfer() -> None:
    _broker("alice")
    news: list[bool] = []

    def book() -> None:
        news.append(services.transfer("alice", reference="r", cash=Decimal(-10), reason="x", by=BY)[1])

    assert run_concurrently(*[book] * THREADS) == {"done": THREADS}
    assert Counter(news) == {True: 1, False: THREADS - 1}
    assert Broker.objects.get().cash == 990


def test_one_reference_for_many_brokers_is_one_transfer() -> None:
    brokers = [f"b{number}" for number in range(THREADS)]
    for broker_id in brokers:
        _broker(broker_id)

    def book(broker_id: str) -> None:
        services.transfer(broker_id, reference="r", cash=Decimal(-10), reason="x", by=BY)

    found = run_concurrently(*[lambda b=b: book(b) for b in brokers])

    assert found == {"done": 1, "transfer_reference_conflict": THREADS - 1}
    assert sum(broker.cash for broker in Broker.objects.all()) == 1000 * THREADS - 10


def test_concurrent_withdrawals_do_not_exceed_the_available_amount() -> None:
    _broker("alice", cash=30)

    def withdraw(number: int) -> None:
        services.transfer("alice", reference=f"c{number}", cash=Decimal(-10), reason="x", by=BY)

    def deliver(number: int) -> None:
        services.transfer("alice", reference=f"s{number}", symbol="AAPL", quantity=-40, reason="x", by=BY)

    cash = run_concurrently(*[lambda n=n: withdraw(n) for n in range(THREADS)])
    shares = run_concurrently(*[lambda n=n: deliver(n) for n in range(THREADS)])

    assert cash == {"done": 3, "insufficient_balance": THREADS - 3}
    assert shares == {"done": 2, "insufficient_holdings": THREADS - 2}
    assert (Broker.objects.get().cash, Holding.objects.get().quantity) == (Decimal(0), Decimal(20))


def test_concurrent_first_transfers_of_shares_create_one_holding() -> None:
    _broker("alice")
    services.list_instrument("GOOG", by=BY)

    def book(number: int) -> None:
        services.transfer("alice", reference=f"s{number}", symbol="GOOG", quantity=1, reason="x", by=BY)

    assert run_concurrently(*[lambda n=n: book(n) for n in range(THREADS)]) == {"done": THREADS}
    assert Holding.objects.get(instrument="GOOG").quantity == THREADS
