"""The sequencer returns each request its own outcome exactly once, or an honest error in time.

The tests use real threads and PostgreSQL, and real failures: held locks, ended sessions and lost responses. Every test
ends with a check of all invariants (see conftest.py).
"""

import asyncio
import ctypes
import json
import re
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPConnection
from itertools import cycle
from pathlib import Path
from random import Random
from threading import Barrier, Event, Lock, Thread, get_ident
from typing import Any
from uuid import UUID

import httpx
import pytest
from django.db import connection, transaction
from django.db.models import Model, Sum
from pytest_django import Settings

from config.local.processes import wait_until
from exchange.errors import (
    ExchangeError,
    InsufficientBalance,
    InternalError,
    OrderNotFound,
    OutcomeUnknown,
    Overloaded,
    SymbolNotFound,
)
from exchange.models import Broker, Instrument
from orders.enums import OrderStatus, Side
from orders.matching import sequencer, service, waiters
from orders.matching.commands import Accepted, Cancelled, CancelOrder, Command, Outcome, PlaceOrder, Replayed
from orders.models import Order
from tests import live, trading
from tests.trading import order, place, run_concurrently, start_thread

pytestmark = pytest.mark.django_db(transaction=True)

SYMBOLS = ["AAPL", "GOOG", "MSFT"]
BROKERS = ["alice", "bob", "carol"]
AMPLE = 10**9
SHORT_SECONDS = 3.0  # immediately, on a busy machine
LOCK_TIMEOUT_MS = 500  # while a row stays locked
WAIT_SECONDS = 8.0  # longer than every timeout of the database that a test keeps
GATE = "GATE"


@pytest.fixture(autouse=True)
def _market(db: None, settings: Settings) -> None:
    """Three brokers, three books, and a book that exists only to be locked."""
    for broker_id in BROKERS:
        trading.broker(broker_id, cash=AMPLE, holdings=dict.fromkeys(SYMBOLS, AMPLE))
    trading.broker("gatekeeper", holdings={GATE: 1})
    settings.WEB_PROCESSES = 2  # independent of the environment
    settings.SEQUENCER_BATCH_SECONDS = 60.0  # a slow batch does not limit the size of the next one


# --- Helpers --------------------------------------------------------------------------------------------------------


def locked_row(model: type[Model], key: str) -> AbstractContextManager[None]:
    """Lock a row in another session until the end of the `with` block."""
    return lock_elsewhere(lambda: model._default_manager.select_for_update(no_key=True).get(pk=key))


@contextmanager
def lock_elsewhere(lock: Callable[[], object]) -> Iterator[None]:
    locked, release = Event(), Event()

    def hold() -> None:
        with transaction.atomic():
            lock()
            locked.set()
            release.wait(trading.TIMEOUT_SECONDS)
            transaction.set_rollback(True)  # a COMMIT might wait for a standby

    holding = start_thread(hold)
    try:
        assert locked.wait(WAIT_SECONDS)
        yield
    finally:
        release.set()
        holding.result(WAIT_SECONDS)


def becomes_true(condition: Callable[[], bool]) -> bool:
    """True once `condition` is true; polls more often than `wait_until`."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def query_rows(query: str) -> list[Any]:
    """All rows of a query."""
    with connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def wait_for_lock_waiter() -> None:
    assert becomes_true(lambda: bool(query_rows("SELECT FROM pg_locks WHERE NOT granted"))), "no lock is awaited"


def queue_length() -> int:
    """Requests in the queue of this process."""
    return len(sequencer._sequencer._waiters)


def submit_in_thread(commands: Sequence[Command]) -> Future[list[Outcome]]:
    return start_thread(partial(sequencer.submit_all, commands))


def submit_on_loop(commands: Sequence[Command]) -> Future[list[Outcome]]:
    return asyncio.run_coroutine_threadsafe(sequencer._sequencer.submit_async(commands), _loop)


_loop: asyncio.AbstractEventLoop
_submits: Iterator[Callable[[Sequence[Command]], Future[list[Outcome]]]] = cycle([submit_in_thread])


@pytest.fixture(scope="module", autouse=True)
def _running_loop() -> Iterator[None]:
    """An event loop, as in an API process."""
    global _loop
    _loop = asyncio.new_event_loop()
    thread = Thread(target=_loop.run_forever, daemon=True)
    thread.start()
    yield
    _loop.call_soon_threadsafe(_loop.stop)
    thread.join(WAIT_SECONDS)
    _loop.close()


@pytest.fixture(params=["in threads", "on the loop", "alternating"])
def _each_waiter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests wait in threads, on an event loop, and alternating."""
    submits = {"in threads": [submit_in_thread], "on the loop": [submit_on_loop]}
    submits["alternating"] = [submit_on_loop, submit_in_thread]
    monkeypatch.setitem(globals(), "_submits", cycle(submits[request.param]))


each_waiter = pytest.mark.usefixtures("_each_waiter")


def enqueue(*commands: Command) -> Future[list[Outcome]]:
    """Submit a request and return once it is queued behind a batch in progress."""
    before = queue_length()
    future = next(_submits)(commands)
    assert becomes_true(lambda: queue_length() > before), "it is not queued"
    return future


@contextmanager
def batch_in_progress() -> Iterator[Future[list[Outcome]]]:
    """Keep a batch in progress until the end of the `with` block, so that new requests are queued."""
    with locked_row(Instrument, GATE):
        gate = start_thread(partial(sequencer.submit_all, [order(Side.BID, 1, "1.00", by="gatekeeper", symbol=GATE)]))
        wait_for_lock_waiter()
        yield gate
    (outcome,) = gate.result(WAIT_SECONDS)
    assert isinstance(outcome, Accepted)


def enqueue_as_one_batch(requests: Sequence[Sequence[Command]]) -> list[Future[list[Outcome]]]:
    """Queue the requests behind a batch in progress, so that they form the next batch."""
    with batch_in_progress():
        return [enqueue(*request) for request in requests]


def outcomes_of(futures: Sequence[Future[list[Outcome]]]) -> list[Outcome]:
    """The outcome of each request of one command, or the error that it raised."""
    return [outcome_of(future) for future in futures]


