"""What the sequencer promises to those who wait in it: their own outcome, exactly once, or the truth about it in time.

Real threads, a real PostgreSQL, and what fails really fails: locks are held, sessions ended, answers lost. Every test
ends with all invariants recomputed (see conftest.py).
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
from tests.trading import at_once, in_thread, order, place

pytestmark = pytest.mark.django_db(transaction=True)

SYMBOLS = ["AAPL", "GOOG", "MSFT"]
BROKERS = ["alice", "bob", "carol"]
AMPLE = 10**9
SHORT_SECONDS = 3.0  # at once, on a machine that has other things to do
LOCK_TIMEOUT_MS = 500  # where somebody holds what is asked for
WAIT_SECONDS = 8.0  # past any time-out of the database's that a test leaves as it is
GATE = "GATE"


@pytest.fixture(autouse=True)
def _market(db: None, settings: Settings) -> None:
    """Three brokers, three books, and a book whose only use is to be held."""
    for broker_id in BROKERS:
        trading.broker(broker_id, cash=AMPLE, holdings=dict.fromkeys(SYMBOLS, AMPLE))
    trading.broker("gatekeeper", holdings={GATE: 1})
    settings.WEB_PROCESSES = 2  # whoever runs this
    settings.SEQUENCER_BATCH_SECONDS = 60.0  # what waits is one list, however slow the one before it was


# --- How lists come about -------------------------------------------------------------------------------------------


def held(model: type[Model], key: str) -> AbstractContextManager[None]:
    """Somebody else locks a row until the end of the `with`, and changes nothing."""
    return locked_by_another(lambda: model._default_manager.select_for_update(no_key=True).get(pk=key))


@contextmanager
def locked_by_another(lock: Callable[[], object]) -> Iterator[None]:
    locked, release = Event(), Event()

    def hold() -> None:
        with transaction.atomic():
            lock()
            locked.set()
            release.wait(trading.PATIENCE_SECONDS)
            transaction.set_rollback(True)  # without waiting for anything that a COMMIT may have to wait for

    holding = in_thread(hold)
    try:
        assert locked.wait(WAIT_SECONDS)
        yield
    finally:
        release.set()
        holding.result(WAIT_SECONDS)


def soon(condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true, looked at more often than `wait_until` does."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def asked(query: str) -> list[Any]:
    """The rows of a query."""
    with connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def wait_for_lock_waiters(how_many: int = 1) -> None:
    waiters = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
    assert soon(lambda: bool(asked(waiters)[0][0] >= how_many)), "nobody waits for the lock"


def waiting() -> int:
    """How many requests queue in this process."""
    return len(sequencer._sequencer._waiters)


def ask_in_thread(commands: Sequence[Command]) -> Future[list[Outcome]]:
    return in_thread(partial(sequencer.submit_all, commands))


def ask_on_loop(commands: Sequence[Command]) -> Future[list[Outcome]]:
    return asyncio.run_coroutine_threadsafe(sequencer._sequencer.submit_async(commands), _loop)


_loop: asyncio.AbstractEventLoop
_ways: Iterator[Callable[[Sequence[Command]], Future[list[Outcome]]]] = cycle([ask_in_thread])


@pytest.fixture(scope="module", autouse=True)
def _running_loop() -> Iterator[None]:
    """An event loop, as a web process has one."""
    global _loop
    _loop = asyncio.new_event_loop()
    thread = Thread(target=_loop.run_forever, daemon=True)
    thread.start()
    yield
    _loop.call_soon_threadsafe(_loop.stop)
    thread.join(WAIT_SECONDS)
    _loop.close()


@pytest.fixture(params=["in threads", "on the loop", "by turns"])
def _each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests wait in threads, on an event loop, and both."""
    ways = {"in threads": [ask_in_thread], "on the loop": [ask_on_loop], "by turns": [ask_on_loop, ask_in_thread]}
    monkeypatch.setitem(globals(), "_ways", cycle(ways[request.param]))


each_way = pytest.mark.usefixtures("_each_way")


def hand_in(*commands: Command) -> Future[list[Outcome]]:
    """A request of its own, queued by the time this returns: there must be a list under way."""
    before = waiting()
    future = next(_ways)(commands)
    assert soon(lambda: waiting() > before), "it does not wait"
    return future


@contextmanager
def busy() -> Iterator[Future[list[Outcome]]]:
    """A list is under way until the end of the `with`; what is handed in meanwhile waits."""
    with held(Instrument, GATE):
        gate = in_thread(partial(sequencer.submit_all, [order(Side.BID, 1, "1.00", by="gatekeeper", symbol=GATE)]))
        wait_for_lock_waiters()
        yield gate
    (outcome,) = gate.result(WAIT_SECONDS)
    assert isinstance(outcome, Accepted)


def as_one_list(requests: Sequence[Sequence[Command]]) -> list[Future[list[Outcome]]]:
    """Hand in the requests while a list is under way, so that together they are the next."""
    with busy():
        return [hand_in(*request) for request in requests]


def answers(futures: Sequence[Future[list[Outcome]]]) -> list[Outcome]:
    """What requests of one command each were answered, or what was raised to them."""
    return [answer(future) for future in futures]


def answer(future: Future[list[Outcome]]) -> Outcome:
    error = future.exception(trading.PATIENCE_SECONDS)
    if error is None:
        (outcome,) = future.result()
        return outcome
    assert isinstance(error, ExchangeError), error
    return error


def bids(how_many: int, **more: Any) -> list[PlaceOrder]:
    """Orders that rest, in all books and of all brokers by turns, unless `more` says otherwise; no two are alike."""
    return [
        order(
            Side.BID,
            number + 1,
            "10.00",
            **{"by": BROKERS[number % 2], "symbol": SYMBOLS[number % 3], "client_order_id": f"bid-{number}"} | more,
        )
        for number in range(how_many)
    ]


