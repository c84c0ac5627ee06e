"""The benchmark: its baselines match correctly, its clock starts when a request is due, its targets are ratios."""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
from django.db import connection
from django.db.models import Func
from django.utils import timezone

from bench import floor, generator, mix, targets
from bench.day import expiry_delays
from bench.naive import matcher
from bench.rounds import Measurement, alternate, order_for_comparison
from bench.run import Lengths, Run
from bench.venue import Servers
from orders.enums import Side, TimeInForce
from orders.models import Order
from tests import trading
from webhooks.models import Event

NO_SERVERS = cast(Servers, None)
ORDERS = 400
SERVICE_SECONDS, CONNECT_SECONDS = 0.1, 0.3


# --- The floor ------------------------------------------------------------------------------------------------------


@pytest.fixture
def floor_url() -> Iterator[str]:
    """A new database with the floor's tables."""
    base, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    with psycopg.connect(f"{base}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE floor")
        try:
            floor.prepare(f"{base}/floor")
            yield f"{base}/floor"
        finally:
            connection.execute("DROP DATABASE floor WITH (FORCE)")


@pytest.mark.processes
def test_a_crossing_order_of_the_floor_takes_the_best_and_oldest_maker(floor_url: str) -> None:
    floor.pgbench(floor_url, 1, "-t", 1, scripts=("cross.sql",))
    with psycopg.connect(floor_url) as connection:
        (trade,) = rows(connection, "SELECT symbol, sequence, maker_sequence, price, bidder, asker FROM trade")
        symbol, sequence, maker_sequence, price, bidder, asker = trade
        assert sequence == 1001
        side = 1 if price == 9_999 else -1  # the maker's side: best bid or best ask
        oldest = "SELECT min(sequence) FROM orders WHERE symbol = %s AND side = %s AND price = %s"
        assert rows(connection, oldest, symbol, side, price) == [(maker_sequence,)]
        assert price in (9_999, 10_001)
        assert rows(connection, "SELECT sequence, open FROM orders WHERE NOT open ORDER BY 1") == [
            (maker_sequence, False),
            (1001, False),
        ]
        moved = "SELECT broker, cash - 1e12, shares - 1e9 FROM account WHERE (cash, shares) <> (1e12, 1e9)"
        expected = {(bidder, -100 * price, 100), (asker, 100 * price, -100)} if bidder != asker else set()
        assert set(rows(connection, moved)) == expected
        assert rows(connection, "SELECT count(*) FROM event WHERE broker IN (%s, %s)", bidder, asker) == [(2,)]