def outcome_of(future: Future[list[Outcome]]) -> Outcome:
    error = future.exception(trading.TIMEOUT_SECONDS)
    if error is None:
        (outcome,) = future.result()
        return outcome
    assert isinstance(error, ExchangeError), error
    return error


def bids(count: int, **more: Any) -> list[PlaceOrder]:
    """Distinct orders that rest, alternating between books and brokers unless `more` sets these."""
    return [
        order(
            Side.BID,
            number + 1,
            "10.00",
            **{"by": BROKERS[number % 2], "symbol": SYMBOLS[number % 3], "client_order_id": f"bid-{number}"} | more,
        )
        for number in range(count)
    ]


def batch_sizes(commands: Sequence[PlaceOrder]) -> list[int]:
    """The number of these orders that each transaction placed, oldest transaction first."""
    transactions = dict(query_rows("SELECT id, xmin::text::bigint FROM orders_order"))
    sizes = Counter(transactions[command.order_id] for command in commands)
    return [sizes[each] for each in sorted(sizes)]


def assert_placed_once(commands: Sequence[PlaceOrder], outcomes: Sequence[Outcome]) -> None:
    """Check that each command returned its own order, which is stored."""
    for command, outcome in zip(commands, outcomes, strict=True):
        assert isinstance(outcome, Accepted), outcome
        assert (outcome.order.id, outcome.order.quantity) == (command.order_id, command.quantity)
    assert Order.objects.filter(pk__in=[command.order_id for command in commands]).count() == len(commands)


# --- Batches --------------------------------------------------------------------------------------------------------


@each_waiter
def test_requests_queued_during_a_batch_form_the_next_batch() -> None:
    commands = bids(30)
    outcomes = outcomes_of(enqueue_as_one_batch(one_per_request(commands)))
    assert_placed_once(commands, outcomes)
    assert batch_sizes(commands) == [30]


def test_a_batch_is_executed_in_arrival_order() -> None:
    commands = bids(30)
    outcomes_of(enqueue_as_one_batch(one_per_request(commands)))
    for symbol in SYMBOLS:
        stored = Order.objects.filter(instrument=symbol).order_by("sequence").values_list("pk", flat=True)
        assert list(stored) == [command.order_id for command in commands if command.symbol == symbol]


@each_waiter
def test_each_request_gets_its_own_outcomes() -> None:
    resting = place(Side.BID, 5, "9.00", by="bob")
    good, other = bids(2)
    requests: list[list[Command]] = [
        [good],
        [order(Side.BID, AMPLE, "10.00")],
        [CancelOrder(resting.pk, "bob"), order(Side.BID, 1, "1.00", symbol="NONE"), other],
        [replace(good, order_id=UUID(int=1))],
        [CancelOrder(UUID(int=2), "bob")],
    ]
    outcomes = [future.result(WAIT_SECONDS) for future in enqueue_as_one_batch(requests)]
    assert [[type(outcome) for outcome in each] for each in outcomes] == [
        [Accepted],
        [InsufficientBalance],
        [Cancelled, SymbolNotFound, Accepted],
        [Replayed],
        [OrderNotFound],
    ]
    assert_placed_once([good, other], [outcomes[0][0], outcomes[2][2]])


def test_a_batch_has_at_most_the_configured_number_of_commands(settings: Settings) -> None:
    settings.SEQUENCER_BATCH = 10
    commands = bids(30)
    requests = [commands[:4], commands[4:8], commands[8:12], commands[12:24], commands[24:]]
    outcomes = [future.result(WAIT_SECONDS) for future in enqueue_as_one_batch(requests)]
    assert_placed_once(commands, [outcome for each in outcomes for outcome in each])
    assert batch_sizes(commands) == [8, 4, 12, 6]  # no request is split, even beyond the limit


def test_the_duration_of_a_batch_limits_the_size_of_the_next(settings: Settings) -> None:
    settings.SEQUENCER_BATCH_SECONDS = 0.25
    commands = bids(12)
    with batch_in_progress():
        futures = [enqueue(command) for command in commands]
        time.sleep(0.3)  # the duration of this batch of one
    assert_placed_once(commands, outcomes_of(futures))
    assert batch_sizes(commands)[0] == 1
    assert len(batch_sizes(commands)) < 8  # later batches grow again


def test_a_single_request_is_executed_without_delay(settings: Settings) -> None:
    commands = bids(20)
    took = []
    for command in commands:
        started = time.monotonic()
        sequencer.submit(command)
        took.append(time.monotonic() - started)
    assert batch_sizes(commands) == [1] * 20
    assert statistics.median(took) < settings.SEQUENCER_BATCH_LOCK_TIMEOUT_SECONDS


def connections_in_use() -> int:
    """Connections in use or being opened."""
    stats = connection.pool.get_stats()  # type: ignore[attr-defined]  # only PostgreSQL's has a pool
    return int(stats["pool_size"] - stats["pool_available"])


def test_a_waiting_request_holds_no_database_connection() -> None:
    """Otherwise waiting requests could exhaust the pool that their leader needs."""
    commands = bids(40)

    def request(command: PlaceOrder) -> Outcome:
        Broker.objects.get(pk=command.broker_id)  # like the lookup of a key
        return sequencer.submit(command)

    with batch_in_progress():
        futures = [start_thread(partial(request, command)) for command in commands]
        assert becomes_true(lambda: queue_length() == len(commands))
        assert becomes_true(lambda: connections_in_use() <= 3)  # the leader's, the lock holder's and the test's
    assert_placed_once(commands, [future.result(WAIT_SECONDS) for future in futures])


# --- Batch lock of the processes ------------------------------------------------------------------------------------

TAKE_BATCH_LOCK = "SELECT pg_advisory_xact_lock(x'7475726E'::int, 0)"


def batch_lock_held() -> AbstractContextManager[None]:
    """Hold the batch lock in another session until the end of the `with` block."""
    return lock_elsewhere(lambda: query_rows(TAKE_BATCH_LOCK))