def lists_of(commands: Sequence[PlaceOrder]) -> list[int]:
    """How many of these orders each transaction placed, the earliest transaction first."""
    transactions = dict(asked("SELECT id, xmin::text::bigint FROM orders_order"))
    sizes = Counter(transactions[command.order_id] for command in commands)
    return [sizes[each] for each in sorted(sizes)]


def assert_placed_once(commands: Sequence[PlaceOrder], outcomes: Sequence[Outcome]) -> None:
    """Each was answered with its own order, and that is there."""
    for command, outcome in zip(commands, outcomes, strict=True):
        assert isinstance(outcome, Accepted), outcome
        assert (outcome.order.id, outcome.order.quantity) == (command.order_id, command.quantity)
    assert Order.objects.filter(pk__in=[command.order_id for command in commands]).count() == len(commands)


# --- Combining ------------------------------------------------------------------------------------------------------


@each_way
def test_what_queues_while_a_list_is_under_way_is_the_next_list_whatever_books_it_is_for() -> None:
    commands = bids(30)
    outcomes = answers(as_one_list(each_alone(commands)))
    assert_placed_once(commands, outcomes)
    assert lists_of(commands) == [30]


def test_a_list_is_executed_in_the_order_of_arrival() -> None:
    commands = bids(30)
    answers(as_one_list(each_alone(commands)))
    for symbol in SYMBOLS:
        arrived = [command.order_id for command in commands if command.symbol == symbol]
        assert (
            list(Order.objects.filter(instrument=symbol).order_by("sequence").values_list("pk", flat=True)) == arrived
        )


@each_way
def test_everybody_gets_the_outcome_of_their_own() -> None:
    resting = place(Side.BID, 5, "9.00", by="bob")
    good, other = bids(2)
    requests: list[list[Command]] = [
        [good],
        [order(Side.BID, AMPLE, "10.00")],
        [CancelOrder(resting.pk, "bob"), order(Side.BID, 1, "1.00", symbol="NONE"), other],
        [replace(good, order_id=UUID(int=1))],
        [CancelOrder(UUID(int=2), "bob")],
    ]
    outcomes = [future.result(WAIT_SECONDS) for future in as_one_list(requests)]
    assert [[type(outcome) for outcome in each] for each in outcomes] == [
        [Accepted],
        [InsufficientBalance],
        [Cancelled, SymbolNotFound, Accepted],
        [Replayed],
        [OrderNotFound],
    ]
    assert_placed_once([good, other], [outcomes[0][0], outcomes[2][2]])


def test_a_list_has_no_more_commands_than_a_transaction_may_have(settings: Settings) -> None:
    settings.SEQUENCER_BATCH = 10
    commands = bids(30)
    requests = [commands[:4], commands[4:8], commands[8:12], commands[12:24], commands[24:]]
    outcomes = [future.result(WAIT_SECONDS) for future in as_one_list(requests)]
    assert_placed_once(commands, [outcome for each in outcomes for outcome in each])
    assert lists_of(commands) == [8, 4, 12, 6]  # no request is torn, be it larger than a list may be


def test_a_list_is_no_longer_than_the_pace_of_the_one_before_allows(settings: Settings) -> None:
    settings.SEQUENCER_BATCH_SECONDS = 0.25
    commands = bids(12)
    with busy():
        futures = [hand_in(command) for command in commands]
        time.sleep(0.3)  # a list of one that takes this long
    assert_placed_once(commands, answers(futures))
    assert lists_of(commands)[0] == 1
    assert len(lists_of(commands)) < 8  # and then faster again


def test_nothing_waits_for_company(settings: Settings) -> None:
    commands = bids(20)
    took = []
    for command in commands:
        started = time.monotonic()
        sequencer.submit(command)
        took.append(time.monotonic() - started)
    assert lists_of(commands) == [1] * 20
    assert statistics.median(took) < settings.SEQUENCER_TURN_SECONDS


def connections_in_use() -> int:
    """Or being opened."""
    stats = connection.pool.get_stats()  # type: ignore[attr-defined]  # PostgreSQL's has one
    return int(stats["pool_size"] - stats["pool_available"])


def test_who_waits_holds_no_database_connection() -> None:
    """Else as many waiting requests as the pool has connections would leave none to the one they wait for."""
    commands = bids(40)

    def request(command: PlaceOrder) -> Outcome:
        Broker.objects.get(pk=command.broker_id)  # as a request does that looks at its key
        return sequencer.submit(command)

    with busy():
        futures = [in_thread(partial(request, command)) for command in commands]
        assert soon(lambda: waiting() == len(commands))
        assert soon(lambda: connections_in_use() <= 3)  # who leads, who holds the lock, and this test
    assert_placed_once(commands, [future.result(WAIT_SECONDS) for future in futures])


# --- Turns of processes ---------------------------------------------------------------------------------------------

TAKE_TURN = "SELECT pg_advisory_xact_lock(x'7475726E'::int, 0)"


def turn_of_another() -> AbstractContextManager[None]:
    """Another process has its turn until the end of the `with`."""
    return locked_by_another(lambda: asked(TAKE_TURN))


@each_way
def test_a_list_is_what_came_until_it_is_the_turn_of_this_process(settings: Settings) -> None:
    settings.SEQUENCER_TURN_SECONDS = WAIT_SECONDS
    commands = bids(10)
    with turn_of_another():
        futures = as_one_list(each_alone(commands[:3]))
        wait_for_lock_waiters()
        futures += [hand_in(command) for command in commands[3:]]
        assert waiting() == len(commands)
    assert_placed_once(commands, answers(futures))
    assert lists_of(commands) == [10]