@pytest.mark.processes
def test_the_floor_conserves_cash_and_shares_and_fills_each_order_once(floor_url: str) -> None:
    floor.pgbench(floor_url, 4, "-t", ORDERS // 4)
    with psycopg.connect(floor_url) as connection:
        assert rows(connection, "SELECT sum(cash), sum(shares) FROM account") == [(320 * 10**12, 320 * 10**9)]
        ((orders, still_open),) = rows(connection, "SELECT count(*), count(*) FILTER (WHERE open) FROM orders")
        ((trades, makers),) = rows(connection, "SELECT count(*), count(DISTINCT (symbol, maker_sequence)) FROM trade")
        assert orders == 16_000 + ORDERS
        assert 0 < trades < ORDERS
        assert trades == makers
        assert still_open == orders - 2 * trades
        assert rows(connection, "SELECT sum(sequence) FROM instrument") == [(16_000 + ORDERS,)]
        assert rows(connection, "SELECT count(*), count(DISTINCT (symbol, sequence)) FROM orders") == [(orders, orders)]


def rows(connection: psycopg.Connection, query: str, *values: Any) -> list[tuple[Any, ...]]:
    return connection.execute(query.encode(), values).fetchall()


# --- The naive matcher ----------------------------------------------------------------------------------------------


@pytest.fixture
def market(transactional_db: None) -> None:
    trading.instrument()
    for name in ("alice", "bob"):
        trading.broker(name)


def form(by: str, side: str, quantity: int, price: str | None, **more: Any) -> dict[str, Any]:
    kind = {"type": "market"} if price is None else {"price": Decimal(price), "time_in_force": "gtc"}
    order = {"broker_id": by, "document_number": "12345678900", "side": side, "symbol": "AAPL", "quantity": quantity}
    return order | kind | more


@pytest.mark.usefixtures("market")
def test_the_naive_matcher_trades_at_the_sellers_price_with_sound_balances() -> None:
    matcher.place("alice", form("alice", "ask", 5, "11.00"))
    matcher.place("alice", form("alice", "ask", 5, "10.00"))
    order, trades = matcher.place("bob", form("bob", "bid", 12, "12.00"))
    assert [(trade.quantity, trade.price) for trade in trades] == [(5, Decimal("10.00")), (5, Decimal("11.00"))]
    assert (order.status, order.remaining_quantity) == ("partially_filled", 2)
    assert trading.balance("bob") == (trading.CASH - 105, 24)
    assert trading.shares("bob") == (trading.SHARES + 10, 0)
    sale, (trade,) = matcher.place("alice", form("alice", "ask", 1, None))
    assert (sale.status, trade.price) == ("filled", Decimal("12.00"))
    matcher.cancel("bob", order.pk)
    with pytest.raises(matcher.Rejected):
        matcher.cancel("bob", order.pk)
    assert trading.balance("bob") == (trading.CASH - 117, 0)
    trading.assert_sound()


@pytest.mark.usefixtures("market")
@pytest.mark.parametrize(
    ("rejected", "code"),
    [
        (form("bob", "bid", 10**6, "12.00"), "insufficient_balance"),
        (form("bob", "ask", 10**6, "12.00"), "insufficient_holdings"),
        (form("bob", "bid", 1, "12.005"), "validation_error"),
        (form("alice", "bid", 1, "12.00"), "broker_mismatch"),
    ],
)
def test_a_rejection_of_the_naive_matcher_writes_nothing(rejected: dict[str, Any], code: str) -> None:
    before = trading.snapshot()
    with pytest.raises(matcher.Rejected) as rejection:
        matcher.place("bob", rejected)
    assert rejection.value.code == code
    assert trading.snapshot() == before


# --- The open loop --------------------------------------------------------------------------------------------------


class SlowServer(asyncio.Protocol):
    """Responds to each request after the same time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(SERVICE_SECONDS, self.answer)

    def answer(self) -> None:
        self.transport.write(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")


class Pings:
    """Source of equal requests."""

    def next(self) -> tuple[str, bytes]:
        return "order", b"GET / HTTP/1.1\r\n\r\n"

    def accepted(self, body: bytes) -> None:
        assert body == b"{}"


async def measured(*, connections: int) -> generator.Outcomes:
    server = await asyncio.get_running_loop().create_server(SlowServer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    starts = time.monotonic() + CONNECT_SECONDS
    dues = [starts + offset for offset in generator.arrivals(rate=40, seconds=1, seed=0)]
    async with server:
        return await asyncio.to_thread(generator.generate, Pings(), dues, port=port, connections=connections)


def test_latency_includes_the_wait_for_a_slow_server() -> None:
    found = asyncio.run(measured(connections=1))
    latencies = found.of(["order"])
    assert found.lost == 0
    assert len(latencies) == found.statuses()["201"] > 20
    # One at a time, each request takes a tenth of a second: the last of n has its response after n tenths, and was due
    # within the first second. A clock that started when a request was sent would show one tenth for each.
    assert max(latencies) > len(latencies) * SERVICE_SECONDS - 1
    assert min(latencies) >= SERVICE_SECONDS
    assert generator.summary(found, 1)["p99_ms"] > 1_000
    assert found.backlog_max >= found.backlog_at_end > len(latencies) - 1 / SERVICE_SECONDS - 2
    assert found.drain_seconds >= (found.backlog_at_end - 1) * SERVICE_SECONDS


def test_no_request_waits_while_connections_are_free() -> None:
    found = asyncio.run(measured(connections=64))
    assert found.waited == 0
    assert SERVICE_SECONDS <= generator.percentile(found.of(["order"]), 0.1) / 1_000 < 2 * SERVICE_SECONDS


# --- The day ---------------------------------------------------------------------------------------------------------


def day(rate: float, seconds: float) -> tuple[list[float], mix.Day]:
    starts = time.monotonic() + 60
    dues = [starts + offset for offset in generator.arrivals(rate, seconds, seed=1)]
    world = {
        "brokers": [{"id": f"bench-{number}", "key": f"key-{number}"} for number in range(100)],
        "symbols": [{"name": f"S{number}", "mid": 100} for number in range(1, 451)],
        "resting": [{"id": str(UUID(int=7)), "broker": "bench-7"}],
    }
    return dues, mix.Day(world, 1, dues)


def test_a_day_has_the_published_rates_popularity_and_expiries() -> None:
    seconds, offset = 10, time.time() - time.monotonic()
    dues, source = day(sum(mix.kind_rates(1).values()), seconds)
    sent = [(due, *source.next()) for due in dues]
    kinds = Counter(kind for _, kind, _ in sent)
    assert kinds["order"] / seconds == pytest.approx(700, rel=0.05)
    assert kinds["cancel"] / seconds == pytest.approx(245, rel=0.1)
    assert 1 - (kinds["order"] + kinds["cancel"]) / len(sent) == pytest.approx(0.28, rel=0.05)
    orders = [(due, json.loads(request.partition(b"\r\n\r\n")[2])) for due, kind, request in sent if kind == "order"]
    popularity = Counter(order["symbol"] for _, order in orders)
    assert popularity["S1"] / len(orders) == pytest.approx(0.15, rel=0.1)
    assert popularity["S1"] / popularity["S2"] == pytest.approx(2, rel=0.2)
    lives = [
        datetime.fromisoformat(order["expires_at"]).timestamp() - offset - due
        for due, order in orders
        if "expires_at" in order
    ]
    assert len(lives) / len(orders) == pytest.approx(0.3, rel=0.1)
    assert 0.49 < min(lives) < 1
    assert 9 < max(lives) < 10.01


def test_a_day_cancels_each_working_order_once_and_no_expired_one() -> None:
    _, source = day(1_000, 1)
    placed = {"status": "pending", "broker_id": "bench-8"}
    working = placed | {"order_id": str(UUID(int=8)), "expires_at": "2999-01-01T00:00:00.000000Z"}
    expired = placed | {"order_id": str(UUID(int=9)), "expires_at": "2020-01-01T00:00:00.000000Z"}
    filled = placed | {"order_id": str(UUID(int=10)), "expires_at": None, "status": "filled"}
    for order in (working, expired, filled):
        source.accepted(json.dumps(order).encode())
    cancels = Counter(request for kind, request in (source.next() for _ in range(900)) if kind == "cancel")
    known = {
        number: [request for request in cancels if f"DELETE /orders/{UUID(int=number)} ".encode() in request]
        for number in range(7, 11)
    }
    assert {number: len(requests) for number, requests in known.items()} == {7: 1, 8: 1, 9: 0, 10: 0}
    assert b"Bearer key-7\r\n" in known[7][0]
    assert b"Bearer key-8\r\n" in known[8][0]
    assert set(cancels.values()) == {1}


@pytest.mark.usefixtures("market")
def test_the_delay_of_an_expiry_ends_when_its_event_is_written() -> None:
    now = timezone.now()
    gtd = {"time_in_force": TimeInForce.GTD, "expires_at": now + timedelta(hours=1)}
    expired, overdue, _ = (trading.place(Side.BID, 5, "10", **gtd) for _ in range(3))
    for order, seconds in [(expired, 3_000), (overdue, 5_000)]:
        Order.objects.filter(pk=order.pk).update(expires_at=now - timedelta(seconds=seconds))
    trading.cancel(expired)  # expires it
    Event.objects.filter(type="order.expired").update(id=Func(timedelta(seconds=-1_000), function="uuidv7"))
    connection.ensure_connection()
    delays = sorted(expiry_delays(connection.connection, now - timedelta(hours=2), now))
    assert delays == pytest.approx([2_000, 5_000], abs=60)


# --- Rounds ---------------------------------------------------------------------------------------------------------


def test_measurements_that_targets_compare_are_adjacent() -> None:
    def measurement(name: str, clients: int, *, is_compared: bool = True) -> Measurement:
        return Measurement("http", name, clients, dict, is_compared)

    found = order_for_comparison(
        [
            measurement("floor of one", 1),
            measurement("floor", 16),
            measurement("naive", 8),
            measurement("one", 1),
            measurement("some", 16, is_compared=False),
            measurement("many", 64),
        ]
    )
    assert [each.name for each in found] == ["floor of one", "one", "some", "naive", "floor", "many"]


def test_measurements_alternate_forwards_and_backwards_and_the_median_round_is_stored() -> None:
    seen = []

    def measurement(name: str, rounds: list[dict[str, float]]) -> Measurement:
        left = iter(rounds)
        return Measurement("http", name, 1, lambda: seen.append(name) or next(left))  # type: ignore[func-returns-value]

    fast = [{"orders_per_second": rate, "place_p50_ms": 1 / rate, "p99_ms": rate * 2} for rate in (9.0, 5.0, 7.0)]
    slow = [{"orders_per_second": 1.0, "faults": faults} for faults in (0, 2, 1)]
    run = Run(NO_SERVERS, Lengths(rounds=3))
    alternate(run, [measurement("fast", fast), measurement("slow", slow)])
    assert seen == ["fast", "slow", "slow", "fast", "fast", "slow"]
    assert run.results["http"]["fast"] == fast[2] | {
        "faults": 0,
        "rounds": [{"orders_per_second": rate, "place_p50_ms": 1 / rate} for rate in (9.0, 5.0, 7.0)],
    }
    assert run.results["http"]["slow"]["faults"] == targets.faults(run.results) == 3


# --- The table ------------------------------------------------------------------------------------------------------


def test_the_table_marks_missed_targets_and_missing_measurements() -> None:
    results = {
        "floor": {
            "8": {"orders_per_second": 4_000.0, "latency_ms": 0.5},
            "1": {"latency_ms": 0.5, "orders_per_second": 1},
        },
        "naive": {"4x16x1": {"orders_per_second": 100.0}},
        "http": {
            "64x16x1": {"orders_per_second": 1_500.0},
            "64x16x2": {"orders_per_second": 1_590.0},
            "1x16x1": {"place_p50_ms": 2.0},
        },
    }
    verdicts = {row["target"]: (row["figure"], row["verdict"]) for row in targets.table(results)}
    assert verdicts["64 clients, 16 symbols ÷ naive"] == (15.9, "ok")
    assert verdicts["64 clients, 16 symbols ÷ floor"] == (0.3975, "MISSED")
    assert verdicts["two web processes ÷ one"] == (1.06, "ok")
    assert verdicts["one client's p50 ÷ floor's latency"] == (4.0, "MISSED")
    assert verdicts["batches of 100 ÷ floor"] == (None, "not measured")


def test_alternating_measurements_are_compared_round_by_round() -> None:
    def cell(*rates: float) -> dict[str, Any]:
        return {"orders_per_second": 0.0, "rounds": [{"orders_per_second": rate} for rate in rates]}

    # The machine was three times as fast in the last round, and even faster for one naive cell.
    results = {
        "naive": {"4x16x1": cell(10.0, 10.0, 90.0), "8x16x1": cell(11.0, 11.0, 30.0)},
        "http": {"64x16x1": cell(100.0, 100.0, 330.0), "64x16x2": cell(110.0, 99.0, 300.0), "64x1x1": cell(0, 0, 0)},
    }
    verdicts = {row["target"]: row["figure"] for row in targets.table(results)}
    assert verdicts["64 clients, 16 symbols ÷ naive"] == pytest.approx(10)
    assert verdicts["two web processes ÷ one"] == pytest.approx(0.99)


def test_the_growth_targets_compare_the_largest_with_the_smallest() -> None:
    rates = {"history 10000 64": 1_000.0, "history 2000000 64": 790.0}
    results = {"growth": {name: {"orders_per_second": rate} for name, rate in rates.items()}}
    verdicts = {row["target"]: (row["figure"], row["verdict"]) for row in targets.table(results)}
    assert verdicts["most ÷ fewest old orders and trades, 64 clients"] == (0.79, "MISSED")


def test_faults_of_all_levels_are_summed() -> None:
    assert targets.faults({"http": {"a": {"faults": 1}}, "growth": {"b": {"rounds": [1.0], "faults": 2}}}) == 3