@each_waiter
def test_requests_that_arrive_before_the_batch_lock_join_the_batch(settings: Settings) -> None:
    settings.SEQUENCER_BATCH_LOCK_TIMEOUT_SECONDS = WAIT_SECONDS
    commands = bids(10)
    with batch_lock_held():
        futures = enqueue_as_one_batch(one_per_request(commands[:3]))
        wait_for_lock_waiter()
        futures += [enqueue(command) for command in commands[3:]]
        assert queue_length() == len(commands)
    assert_placed_once(commands, outcomes_of(futures))
    assert batch_sizes(commands) == [10]


@each_waiter
def test_a_batch_runs_without_the_batch_lock_after_a_timeout(settings: Settings) -> None:
    settings.SEQUENCER_BATCH_LOCK_TIMEOUT_SECONDS = 1.5
    commands = bids(10)
    with batch_lock_held():
        futures = enqueue_as_one_batch(one_per_request(commands))
        wait_for_lock_waiter()
        assert_placed_once(commands, outcomes_of(futures))
    assert batch_sizes(commands) == [10]


def test_a_single_process_does_not_wait_for_the_batch_lock(settings: Settings) -> None:
    settings.SEQUENCER_BATCH_LOCK_TIMEOUT_SECONDS, settings.WEB_PROCESSES = WAIT_SECONDS, 1
    commands = bids(10)
    with batch_lock_held():
        futures = enqueue_as_one_batch(one_per_request(commands))
        started = time.monotonic()
        assert_placed_once(commands, outcomes_of(futures))
        assert time.monotonic() - started < WAIT_SECONDS / 2


def test_a_single_request_does_not_wait_for_the_batch_lock(settings: Settings) -> None:
    settings.SEQUENCER_BATCH_LOCK_TIMEOUT_SECONDS = WAIT_SECONDS
    commands = bids(3)
    with batch_lock_held():
        started = time.monotonic()
        assert_placed_once(commands, [sequencer.submit(command) for command in commands])
        assert time.monotonic() - started < WAIT_SECONDS / 2


@each_waiter
@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
def test_an_interrupted_wait_for_the_batch_lock_loses_no_order(end: str, settings: Settings) -> None:
    settings.SEQUENCER_BATCH_LOCK_TIMEOUT_SECONDS = WAIT_SECONDS
    commands = bids(10)
    with batch_lock_held():
        futures = enqueue_as_one_batch(one_per_request(commands))
        wait_for_lock_waiter()
        query_rows(f"SELECT {end}(pid) FROM pg_locks WHERE NOT granted")  # noqa: S608
        assert_placed_once(commands, outcomes_of(futures))
    assert batch_sizes(commands) == [10]


@pytest.mark.parametrize("other", [batch_lock_held, nullcontext])
def test_the_batch_lock_ends_with_its_transaction(
    other: Callable[[], AbstractContextManager[None]], settings: Settings
) -> None:
    settings.SEQUENCER_BATCH_LOCK_TIMEOUT_SECONDS = 0.05
    (command,) = bids(1)
    lock_timeout = query_rows("SHOW lock_timeout")
    with other():
        service.begin_with_batch_lock()
        assert query_rows("SHOW lock_timeout") == lock_timeout
        assert_placed_once([command], service.execute([command]))
    with batch_lock_held():  # the batch lock is free again
        assert batch_sizes([command]) == [1]


# --- Queue limits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "requests"),
    [("SEQUENCER_QUEUE_REQUESTS", [1] * 5), ("SEQUENCER_QUEUE_COMMANDS", [2, 3])],
)
def test_a_request_beyond_a_queue_limit_is_rejected(limit: str, requests: list[int], settings: Settings) -> None:
    setattr(settings, limit, 5)
    *commands, late = bids(6)
    with batch_in_progress():
        remaining = iter(commands)
        futures = [enqueue(*[next(remaining) for _ in range(size)]) for size in requests]
        assert sequencer.is_full()
        started = time.monotonic()
        with pytest.raises(Overloaded):
            sequencer.submit_all([late])
        assert time.monotonic() - started < SHORT_SECONDS
    outcomes = [outcome for future in futures for outcome in future.result(WAIT_SECONDS)]
    assert_placed_once(commands, outcomes)
    assert not Order.objects.filter(pk=late.order_id).exists()
    assert not sequencer.is_full()
    assert isinstance(sequencer.submit(late), Accepted)


QUEUE_OF_SMALL_SERVER = 8
SMALL_SETTINGS = f"""
from config.settings.api import *
SEQUENCER_QUEUE_REQUESTS = {QUEUE_OF_SMALL_SERVER}
SEQUENCER_QUEUE_TIMEOUT_SECONDS = 20.0
_options = DATABASES["default"]["OPTIONS"]
_options["options"] = _options["options"].replace("lock_timeout=2000", "lock_timeout=20000")
"""


@pytest.fixture(scope="module")
def small_server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    """An API server with a short queue and long timeouts."""
    folder: Path = tmp_path_factory.mktemp("small")
    (folder / "small_settings.py").write_text(SMALL_SETTINGS)
    running = live.server(folder / "web.log")
    running.child.env = {
        **running.child.env,
        "DJANGO_SETTINGS_MODULE": "small_settings",
        "PYTHONPATH": str(folder),
    }
    try:
        running.start()
        yield running
    finally:
        running.stop()


def http_client(server: live.Server, key: str) -> httpx.Client:
    limits = httpx.Limits(max_connections=200)
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=server.url, headers=headers, limits=limits, timeout=30.0, trust_env=False)


def fill_up(http: httpx.Client) -> list[Future[httpx.Response]]:
    """Fill the queue of the small server with orders for a locked book, behind one leader."""
    leader, *others = [
        partial(http.post, "/orders", json=body_of(command))
        for command in bids(1 + QUEUE_OF_SMALL_SERVER, by="dave", symbol="AAPL")
    ]
    first = start_thread(leader)
    wait_for_lock_waiter()
    return [first, *map(start_thread, others)]


def body_of(command: PlaceOrder) -> dict[str, Any]:
    return {
        "broker_id": command.broker_id,
        "document_number": command.document_number,
        "side": command.side,
        "symbol": command.symbol,
        "price": str(command.price),
        "quantity": command.quantity,
        "time_in_force": command.time_in_force,
        "client_order_id": command.client_order_id,
    }


def create_dave() -> str:
    """Create the broker dave and return its key."""
    return trading.broker("dave", cash=AMPLE, holdings=dict.fromkeys(SYMBOLS, AMPLE))