@each_way
def test_who_waits_for_a_turn_in_vain_goes_on_without(settings: Settings) -> None:
    settings.SEQUENCER_TURN_SECONDS = 1.5
    commands = bids(10)
    with turn_of_another():
        futures = as_one_list(each_alone(commands))
        wait_for_lock_waiters()
        assert_placed_once(commands, answers(futures))
    assert lists_of(commands) == [10]


def test_a_process_alone_waits_for_no_turn(settings: Settings) -> None:
    settings.SEQUENCER_TURN_SECONDS, settings.WEB_PROCESSES = WAIT_SECONDS, 1
    commands = bids(10)
    with turn_of_another():
        futures = as_one_list(each_alone(commands))
        started = time.monotonic()
        assert_placed_once(commands, answers(futures))
        assert time.monotonic() - started < WAIT_SECONDS / 2


def test_who_is_asked_alone_waits_for_no_turn(settings: Settings) -> None:
    settings.SEQUENCER_TURN_SECONDS = WAIT_SECONDS
    commands = bids(3)
    with turn_of_another():
        started = time.monotonic()
        assert_placed_once(commands, [sequencer.submit(command) for command in commands])
        assert time.monotonic() - started < WAIT_SECONDS / 2


@each_way
@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_wait_for_the_turn_that_is_broken_off_costs_nobody_their_order(end: str, settings: Settings) -> None:
    settings.SEQUENCER_TURN_SECONDS = WAIT_SECONDS
    commands = bids(10)
    with turn_of_another():
        futures = as_one_list(each_alone(commands))
        wait_for_lock_waiters()
        asked(f"SELECT {end}(pid) FROM pg_locks WHERE NOT granted")  # noqa: S608
        assert_placed_once(commands, answers(futures))
    assert lists_of(commands) == [10]


@pytest.mark.parametrize("other", [turn_of_another, nullcontext])
def test_a_turn_ends_with_its_transaction_and_changes_nothing_of_it(
    other: Callable[[], AbstractContextManager[None]], settings: Settings
) -> None:
    settings.SEQUENCER_TURN_SECONDS = 0.05
    (command,) = bids(1)
    patience = asked("SHOW lock_timeout")
    with other():
        service.begin_with_batch_lock()
        assert asked("SHOW lock_timeout") == patience
        assert_placed_once([command], service.execute([command]))
    with turn_of_another():  # it is free again
        assert lists_of([command]) == [1]


# --- The bound ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "requests"),
    [("SEQUENCER_QUEUE_REQUESTS", [1] * 5), ("SEQUENCER_QUEUE_COMMANDS", [2, 3])],
)
def test_who_comes_when_too_many_wait_is_refused_at_once(limit: str, requests: list[int], settings: Settings) -> None:
    setattr(settings, limit, 5)
    *commands, late = bids(6)
    with busy():
        rest = iter(commands)
        futures = [hand_in(*[next(rest) for _ in range(size)]) for size in requests]
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
SMALL = f"""
from config.settings.api import *
SEQUENCER_QUEUE_REQUESTS = {QUEUE_OF_SMALL_SERVER}
SEQUENCER_PATIENCE_SECONDS = 20.0
_options = DATABASES["default"]["OPTIONS"]
_options["options"] = _options["options"].replace("lock_timeout=2000", "lock_timeout=20000")
"""


@pytest.fixture(scope="module")
def small_server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    """A web server that lets few wait, but those for long."""
    folder: Path = tmp_path_factory.mktemp("small")
    (folder / "small_settings.py").write_text(SMALL)
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
    """Orders for a book that is held: one leads alone, the others fill the queue of the small server."""
    leading, *others = [
        partial(http.post, "/orders", json=body_of(command))
        for command in bids(1 + QUEUE_OF_SMALL_SERVER, by="dave", symbol="AAPL")
    ]
    first = in_thread(leading)
    wait_for_lock_waiters()
    return [first, *map(in_thread, others)]


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


def trader(broker_id: str = "dave") -> str:
    """A broker's key."""
    return trading.broker(broker_id, cash=AMPLE, holdings=dict.fromkeys(SYMBOLS, AMPLE))


def assert_turned_away(response: httpx.Response, request_id: str) -> None:
    assert response.status_code == 503
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Retry-After"] == "1"
    assert response.headers["X-Request-Id"] == request_id
    assert response.elapsed.total_seconds() < SHORT_SECONDS
    body = response.json()
    assert (body["code"], body["status"], body["request_id"]) == ("overloaded", 503, request_id)


def test_a_full_server_turns_away_at_the_door_what_is_for_a_book_and_still_answers_reads(
    small_server: live.Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "httpx")
    with http_client(small_server, trader()) as http:
        resting = http.post("/orders", json=body_of(bids(1, by="dave", client_order_id="resting")[0])).json()[
            "order_id"
        ]
        with held(Instrument, "AAPL"):
            posts = fill_up(http)
            assert wait_until(lambda: httpx.post(f"{small_server.url}/orders").status_code == 503, WAIT_SECONDS)
            late = body_of(order(Side.BID, 1, "10.00", by="dave", client_order_id="late"))
            for method, path, body in [
                ("POST", "/orders", late),
                ("POST", "/orders/batch", {"orders": [late]}),
                ("DELETE", f"/orders/{resting}", None),
            ]:
                named = f"{method}{len(path)}"
                response = http.request(method, path, json=body, headers={"X-Request-Id": named})
                assert_turned_away(response, named)
            for path in (f"/orders/{resting}", "/stocks/AAPL/book", "/brokers/dave/balance", "/healthz"):
                assert http.get(path).status_code == 200, path
            assert not any(post.done() for post in posts)
        assert [post.result(WAIT_SECONDS).status_code for post in posts] == [201] * len(posts)
        assert http.get(f"/orders/{resting}").json()["status"] == OrderStatus.PENDING
        assert http.get("/orders", params={"client_order_id": "late"}).status_code == 404
        assert http.post("/orders", json=late).status_code == 201