def assert_overloaded(response: httpx.Response, request_id: str) -> None:
    assert response.status_code == 503
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Retry-After"] == "1"
    assert response.headers["X-Request-Id"] == request_id
    assert response.elapsed.total_seconds() < SHORT_SECONDS
    body = response.json()
    assert (body["code"], body["status"], body["request_id"]) == ("overloaded", 503, request_id)


def test_a_full_server_rejects_commands_and_still_serves_reads(
    small_server: live.Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "httpx")
    with http_client(small_server, create_dave()) as http:
        resting = http.post("/orders", json=body_of(bids(1, by="dave", client_order_id="resting")[0])).json()[
            "order_id"
        ]
        with locked_row(Instrument, "AAPL"):
            posts = fill_up(http)
            assert wait_until(lambda: httpx.post(f"{small_server.url}/orders").status_code == 503, WAIT_SECONDS)
            late = body_of(order(Side.BID, 1, "10.00", by="dave", client_order_id="late"))
            for method, path, body in [
                ("POST", "/orders", late),
                ("POST", "/orders/batch", {"orders": [late]}),
                ("DELETE", f"/orders/{resting}", None),
            ]:
                request_id = f"{method}{len(path)}"
                response = http.request(method, path, json=body, headers={"X-Request-Id": request_id})
                assert_overloaded(response, request_id)
            for path in (f"/orders/{resting}", "/stocks/AAPL/book", "/brokers/dave/balance", "/healthz"):
                assert http.get(path).status_code == 200, path
            assert not any(post.done() for post in posts)
        assert [post.result(WAIT_SECONDS).status_code for post in posts] == [201] * len(posts)
        assert http.get(f"/orders/{resting}").json()["status"] == OrderStatus.PENDING
        assert http.get("/orders", params={"client_order_id": "late"}).status_code == 404
        assert http.post("/orders", json=late).status_code == 201


def test_a_rejection_by_a_full_server_keeps_the_connection_open(small_server: live.Server) -> None:
    """Otherwise a broker's next order would use a closing connection and have an unknown outcome."""
    key = create_dave()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    client = HTTPConnection("127.0.0.1", small_server.port, timeout=WAIT_SECONDS)
    client.connect()
    client.auto_open = 0  # do not reopen a closed connection
    with closing(client), http_client(small_server, key) as http:
        with locked_row(Instrument, "AAPL"):
            posts = fill_up(http)
            assert wait_until(lambda: httpx.post(f"{small_server.url}/orders").status_code == 503, WAIT_SECONDS)
            batch = json.dumps({"orders": [body_of(command) for command in bids(300, by="dave")]}).encode()
            for _ in range(10):
                client.request("POST", "/orders/batch", batch, headers)
                response = client.getresponse()
                assert (response.status, json.loads(response.read())["code"]) == (503, "overloaded")
        assert [post.result(WAIT_SECONDS).status_code for post in posts] == [201] * len(posts)


OVERLOAD_SECONDS = 3.0


@dataclass
class LoadResult:
    """Durations of the rejections, and ids of the accepted orders."""

    seconds: list[float]
    accepted: list[str]


def post_until(stop: Event, http: httpx.Client, number: int) -> LoadResult:
    """Post one order after another, with a pause after each rejection."""
    result, sent = LoadResult([], []), 0
    while not stop.is_set():
        sent += 1
        side = Side.BID if number % 2 else Side.ASK
        command = order(side, 1, "10.00", by="dave", symbol=SYMBOLS[sent % 3], client_order_id=f"{number}-{sent}")
        response = http.post("/orders", json=body_of(command))
        if response.status_code == 201:
            result.accepted.append(response.json()["order_id"])
        else:
            assert (response.status_code, response.json()["code"]) == (503, "overloaded"), response.text
            result.seconds.append(response.elapsed.total_seconds())
            stop.wait(0.1)
    return result