def test_who_is_turned_away_can_ask_again_over_the_same_connection(small_server: live.Server) -> None:
    """Else a broker's next order meets a closed connection, and what became of that is unknown."""
    key = trader()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    kept = HTTPConnection("127.0.0.1", small_server.port, timeout=WAIT_SECONDS)
    kept.connect()
    kept.auto_open = 0  # a closed connection is not opened again
    with closing(kept), http_client(small_server, key) as http:
        with held(Instrument, "AAPL"):
            posts = fill_up(http)
            assert wait_until(lambda: httpx.post(f"{small_server.url}/orders").status_code == 503, WAIT_SECONDS)
            batch = json.dumps({"orders": [body_of(command) for command in bids(300, by="dave")]}).encode()
            for _ in range(10):
                kept.request("POST", "/orders/batch", batch, headers)
                response = kept.getresponse()
                assert (response.status, json.loads(response.read())["code"]) == (503, "overloaded")
        assert [post.result(WAIT_SECONDS).status_code for post in posts] == [201] * len(posts)


OVERLOAD_SECONDS = 3.0


@dataclass
class Refusals:
    """How long refusals took, and what was accepted."""

    seconds: list[float]
    accepted: list[str]


def post_until(stop: Event, http: httpx.Client, number: int) -> Refusals:
    """Post one order after another, pausing after a refusal as a client does that is told to."""
    told, sent = Refusals([], []), 0
    while not stop.is_set():
        sent += 1
        side = Side.BID if number % 2 else Side.ASK
        command = order(side, 1, "10.00", by="dave", symbol=SYMBOLS[sent % 3], client_order_id=f"{number}-{sent}")
        response = http.post("/orders", json=body_of(command))
        if response.status_code == 201:
            told.accepted.append(response.json()["order_id"])
        else:
            assert (response.status_code, response.json()["code"]) == (503, "overloaded"), response.text
            told.seconds.append(response.elapsed.total_seconds())
            stop.wait(0.1)
    return told


def test_four_times_the_load_is_refused_quickly_and_what_is_accepted_is_there(
    small_server: live.Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "httpx")
    stop = Event()
    with http_client(small_server, trader()) as http:
        posting = [in_thread(partial(post_until, stop, http, number)) for number in range(4 * QUEUE_OF_SMALL_SERVER)]
        with held(Instrument, "AAPL"):  # so that it is too much for whatever machine
            time.sleep(OVERLOAD_SECONDS / 2)
        time.sleep(OVERLOAD_SECONDS / 2)
        stop.set()
        told = [future.result(WAIT_SECONDS) for future in posting]
        single = http.post("/orders", json=body_of(order(Side.BID, 1, "9.00", by="dave")))
    refusals = sorted(seconds for each in told for seconds in each.seconds)
    assert len(refusals) > 100
    assert statistics.median(refusals) < SHORT_SECONDS / 2
    assert refusals[len(refusals) * 99 // 100] < SHORT_SECONDS
    accepted = [order_id for each in told for order_id in each.accepted]
    assert len(accepted) > 4 * QUEUE_OF_SMALL_SERVER
    assert Order.objects.exclude(pk=single.json()["order_id"]).count() == len(accepted)
    assert Order.objects.filter(pk__in=accepted).count() == len(accepted)
    assert single.status_code == 201
    assert single.elapsed.total_seconds() < SHORT_SECONDS


# --- Giving up ------------------------------------------------------------------------------------------------------


@each_way
def test_who_still_waits_when_patience_ends_is_refused_and_nothing_was_done(settings: Settings) -> None:
    settings.SEQUENCER_PATIENCE_SECONDS = 0.6
    impatient, *_ = commands = bids(3)
    with busy() as gate:
        futures = [hand_in(command) for command in commands]
        outcomes = answers(futures)
        assert not gate.done()
    assert [type(outcome) for outcome in outcomes] == [Overloaded] * 3
    assert waiting() == 0
    assert not sequencer.is_full()
    assert isinstance(sequencer.submit(replace(impatient, order_id=UUID(int=1))), Accepted)
    assert Order.objects.exclude(instrument=GATE).count() == 1


@each_way
def test_who_gives_up_makes_room(settings: Settings) -> None:
    settings.SEQUENCER_PATIENCE_SECONDS = 0.6
    settings.SEQUENCER_QUEUE_COMMANDS = 5
    with busy():
        assert isinstance(hand_in(*bids(5)).exception(WAIT_SECONDS), Overloaded)
        settings.SEQUENCER_PATIENCE_SECONDS = WAIT_SECONDS
        patient = hand_in(*bids(5))
    assert [type(outcome) for outcome in patient.result(WAIT_SECONDS)] == [Accepted] * 5


def test_who_is_under_way_when_patience_ends_hears_that_the_outcome_is_unknown(settings: Settings) -> None:
    settings.SEQUENCER_PATIENCE_SECONDS, settings.SEQUENCER_LAST_PATIENCE_SECONDS = 1.0, 0.3  # before a lock's end
    leader, follower = bids(2, symbol="MSFT")
    with held(Instrument, "MSFT"):
        leading, following = as_one_list([[leader], [follower]])
        started = time.monotonic()
        assert isinstance(following.exception(WAIT_SECONDS), OutcomeUnknown)
        assert time.monotonic() - started < SHORT_SECONDS
        assert not leading.done()
    assert_placed_once([leader], answers([leading]))
    repeated = sequencer.submit(replace(follower, order_id=UUID(int=1)))
    assert repeated == Replayed(follower.order_id)
    assert Order.objects.filter(instrument="MSFT").count() == 2


def test_on_a_loop_whoever_is_under_way_when_patience_ends_hears_that(settings: Settings) -> None:
    """Also who leads: another thread does it."""
    settings.SEQUENCER_PATIENCE_SECONDS, settings.SEQUENCER_LAST_PATIENCE_SECONDS = 1.0, 0.3  # before a lock's end
    commands = bids(2, symbol="MSFT")
    with held(Instrument, "MSFT"):
        with busy():
            futures = [ask_on_loop([command]) for command in commands]
            assert soon(lambda: waiting() == 2)
        started = time.monotonic()
        assert [type(outcome) for outcome in answers(futures)] == [OutcomeUnknown] * 2
        assert 0.2 < time.monotonic() - started < SHORT_SECONDS
    again = [sequencer.submit(replace(command, order_id=UUID(int=number))) for number, command in enumerate(commands)]
    assert again == [Replayed(command.order_id) for command in commands]


@each_way
def test_who_is_under_way_when_patience_ends_is_still_answered_in_time(settings: Settings) -> None:
    settings.SEQUENCER_PATIENCE_SECONDS = 1.0
    commands = bids(3, symbol="MSFT")
    with held(Instrument, "MSFT"):
        futures = as_one_list(each_alone(commands))
        time.sleep(1.2)
        assert not any(future.done() for future in futures)
    assert_placed_once(commands, answers(futures))


# --- On an event loop -----------------------------------------------------------------------------------------------


@each_way
def test_the_lead_is_handed_on_whoever_waits_next(settings: Settings) -> None:
    settings.SEQUENCER_BATCH = 1
    commands = bids(12)
    assert_placed_once(commands, answers(as_one_list(each_alone(commands))))
    assert lists_of(commands) == [1] * 12


def test_many_at_once_get_their_own_outcomes() -> None:
    """On one loop and in threads."""
    commands = bids(120)
    ways = [ask_on_loop, ask_in_thread, ask_on_loop]
    jobs = [partial(ask_all, way, commands[number::3]) for number, way in enumerate(ways)]
    asked = dict(pair for each in at_once(jobs) for pair in each)
    assert_placed_once(commands, answers([asked[command.order_id] for command in commands]))


def ask_all(
    way: Callable[[Sequence[Command]], Future[list[Outcome]]], commands: Sequence[PlaceOrder]
) -> list[tuple[UUID, Future[list[Outcome]]]]:
    return [(command.order_id, way([command])) for command in commands]


def test_who_is_to_lead_is_not_refused_when_patience_ends(settings: Settings) -> None:
    """Its turn has come, and the thread that leads for it is late."""
    settings.SEQUENCER_PATIENCE_SECONDS = 0.1
    (command,), late = bids(1), Event()
    sequencer._leader_thread.submit(late.wait, WAIT_SECONDS)
    future = ask_on_loop([command])
    time.sleep(0.4)
    assert not future.done()
    late.set()
    assert_placed_once([command], answers([future]))


def test_who_goes_away_harms_no_other() -> None:
    """A task that is cancelled; what it had handed in may be done."""
    gone, *others = bids(5)
    with busy():
        first, second = hand_in(others[0]), ask_on_loop([others[1]])
        assert soon(lambda: waiting() == 2)
        leaving = ask_on_loop([gone])
        assert soon(lambda: waiting() == 3)
        third, fourth = hand_in(others[2]), ask_on_loop([others[3]])
        assert soon(lambda: waiting() == 5)
        assert leaving.cancel()
    assert_placed_once(others, answers([first, second, third, fourth]))
    assert waiting() == 0


@pytest.mark.parametrize("place_in_the_queue", [0, 1, 2])
def test_a_loop_that_ends_keeps_nobody_from_their_answers(place_in_the_queue: int) -> None:
    """Its request is the first that waits, and leads; or another one does."""
    gone, *others = bids(3)

    def wait_in_vain() -> None:
        asyncio.run(asyncio.wait_for(sequencer._sequencer.submit_async([gone]), 0.3))

    with busy():
        futures: list[Future[list[Outcome]]] = []
        leaving = None
        for number in range(3):
            if number == place_in_the_queue:
                leaving = in_thread(wait_in_vain)
                assert soon(lambda number=number: waiting() == number + 1)  # type: ignore[misc]
            else:
                futures.append(hand_in(others[len(futures)]))
        assert leaving is not None
        assert isinstance(leaving.exception(WAIT_SECONDS), TimeoutError)
    assert_placed_once(others, answers(futures))


class Late(deque[Any]):
    """Of futures: once it was found empty, one comes."""

    def __init__(self, put: Callable[[], None]) -> None:
        super().__init__()
        self._put: Callable[[], None] | None = put

    def __bool__(self) -> bool:
        is_there = len(self) > 0
        if not is_there and self._put:
            put, self._put = self._put, None
            put()
        return is_there


def test_an_answer_that_comes_when_the_mailbox_was_found_empty_is_brought() -> None:
    async def bring() -> None:
        loop = asyncio.get_running_loop()
        waker, first, second = waiters.LoopWaker(loop), loop.create_future(), loop.create_future()
        waker._futures = Late(lambda: waker.wake(second))
        waker.wake(first)
        await asyncio.wait_for(asyncio.gather(first, second), 2)

    asyncio.run(bring())


def test_an_answer_for_who_went_away_stops_no_other() -> None:
    async def bring() -> None:
        loop = asyncio.get_running_loop()
        waker, gone, waiting = waiters.LoopWaker(loop), loop.create_future(), loop.create_future()
        gone.cancel()
        waker.wake(gone)
        waker.wake(waiting)
        await asyncio.wait_for(waiting, 2)

    asyncio.run(bring())


def test_answers_of_many_threads_are_all_brought() -> None:
    async def ask_again_and_again(waker: waiters.LoopWaker) -> None:
        for _ in range(100):
            future: asyncio.Future[None] = waker.loop.create_future()
            await waker.loop.run_in_executor(None, waker.wake, future)
            await future

    async def bring() -> None:
        waker = waiters.LoopWaker(asyncio.get_running_loop())
        await asyncio.wait_for(asyncio.gather(*(ask_again_and_again(waker) for _ in range(16))), WAIT_SECONDS)

    asyncio.run(bring())


# --- Who is to blame ------------------------------------------------------------------------------------------------


@each_way
def test_a_command_that_the_database_refuses_harms_no_other() -> None:
    """The rules would accept it: its id is taken, as no client can bring about."""
    taken = place(Side.BID, 1, "9.00").pk
    poison = order(Side.BID, 1, "10.00", order_id=taken)
    commands = bids(20)
    outcomes = answers(as_one_list(each_alone([*commands[:13], poison, *commands[13:]])))
    assert isinstance(outcomes.pop(13), InternalError)
    assert_placed_once(commands, outcomes)
    assert Order.objects.exclude(instrument=GATE).count() == 21


@contextmanager
def lock_timeout_ms(limit: int) -> Iterator[None]:
    """This process's connections wait so long for locks."""
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
    connection.close_pool()  # type: ignore[attr-defined]  # PostgreSQL's has one


def with_one_held(model: type[Model], key: str, requests: Sequence[Command]) -> list[Outcome]:
    """What requests hear, soon, that are one list while somebody keeps a row for longer than anybody waits.

    The list before theirs waits for as long as it takes until all have been handed in.
    """
    with ExitStack() as stack:
        stack.enter_context(held(model, key))
        stack.enter_context(lock_timeout_ms(round(trading.PATIENCE_SECONDS * 1000)))
        with busy():
            stack.enter_context(lock_timeout_ms(LOCK_TIMEOUT_MS))
            futures = [hand_in(request) for request in requests]
        started = time.monotonic()
        outcomes = answers(futures)
        assert time.monotonic() - started < 4 * LOCK_TIMEOUT_MS / 1000  # and not one time-out after another
        return outcomes


def each_alone(commands: Sequence[Command]) -> list[list[Command]]:
    """One request each."""
    return [[command] for command in commands]


def test_one_book_that_is_held_stops_no_other() -> None:
    commands = bids(12)
    cancelled, kept = place(Side.BID, 1, "9.00", symbol="AAPL"), place(Side.BID, 1, "9.00", symbol="GOOG")
    cancels: list[Command] = [CancelOrder(cancelled.pk, "alice"), CancelOrder(kept.pk, "alice")]
    *outcomes, of_free_book, of_held_book = with_one_held(Instrument, "GOOG", [*commands, *cancels])
    is_held = [command.symbol == "GOOG" for command in commands]
    assert [isinstance(outcome, Overloaded) for outcome in outcomes] == is_held
    assert [isinstance(outcome, Accepted) for outcome in outcomes] == [not each for each in is_held]
    assert (type(of_free_book), type(of_held_book)) == (Cancelled, Overloaded)
    refused = [command for command in commands if command.symbol == "GOOG"]
    assert not Order.objects.filter(pk__in=[command.order_id for command in refused]).exists()
    assert Order.objects.get(pk=kept.pk).status == OrderStatus.PENDING
    assert_placed_once(refused, answers(as_one_list(each_alone(refused))))


def test_one_broker_that_is_held_stops_only_what_touches_it() -> None:
    place(Side.ASK, 5, "8.00", by="carol", symbol="MSFT")
    commands = bids(12, symbol="AAPL")
    crossing = order(Side.BID, 5, "8.00", by="alice", symbol="MSFT")  # with what carol has there
    own = [order(Side.BID, 1, "10.00", by="carol", symbol="GOOG") for _ in range(20)]
    touching: list[PlaceOrder] = [crossing, *own]
    outcomes = with_one_held(Broker, "carol", [*commands[:5], crossing, *commands[5:], *own])
    assert isinstance(outcomes.pop(5), Overloaded)
    assert all(isinstance(outcomes.pop(), Overloaded) for _ in own)
    assert_placed_once(commands, outcomes)
    assert not Order.objects.filter(pk__in=[command.order_id for command in touching]).exists()
    assert_placed_once(touching, answers(as_one_list(each_alone(touching))))
    assert Order.objects.get(pk=crossing.order_id).status == OrderStatus.FILLED


# --- Lost connections -----------------------------------------------------------------------------------------------


def end_session_that_waits_for_a_lock() -> None:
    wait_for_lock_waiters()
    ended = asked("SELECT pg_terminate_backend(pid) FROM (SELECT DISTINCT pid FROM pg_locks WHERE NOT granted) waiting")
    assert ended == [(True,)]


@each_way
def test_a_session_that_ends_before_the_commit_is_not_noticed() -> None:
    commands = bids(12)
    with held(Instrument, "MSFT"):
        futures = as_one_list(each_alone(commands))
        end_session_that_waits_for_a_lock()
    assert_placed_once(commands, answers(futures))
    assert lists_of(commands) == [12]


def test_sessions_that_end_together_are_not_tried_one_after_another() -> None:
    idle, together = 8, Barrier(8, timeout=WAIT_SECONDS)

    def session() -> int:
        ((pid,),) = asked("SELECT pg_backend_pid()")
        together.wait()  # each has a connection of its own
        return int(pid)

    ours = at_once([session] * idle)
    commands = bids(12)
    with held(Instrument, "MSFT"):
        futures = as_one_list(each_alone(commands))
        wait_for_lock_waiters()
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE state = 'idle' AND pid = ANY(%s)",
                [ours],
            )
            assert cursor.fetchone()[0] > 2
        end_session_that_waits_for_a_lock()
    assert_placed_once(commands, answers(futures))