def test_overload_is_rejected_quickly_and_accepted_orders_are_stored(
    small_server: live.Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "httpx")
    stop = Event()
    with http_client(small_server, create_dave()) as http:
        posting = [start_thread(partial(post_until, stop, http, number)) for number in range(4 * QUEUE_OF_SMALL_SERVER)]
        with locked_row(Instrument, "AAPL"):  # overloads any machine
            time.sleep(OVERLOAD_SECONDS / 2)
        time.sleep(OVERLOAD_SECONDS / 2)
        stop.set()
        results = [future.result(WAIT_SECONDS) for future in posting]
        single = http.post("/orders", json=body_of(order(Side.BID, 1, "9.00", by="dave")))
    rejections = sorted(seconds for each in results for seconds in each.seconds)
    assert len(rejections) > 100
    assert statistics.median(rejections) < SHORT_SECONDS / 2
    assert rejections[len(rejections) * 99 // 100] < SHORT_SECONDS
    accepted = [order_id for each in results for order_id in each.accepted]
    assert len(accepted) > 4 * QUEUE_OF_SMALL_SERVER
    assert Order.objects.exclude(pk=single.json()["order_id"]).count() == len(accepted)
    assert Order.objects.filter(pk__in=accepted).count() == len(accepted)
    assert single.status_code == 201
    assert single.elapsed.total_seconds() < SHORT_SECONDS


# --- Timeouts -------------------------------------------------------------------------------------------------------


@each_waiter
def test_a_request_still_queued_at_its_timeout_is_not_executed(settings: Settings) -> None:
    settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS = 0.6
    commands = bids(3)
    with batch_in_progress() as gate:
        futures = [enqueue(command) for command in commands]
        outcomes = outcomes_of(futures)
        assert not gate.done()
    assert [type(outcome) for outcome in outcomes] == [Overloaded] * 3
    assert queue_length() == 0
    assert not sequencer.is_full()
    assert isinstance(sequencer.submit(replace(commands[0], order_id=UUID(int=1))), Accepted)
    assert Order.objects.exclude(instrument=GATE).count() == 1


@each_waiter
def test_a_timed_out_request_frees_its_queue_capacity(settings: Settings) -> None:
    settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS = 0.6
    settings.SEQUENCER_QUEUE_COMMANDS = 5
    with batch_in_progress():
        assert isinstance(enqueue(*bids(5)).exception(WAIT_SECONDS), Overloaded)
        settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS = WAIT_SECONDS
        request = enqueue(*bids(5))
    assert [type(outcome) for outcome in request.result(WAIT_SECONDS)] == [Accepted] * 5


def test_a_request_in_progress_at_its_timeout_has_an_unknown_outcome(settings: Settings) -> None:
    settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS, settings.SEQUENCER_EXECUTION_TIMEOUT_SECONDS = (
        1.0,
        0.3,
    )  # below the lock timeout
    leader, follower = bids(2, symbol="MSFT")
    with locked_row(Instrument, "MSFT"):
        leading, following = enqueue_as_one_batch([[leader], [follower]])
        started = time.monotonic()
        assert isinstance(following.exception(WAIT_SECONDS), OutcomeUnknown)
        assert time.monotonic() - started < SHORT_SECONDS
        assert not leading.done()
    assert_placed_once([leader], outcomes_of([leading]))
    repeated = sequencer.submit(replace(follower, order_id=UUID(int=1)))
    assert repeated == Replayed(follower.order_id)
    assert Order.objects.filter(instrument="MSFT").count() == 2


def test_a_request_on_a_loop_in_progress_at_its_timeout_has_an_unknown_outcome(settings: Settings) -> None:
    """This includes the leader, whose batch runs in another thread."""
    settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS, settings.SEQUENCER_EXECUTION_TIMEOUT_SECONDS = (
        1.0,
        0.3,
    )  # below the lock timeout
    commands = bids(2, symbol="MSFT")
    with locked_row(Instrument, "MSFT"):
        with batch_in_progress():
            futures = [submit_on_loop([command]) for command in commands]
            assert becomes_true(lambda: queue_length() == 2)
        started = time.monotonic()
        assert [type(outcome) for outcome in outcomes_of(futures)] == [OutcomeUnknown] * 2
        assert 0.2 < time.monotonic() - started < SHORT_SECONDS
    again = [sequencer.submit(replace(command, order_id=UUID(int=number))) for number, command in enumerate(commands)]
    assert again == [Replayed(command.order_id) for command in commands]


@each_waiter
def test_a_request_in_progress_at_its_timeout_may_still_complete(settings: Settings) -> None:
    settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS = 1.0
    commands = bids(3, symbol="MSFT")
    with locked_row(Instrument, "MSFT"):
        futures = enqueue_as_one_batch(one_per_request(commands))
        time.sleep(1.2)
        assert not any(future.done() for future in futures)
    assert_placed_once(commands, outcomes_of(futures))


# --- Event loops ----------------------------------------------------------------------------------------------------


@each_waiter
def test_the_lead_passes_to_the_next_waiter_of_any_kind(settings: Settings) -> None:
    settings.SEQUENCER_BATCH = 1
    commands = bids(12)
    assert_placed_once(commands, outcomes_of(enqueue_as_one_batch(one_per_request(commands))))
    assert batch_sizes(commands) == [1] * 12


def test_many_concurrent_requests_get_their_own_outcomes() -> None:
    """Requests wait on one loop and in threads."""
    commands = bids(120)
    submits = [submit_on_loop, submit_in_thread, submit_on_loop]
    jobs = [partial(submit_each, submit, commands[number::3]) for number, submit in enumerate(submits)]
    futures = dict(pair for each in run_concurrently(jobs) for pair in each)
    assert_placed_once(commands, outcomes_of([futures[command.order_id] for command in commands]))


def submit_each(
    submit: Callable[[Sequence[Command]], Future[list[Outcome]]], commands: Sequence[PlaceOrder]
) -> list[tuple[UUID, Future[list[Outcome]]]]:
    return [(command.order_id, submit([command])) for command in commands]


def test_a_promoted_leader_is_not_rejected_at_its_timeout(settings: Settings) -> None:
    """Its batch starts late, because the leader thread is busy."""
    settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS = 0.1
    (command,), late = bids(1), Event()
    sequencer._leader_thread.submit(late.wait, WAIT_SECONDS)
    future = submit_on_loop([command])
    time.sleep(0.4)
    assert not future.done()
    late.set()
    assert_placed_once([command], outcomes_of([future]))


def test_a_cancelled_task_affects_no_other_request() -> None:
    """Its own command may still be executed."""
    abandoned, *others = bids(5)
    with batch_in_progress():
        first, second = enqueue(others[0]), submit_on_loop([others[1]])
        assert becomes_true(lambda: queue_length() == 2)
        task = submit_on_loop([abandoned])
        assert becomes_true(lambda: queue_length() == 3)
        third, fourth = enqueue(others[2]), submit_on_loop([others[3]])
        assert becomes_true(lambda: queue_length() == 5)
        assert task.cancel()
    assert_placed_once(others, outcomes_of([first, second, third, fourth]))
    assert queue_length() == 0


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_stopped_loop_does_not_block_other_requests(position: int) -> None:
    """The loop's request is the leader or a follower."""
    abandoned, *others = bids(3)

    def submit_and_stop() -> None:
        asyncio.run(asyncio.wait_for(sequencer._sequencer.submit_async([abandoned]), 0.3))

    with batch_in_progress():
        futures: list[Future[list[Outcome]]] = []
        stopped = None
        for number in range(3):
            if number == position:
                stopped = start_thread(submit_and_stop)
                assert becomes_true(lambda number=number: queue_length() == number + 1)  # type: ignore[misc]
            else:
                futures.append(enqueue(others[len(futures)]))
        assert stopped is not None
        assert isinstance(stopped.exception(WAIT_SECONDS), TimeoutError)
    assert_placed_once(others, outcomes_of(futures))


class LateDeque(deque[Any]):
    """A deque that receives an item right after it was found empty."""

    def __init__(self, put: Callable[[], None]) -> None:
        super().__init__()
        self._put: Callable[[], None] | None = put

    def __bool__(self) -> bool:
        is_filled = len(self) > 0
        if not is_filled and self._put:
            put, self._put = self._put, None
            put()
        return is_filled


def test_a_future_added_after_the_last_check_is_woken() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        waker, first, second = waiters.LoopWaker(loop), loop.create_future(), loop.create_future()
        waker._futures = LateDeque(lambda: waker.wake(second))
        waker.wake(first)
        await asyncio.wait_for(asyncio.gather(first, second), 2)

    asyncio.run(run())


def test_a_cancelled_future_does_not_stop_others() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        waker, cancelled, waiting = waiters.LoopWaker(loop), loop.create_future(), loop.create_future()
        cancelled.cancel()
        waker.wake(cancelled)
        waker.wake(waiting)
        await asyncio.wait_for(waiting, 2)

    asyncio.run(run())


def test_futures_of_many_threads_are_all_woken() -> None:
    async def wake_repeatedly(waker: waiters.LoopWaker) -> None:
        for _ in range(100):
            future: asyncio.Future[None] = waker.loop.create_future()
            await waker.loop.run_in_executor(None, waker.wake, future)
            await future

    async def run() -> None:
        waker = waiters.LoopWaker(asyncio.get_running_loop())
        await asyncio.wait_for(asyncio.gather(*(wake_repeatedly(waker) for _ in range(16))), WAIT_SECONDS)

    asyncio.run(run())


# --- Failing commands -----------------------------------------------------------------------------------------------


@each_waiter
def test_a_command_that_the_database_rejects_affects_no_other() -> None:
    """The rules accept it, but its order id exists, which no client can cause."""
    taken = place(Side.BID, 1, "9.00").pk
    poison = order(Side.BID, 1, "10.00", order_id=taken)
    commands = bids(20)
    outcomes = outcomes_of(enqueue_as_one_batch(one_per_request([*commands[:13], poison, *commands[13:]])))
    assert isinstance(outcomes.pop(13), InternalError)
    assert_placed_once(commands, outcomes)
    assert Order.objects.exclude(instrument=GATE).count() == 21


@contextmanager
def lock_timeout_ms(limit: int) -> Iterator[None]:
    """Set the lock timeout of this process's connections."""
    options = connection.settings_dict["OPTIONS"]
    before = options["options"]
    options["options"] = re.sub(r"lock_timeout=\d+", f"lock_timeout={limit}", before)
    assert options["options"] != before
    renew_connections()
    try:
        yield
    finally:
        options["options"] = before
        renew_connections()


def renew_connections() -> None:
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]  # only PostgreSQL's has a pool