@contextmanager
def dying_commits(how_many: int) -> Iterator[None]:
    """The server ends the session in the COMMIT of so many transactions that place orders, before it is done."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            CREATE SEQUENCE deaths;
            CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF nextval('deaths') <= %s THEN  -- a sequence is not rolled back
                PERFORM pg_terminate_backend(pg_backend_pid());
                PERFORM pg_sleep(1);
              END IF;
              RETURN NULL;
            END $$;
            CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON orders_order
              DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die();
            """,
            [how_many],
        )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER dies ON orders_order; DROP FUNCTION die; DROP SEQUENCE deaths")


def test_a_commit_that_died_is_done_again() -> None:
    commands = bids(5)
    with dying_commits(1):
        assert_placed_once(commands, sequencer.submit_all(commands))
        assert asked("SELECT last_value > 1 FROM deaths") == [(True,)]
    assert Order.objects.count() == 5


def test_commits_that_die_again_and_again_were_certainly_not_done() -> None:
    commands = bids(5)
    with dying_commits(2):
        assert [type(outcome) for outcome in sequencer.submit_all(commands)] == [Overloaded] * 5
        assert asked("SELECT last_value FROM deaths") == [(2,)]
    assert Order.objects.count() == 0
    assert_placed_once(commands, sequencer.submit_all(commands))