def outcomes_with_locked_row(model: type[Model], key: str, requests: Sequence[Command]) -> list[Outcome]:
    """Outcomes of a batch of requests while a row stays locked for longer than the lock timeout."""
    with ExitStack() as stack:
        stack.enter_context(locked_row(model, key))
        stack.enter_context(lock_timeout_ms(round(trading.TIMEOUT_SECONDS * 1000)))  # until all are queued
        with batch_in_progress():
            stack.enter_context(lock_timeout_ms(LOCK_TIMEOUT_MS))
            futures = [enqueue(request) for request in requests]
        started = time.monotonic()
        outcomes = outcomes_of(futures)
        assert time.monotonic() - started < 4 * LOCK_TIMEOUT_MS / 1000  # not one timeout after another
        return outcomes


def one_per_request(commands: Sequence[Command]) -> list[list[Command]]:
    """One request per command."""
    return [[command] for command in commands]


def test_a_locked_book_blocks_no_other_book() -> None:
    commands = bids(12)
    cancelled, kept = place(Side.BID, 1, "9.00", symbol="AAPL"), place(Side.BID, 1, "9.00", symbol="GOOG")
    cancels: list[Command] = [CancelOrder(cancelled.pk, "alice"), CancelOrder(kept.pk, "alice")]
    *outcomes, of_free_book, of_locked_book = outcomes_with_locked_row(Instrument, "GOOG", [*commands, *cancels])
    assert [isinstance(outcome, Overloaded) for outcome in outcomes] == [each.symbol == "GOOG" for each in commands]
    assert [isinstance(outcome, Accepted) for outcome in outcomes] == [each.symbol != "GOOG" for each in commands]
    assert (type(of_free_book), type(of_locked_book)) == (Cancelled, Overloaded)
    rejected = [command for command in commands if command.symbol == "GOOG"]
    assert not Order.objects.filter(pk__in=[command.order_id for command in rejected]).exists()
    assert Order.objects.get(pk=kept.pk).status == OrderStatus.PENDING
    assert_placed_once(rejected, outcomes_of(enqueue_as_one_batch(one_per_request(rejected))))


def test_a_locked_broker_blocks_only_commands_that_need_it() -> None:
    place(Side.ASK, 5, "8.00", by="carol", symbol="MSFT")
    commands = bids(12, symbol="AAPL")
    crossing = order(Side.BID, 5, "8.00", by="alice", symbol="MSFT")  # crosses carol's ask
    own = [order(Side.BID, 1, "10.00", by="carol", symbol="GOOG") for _ in range(20)]
    blocked: list[PlaceOrder] = [crossing, *own]
    outcomes = outcomes_with_locked_row(Broker, "carol", [*commands[:5], crossing, *commands[5:], *own])
    assert isinstance(outcomes.pop(5), Overloaded)
    assert all(isinstance(outcomes.pop(), Overloaded) for _ in own)
    assert_placed_once(commands, outcomes)
    assert not Order.objects.filter(pk__in=[command.order_id for command in blocked]).exists()
    assert_placed_once(blocked, outcomes_of(enqueue_as_one_batch(one_per_request(blocked))))
    assert Order.objects.get(pk=crossing.order_id).status == OrderStatus.FILLED


# --- Lost connections -----------------------------------------------------------------------------------------------


def end_waiting_session() -> None:
    wait_for_lock_waiter()
    ended = query_rows("SELECT pg_terminate_backend(pid) FROM (SELECT DISTINCT pid FROM pg_locks WHERE NOT granted) _")
    assert ended == [(True,)]


@each_waiter
def test_a_batch_whose_session_ends_before_the_commit_is_retried() -> None:
    commands = bids(12)
    with locked_row(Instrument, "MSFT"):
        futures = enqueue_as_one_batch(one_per_request(commands))
        end_waiting_session()
    assert_placed_once(commands, outcomes_of(futures))
    assert batch_sizes(commands) == [12]


def test_sessions_that_end_together_are_replaced_together() -> None:
    idle, together = 8, Barrier(8, timeout=WAIT_SECONDS)

    def session() -> int:
        ((pid,),) = query_rows("SELECT pg_backend_pid()")
        together.wait()  # keeps all connections in use together
        return int(pid)

    sessions = run_concurrently([session] * idle)
    commands = bids(12)
    with locked_row(Instrument, "MSFT"):
        futures = enqueue_as_one_batch(one_per_request(commands))
        wait_for_lock_waiter()
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE state = 'idle' AND pid = ANY(%s)",
                [sessions],
            )
            assert cursor.fetchone()[0] > 2
        end_waiting_session()
    assert_placed_once(commands, outcomes_of(futures))


@contextmanager
def failing_commits(count: int) -> Iterator[None]:
    """End the session during the COMMIT of the first `count` transactions that place orders."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            CREATE SEQUENCE failures;
            CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF nextval('failures') <= %s THEN  -- a sequence is not rolled back
                PERFORM pg_terminate_backend(pg_backend_pid());
                PERFORM pg_sleep(1);
              END IF;
              RETURN NULL;
            END $$;
            CREATE CONSTRAINT TRIGGER fails AFTER INSERT ON orders_order
              DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail();
            """,
            [count],
        )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER fails ON orders_order; DROP FUNCTION fail; DROP SEQUENCE failures")


def test_a_failed_commit_is_retried() -> None:
    commands = bids(5)
    with failing_commits(1):
        assert_placed_once(commands, sequencer.submit_all(commands))
        assert query_rows("SELECT last_value > 1 FROM failures") == [(True,)]
    assert Order.objects.count() == 5


def test_repeatedly_failed_commits_are_overloaded() -> None:
    commands = bids(5)
    with failing_commits(2):
        assert [type(outcome) for outcome in sequencer.submit_all(commands)] == [Overloaded] * 5
        assert query_rows("SELECT last_value FROM failures") == [(2,)]
    assert Order.objects.count() == 0
    assert_placed_once(commands, sequencer.submit_all(commands))


WAITING_COMMITS = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@contextmanager
def commits_without_response() -> Iterator[None]:
    """Let the server commit but never respond, because it waits for a missing standby."""
    set_standby("nobody")
    try:
        probes = [start_thread(write)]

        def is_unanswered() -> bool:
            if probes[-1].done():
                probes.append(start_thread(write))
            return bool(query_rows(WAITING_COMMITS))

        assert becomes_true(is_unanswered), "commits are not held back"
        yield
    finally:
        set_standby("")
    for probe in probes:
        probe.result(WAIT_SECONDS)