UNANSWERED = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@contextmanager
def unanswered_commits() -> Iterator[None]:
    """The server commits, but before it says so it waits for a standby, and there is none."""
    set_standby("nobody")
    try:
        probes = [in_thread(write)]

        def is_unanswered() -> bool:
            if probes[-1].done():
                probes.append(in_thread(write))
            return bool(asked(UNANSWERED))

        assert soon(is_unanswered), "commits are answered"
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
    """Commit something that is nobody's."""
    asked("SELECT pg_logical_emit_message(true, '', '')")


def submit_unanswered(commands: Sequence[Command], meanwhile: Callable[[], None] = lambda: None) -> list[Outcome]:
    """Outcomes of a list whose session ends after the COMMIT took place, and before its answer."""
    committing = f"{UNANSWERED} AND query LIKE '%webhooks_publish%'"  # of a long message it shows the beginning
    with unanswered_commits():
        future = in_thread(partial(sequencer.submit_all, commands))
        assert soon(lambda: bool(asked(committing))), "no COMMIT waits"
        meanwhile()
        ((pid,),) = asked(committing)
        assert asked(f"SELECT pg_terminate_backend({pid})") == [(True,)]
    return future.result(WAIT_SECONDS)


def test_a_commit_whose_answer_was_lost_is_not_done_again() -> None:
    maker = place(Side.ASK, 5, "10.00", by="carol")
    commands = bids(5)  # the first of which takes some of it
    assert_placed_once(commands, submit_unanswered(commands))
    maker.refresh_from_db()
    assert maker.filled_quantity == 5
    assert Order.objects.count() == 6


def test_cancels_whose_commit_was_not_answered_are_told_as_done() -> None:
    resting = [place(Side.BID, 1, "9.00", symbol=symbol) for symbol in SYMBOLS]
    outcomes = submit_unanswered([CancelOrder(each.pk, "alice") for each in resting])
    assert [type(outcome) for outcome in outcomes] == [Cancelled] * 3
    assert set(Order.objects.values_list("status", flat=True)) == {OrderStatus.CANCELLED}


def test_refusals_wait_for_no_commit() -> None:
    with unanswered_commits():
        outcomes = in_thread(
            partial(sequencer.submit_all, [order(Side.BID, AMPLE, "10.00"), CancelOrder(UUID(int=1), "alice")])
        ).result(WAIT_SECONDS)
    assert [type(outcome) for outcome in outcomes] == [InsufficientBalance, OrderNotFound]


def test_an_order_that_was_filled_before_its_lost_commit_was_looked_up_is_told_as_placed() -> None:
    """Whoever waits for the book gets it as soon as the session has ended: before the look-up."""
    commands = bids(3, symbol="AAPL")
    rivals: list[Future[list[Outcome]]] = []

    def rival_waits() -> None:
        rivals.append(in_thread(partial(service.execute, [order(Side.ASK, 6, "10.00", by="carol")])))
        wait_for_lock_waiters()

    outcomes = submit_unanswered(commands, rival_waits)
    (sold,) = rivals[0].result(WAIT_SECONDS)
    assert isinstance(sold, Accepted)
    assert sold.order.status == OrderStatus.FILLED
    assert_placed_once(commands, outcomes)


# --- Everything at once ---------------------------------------------------------------------------------------------

TORMENT_SECONDS = 2.5
TORMENTED = 16


def torment(stop: Event, poisonous: UUID, number: int) -> dict[type[Outcome], set[UUID]]:
    """Hand in one order after another, some of them poisonous; the orders by what was heard of them."""
    told: dict[type[Outcome], set[UUID]] = defaultdict(set)
    random = Random(number)
    while not stop.is_set():
        more: dict[str, Any] = {"order_id": poisonous} if random.random() < 0.05 else {}
        command = order(random.choice(list(Side)), 1, "10.00", by=random.choice(BROKERS), **more)
        try:
            (outcome,) = (ask_on_loop if number % 2 else ask_in_thread)([command]).result(WAIT_SECONDS)
        except (Overloaded, OutcomeUnknown) as error:
            outcome = error
            time.sleep(random.uniform(0, 0.01))
        told[type(outcome)].add(command.order_id)
    return told