def set_standby(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        cursor.execute("SELECT pg_reload_conf()")


def write() -> None:
    """Commit a transaction that changes no table."""
    query_rows("SELECT pg_logical_emit_message(true, '', '')")


def submit_without_response(commands: Sequence[Command], interfere: Callable[[], None] = lambda: None) -> list[Outcome]:
    """Outcomes of a batch whose session ends after its COMMIT took effect and before the response."""
    committing = f"{WAITING_COMMITS} AND query LIKE '%webhooks_publish%'"  # shows only the beginning of a long query
    with commits_without_response():
        future = start_thread(partial(sequencer.submit_all, commands))
        assert becomes_true(lambda: bool(query_rows(committing))), "no COMMIT waits"
        interfere()
        ((pid,),) = query_rows(committing)
        assert query_rows(f"SELECT pg_terminate_backend({pid})") == [(True,)]
    return future.result(WAIT_SECONDS)


def test_a_commit_with_a_lost_response_is_not_repeated() -> None:
    maker = place(Side.ASK, 5, "10.00", by="carol")
    commands = bids(5)  # the first one crosses the maker
    assert_placed_once(commands, submit_without_response(commands))
    maker.refresh_from_db()
    assert maker.filled_quantity == 5
    assert Order.objects.count() == 6


def test_cancels_with_a_lost_commit_response_are_returned_as_cancelled() -> None:
    resting = [place(Side.BID, 1, "9.00", symbol=symbol) for symbol in SYMBOLS]
    outcomes = submit_without_response([CancelOrder(each.pk, "alice") for each in resting])
    assert [type(outcome) for outcome in outcomes] == [Cancelled] * 3
    assert set(Order.objects.values_list("status", flat=True)) == {OrderStatus.CANCELLED}


def test_rejections_do_not_wait_for_a_commit() -> None:
    with commits_without_response():
        outcomes = start_thread(
            partial(sequencer.submit_all, [order(Side.BID, AMPLE, "10.00"), CancelOrder(UUID(int=1), "alice")])
        ).result(WAIT_SECONDS)
    assert [type(outcome) for outcome in outcomes] == [InsufficientBalance, OrderNotFound]


def test_an_order_filled_before_its_lost_commit_was_verified_is_returned_as_placed() -> None:
    """A waiter for the book gets it as soon as the session ends, before the commit is verified."""
    commands = bids(3, symbol="AAPL")
    rivals: list[Future[list[Outcome]]] = []

    def rival_waits() -> None:
        rivals.append(start_thread(partial(service.execute, [order(Side.ASK, 6, "10.00", by="carol")])))
        wait_for_lock_waiter()

    outcomes = submit_without_response(commands, rival_waits)
    (sold,) = rivals[0].result(WAIT_SECONDS)
    assert isinstance(sold, Accepted)
    assert sold.order.status == OrderStatus.FILLED
    assert_placed_once(commands, outcomes)


# --- Stress ---------------------------------------------------------------------------------------------------------

STRESS_SECONDS = 2.5
CLIENTS = 16


def submit_randomly(stop: Event, existing_id: UUID, number: int) -> dict[type[Outcome], set[UUID]]:
    """Submit one order after another, some with an existing id. Return the order ids by type of outcome."""
    ids: dict[type[Outcome], set[UUID]] = defaultdict(set)
    random = Random(number)
    while not stop.is_set():
        more: dict[str, Any] = {"order_id": existing_id} if random.random() < 0.05 else {}
        command = order(random.choice(list(Side)), 1, "10.00", by=random.choice(BROKERS), **more)
        try:
            (outcome,) = (submit_on_loop if number % 2 else submit_in_thread)([command]).result(WAIT_SECONDS)
        except (Overloaded, OutcomeUnknown) as error:
            outcome = error
            time.sleep(random.uniform(0, 0.01))
        ids[type(outcome)].add(command.order_id)
    return ids


def disturb(stop: Event) -> None:
    """Lock the book for short times, and end sessions that wait for it."""
    random = Random(1)
    while not stop.is_set():
        with locked_row(Instrument, "AAPL"):
            time.sleep(random.uniform(0, 0.02))
            if random.random() < 0.2:
                query_rows("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        time.sleep(random.uniform(0, 0.02))


def test_the_lead_survives_failures_and_timeouts(settings: Settings) -> None:
    patience, existing_id, stop = settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS, place(Side.BID, 1, "1.00").pk, Event()
    settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS = settings.SEQUENCER_EXECUTION_TIMEOUT_SECONDS = 0.02  # about one batch
    futures = [start_thread(partial(submit_randomly, stop, existing_id, number)) for number in range(CLIENTS)]
    disturbance = start_thread(partial(disturb, stop))
    time.sleep(STRESS_SECONDS)
    stop.set()
    disturbance.result(WAIT_SECONDS)
    submitted: dict[type[Outcome], set[UUID]] = defaultdict(set)
    for future in futures:
        for kind, ids in future.result(WAIT_SECONDS).items():
            submitted[kind] |= ids
    stored = set(Order.objects.values_list("pk", flat=True))
    assert submitted.keys() - {InternalError} == {Accepted, Overloaded, OutcomeUnknown}
    assert submitted[InternalError] <= {existing_id}
    assert submitted[Accepted] <= stored
    assert (submitted[Overloaded] - {existing_id}).isdisjoint(stored)
    assert stored - {existing_id} <= submitted[Accepted] | submitted[OutcomeUnknown]
    settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS = patience
    assert isinstance(sequencer.submit(bids(1)[0]), Accepted)


def test_a_request_promoted_at_its_timeout_leads(settings: Settings) -> None:
    settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS = 1.5
    first, *others = bids(4)
    mutex = sequencer._sequencer._mutex  # needed by the promotion, and then by the timeout
    with batch_in_progress():
        leading = enqueue(first)
        time.sleep(0.05)
        settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS = WAIT_SECONDS
        following = [enqueue(command) for command in others]
        holding = start_thread(partial(hold, mutex, 2.0))
        assert becomes_true(mutex.locked)
    holding.result(WAIT_SECONDS)
    assert_placed_once([first, *others], outcomes_of([leading, *following]))


def hold(mutex: Lock, seconds: float) -> None:
    with mutex:
        time.sleep(seconds)


@pytest.mark.parametrize(
    ("blocker", "expected"), [(partial(locked_row, Instrument, "MSFT"), OutcomeUnknown), (batch_lock_held, Accepted)]
)
def test_a_killed_leader_thread_passes_the_lead_on(
    blocker: Callable[[], AbstractContextManager[None]], expected: type[Outcome], settings: Settings
) -> None:
    """A stopping server may end a thread at any point."""
    settings.SEQUENCER_BATCH_LOCK_TIMEOUT_SECONDS = 1.0  # the thread ends once the database has responded
    leader, follower, last = bids(3, symbol="MSFT")
    identity: list[int] = []

    def lead() -> list[Outcome]:
        identity.append(get_ident())
        return sequencer.submit_all([leader])

    with blocker():
        with batch_in_progress():
            leading = start_thread(lead)
            assert becomes_true(lambda: queue_length() == 1)
            following = enqueue(follower)
        wait_for_lock_waiter()
        third = enqueue(last)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(identity[0]), ctypes.py_object(SystemExit))
        assert isinstance(leading.exception(WAIT_SECONDS), SystemExit)
    assert isinstance(outcome_of(following), expected)
    assert_placed_once([last], outcomes_of([third]))


# --- Several processes ----------------------------------------------------------------------------------------------

CROSSED = """
SELECT FROM orders_order bid JOIN orders_order ask USING (symbol)
WHERE bid.side = 'bid' AND ask.side = 'ask' AND bid.price >= ask.price
  AND bid.status IN ('pending', 'partially_filled') AND ask.status IN ('pending', 'partially_filled')
LIMIT 1
"""
TRADING_SECONDS = 2.0


def crossing_orders(number: int) -> Iterator[PlaceOrder]:
    """An endless series of orders that cross each other."""
    random = Random(number)
    while True:
        price = f"10.{random.randint(0, 9):02}"
        side, symbol = random.choice(list(Side)), random.choice(SYMBOLS)
        yield order(side, random.randint(1, 9), price, by="dave", symbol=symbol, document_number=str(number))


def submit_until(stop: Event, number: int) -> int:
    """Submit orders in this process and return their number."""
    for sent, command in enumerate(crossing_orders(number)):
        if stop.is_set():
            return sent
        assert isinstance(sequencer.submit(command), Accepted)
    raise AssertionError


def post_crossing_until(stop: Event, http: httpx.Client, number: int) -> int:
    """Post orders to the server and return their number."""
    for sent, command in enumerate(crossing_orders(number)):
        if stop.is_set():
            return sent
        response = http.post("/orders", json=body_of(command))
        assert response.status_code == 201, response.text
    raise AssertionError


def test_batches_of_two_processes_never_cross_a_book(server: live.Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "httpx")
    stop = Event()
    with http_client(server, create_dave()) as http:
        here = [start_thread(partial(submit_until, stop, number)) for number in range(6)]
        there = [start_thread(partial(post_crossing_until, stop, http, number)) for number in range(6, 12)]
        deadline = time.monotonic() + TRADING_SECONDS
        while time.monotonic() < deadline:
            assert query_rows(CROSSED) == []
            time.sleep(0.05)
        stop.set()
        sent = [sum(future.result(WAIT_SECONDS) for future in each) for each in (here, there)]
    assert min(sent) > 20
    assert Order.objects.count() == sum(sent)
    assert query_rows(CROSSED) == []
    totals = Broker.objects.aggregate(cash=Sum("cash"))
    assert totals["cash"] == 4 * AMPLE + trading.CASH