def get_in_the_way(stop: Event) -> None:
    """Hold the book for moments, and end sessions that wait for it."""
    random = Random(1)
    while not stop.is_set():
        with held(Instrument, "AAPL"):
            time.sleep(random.uniform(0, 0.02))
            if random.random() < 0.2:
                asked("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        time.sleep(random.uniform(0, 0.02))


def test_the_lead_is_never_lost_whoever_fails_or_gives_up_meanwhile(settings: Settings) -> None:
    patience, poisonous, stop = settings.SEQUENCER_PATIENCE_SECONDS, place(Side.BID, 1, "1.00").pk, Event()
    settings.SEQUENCER_PATIENCE_SECONDS = settings.SEQUENCER_LAST_PATIENCE_SECONDS = 0.02  # about as long as a list
    futures = [in_thread(partial(torment, stop, poisonous, number)) for number in range(TORMENTED)]
    in_the_way = in_thread(partial(get_in_the_way, stop))
    time.sleep(TORMENT_SECONDS)
    stop.set()
    in_the_way.result(WAIT_SECONDS)
    told: dict[type[Outcome], set[UUID]] = defaultdict(set)
    for future in futures:
        for kind, ids in future.result(WAIT_SECONDS).items():
            told[kind] |= ids
    there = set(Order.objects.values_list("pk", flat=True))
    assert (
        {Accepted, Overloaded, OutcomeUnknown} <= told.keys() <= {Accepted, Overloaded, OutcomeUnknown, InternalError}
    )
    assert told[InternalError] <= {poisonous}
    assert told[Accepted] <= there
    assert (told[Overloaded] - {poisonous}).isdisjoint(there)
    assert there - {poisonous} <= told[Accepted] | told[OutcomeUnknown]
    settings.SEQUENCER_PATIENCE_SECONDS = patience
    assert isinstance(sequencer.submit(bids(1)[0]), Accepted)


def test_who_is_called_to_lead_just_when_patience_ends_leads(settings: Settings) -> None:
    settings.SEQUENCER_PATIENCE_SECONDS = 1.5
    impatient, *others = bids(4)
    mutex = sequencer._sequencer._mutex  # who hands on must pass it, and then who gives up
    with busy():
        leading = hand_in(impatient)
        time.sleep(0.05)
        settings.SEQUENCER_PATIENCE_SECONDS = WAIT_SECONDS
        following = [hand_in(command) for command in others]
        holding = in_thread(partial(hold, mutex, 2.0))
        assert soon(mutex.locked)
    holding.result(WAIT_SECONDS)
    assert_placed_once([impatient, *others], answers([leading, *following]))


def hold(mutex: Lock, seconds: float) -> None:
    with mutex:
        time.sleep(seconds)


@pytest.mark.parametrize(
    ("waits_for", "becomes"), [(partial(held, Instrument, "MSFT"), OutcomeUnknown), (turn_of_another, Accepted)]
)
def test_a_leader_that_is_torn_down_hands_on_and_leaves_nobody_waiting(
    waits_for: Callable[[], AbstractContextManager[None]], becomes: type[Outcome], settings: Settings
) -> None:
    """A thread can be ended where it stands, as a server that stops may do."""
    settings.SEQUENCER_TURN_SECONDS = 1.0  # it ends when the database has answered
    leader, follower, next_one = bids(3, symbol="MSFT")
    identity: list[int] = []

    def lead() -> list[Outcome]:
        identity.append(get_ident())
        return sequencer.submit_all([leader])

    with waits_for():
        with busy():
            leading = in_thread(lead)
            assert soon(lambda: waiting() == 1)
            following = hand_in(follower)
        wait_for_lock_waiters()
        third = hand_in(next_one)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(identity[0]), ctypes.py_object(SystemExit))
        assert isinstance(leading.exception(WAIT_SECONDS), SystemExit)
    assert isinstance(answer(following), becomes)
    assert_placed_once([next_one], answers([third]))


# --- Several processes ----------------------------------------------------------------------------------------------

CROSSED = """
SELECT FROM orders_order bid JOIN orders_order ask USING (symbol)
WHERE bid.side = 'bid' AND ask.side = 'ask' AND bid.price >= ask.price
  AND bid.status IN ('pending', 'partially_filled') AND ask.status IN ('pending', 'partially_filled')
LIMIT 1
"""
TRADING_SECONDS = 2.0


def crossing_orders(number: int) -> Iterator[PlaceOrder]:
    """Without end."""
    random = Random(number)
    while True:
        price = f"10.{random.randint(0, 9):02}"
        side, symbol = random.choice(list(Side)), random.choice(SYMBOLS)
        yield order(side, random.randint(1, 9), price, by="dave", symbol=symbol, document_number=str(number))


def submit_until(stop: Event, number: int) -> int:
    """Directly, in this process; how many orders that were."""
    for sent, command in enumerate(crossing_orders(number)):
        if stop.is_set():
            return sent
        assert isinstance(sequencer.submit(command), Accepted)
    raise AssertionError


def post_crossing_until(stop: Event, http: httpx.Client, number: int) -> int:
    """Through the web server."""
    for sent, command in enumerate(crossing_orders(number)):
        if stop.is_set():
            return sent
        response = http.post("/orders", json=body_of(command))
        assert response.status_code == 201, response.text
    raise AssertionError


def test_two_processes_that_combine_never_cross_a_book(server: live.Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "httpx")
    stop = Event()
    with http_client(server, trader()) as http:
        here = [in_thread(partial(submit_until, stop, number)) for number in range(6)]
        there = [in_thread(partial(post_crossing_until, stop, http, number)) for number in range(6, 12)]
        deadline = time.monotonic() + TRADING_SECONDS
        while time.monotonic() < deadline:
            assert asked(CROSSED) == []
            time.sleep(0.05)
        stop.set()
        sent = [sum(future.result(WAIT_SECONDS) for future in each) for each in (here, there)]
    assert min(sent) > 20
    assert Order.objects.count() == sum(sent)
    assert asked(CROSSED) == []
    totals = Broker.objects.aggregate(cash=Sum("cash"))
    assert totals["cash"] == 4 * AMPLE + trading.CASH
