"""Functions for tests that create brokers, instruments and orders with the services, and read the results."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from threading import Barrier, Thread
from typing import Any, TypeVar

from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.db.models import Model
from pytest_django import Settings

from exchange import services as exchange_services
from exchange.audit import Actor, ActorKind
from exchange.errors import ExchangeError
from exchange.models import ApiKey, AuditEntry, AuditHead, Broker, Holding, Instrument, Transfer
from exchange.rules import Pricing
from orders.enums import OrderType, Side, TimeInForce
from orders.matching import service, store
from orders.matching.commands import Accepted, CancelOrder, Command, Outcome, PlaceOrder, Replayed, symbols_of
from orders.matching.market import Market
from orders.models import Order, Trade
from orders.reconciliation import checks
from webhooks.models import Delivery, Event, Subscription

BY = Actor(ActorKind.COMMAND, "tests")
CASH, SHARES = Decimal(1_000_000), 10_000
TIMEOUT_SECONDS = 30.0  # for each thread, so that a test that hangs fails

T = TypeVar("T")


def instrument(
    symbol: str = "AAPL", *, tick: str = "0.01", lot: int = 1, pricing: Pricing = Pricing.SELLER
) -> Instrument:
    """List an instrument."""
    return exchange_services.list_instrument(symbol, tick_size=Decimal(tick), lot_size=lot, pricing=pricing, by=BY)


def broker(broker_id: str, *, cash: Decimal | int = CASH, holdings: dict[str, int] | None = None) -> str:
    """Create a broker, by default with ample cash and shares of AAPL, and return its key."""
    held = {"AAPL": SHARES} if holdings is None else holdings
    _, key = exchange_services.create_broker(broker_id, initial_cash=Decimal(cash), initial_holdings=held, by=BY)
    return key


def limit_makers(settings: Settings, makers_max: int) -> None:
    """Limit the resting orders that an order, or a batch, may fill."""
    settings.MAX_MAKERS_READ_AT_ONCE = settings.MAX_MAKERS_PER_BATCH = settings.MAX_MAKERS_PER_COMMAND = makers_max


def order(
    side: Side, quantity: int, price: str | None, *, by: str = "alice", symbol: str = "AAPL", **more: Any
) -> PlaceOrder:
    """Return the command of a gtc limit order, or of an ioc market order without a price."""
    fields = {
        "type": OrderType.MARKET if price is None else OrderType.LIMIT,
        "time_in_force": TimeInForce.IOC if price is None else TimeInForce.GTC,
        "document_number": "12345678900",
    }
    return PlaceOrder(
        broker_id=by,
        side=side,
        quantity=quantity,
        price=None if price is None else Decimal(price),
        symbol=symbol,
        **(fields | more),
    )


def load_market(cursor: CursorWrapper, commands: Sequence[Command], **more: Any) -> Market:
    """Lock and read the market like the matching service."""
    targets = store.find_targets(cursor, commands)
    books = service.lock_instruments(cursor, symbols_of(commands) | set(targets.values()))
    return store.load_market(cursor, commands, targets, books, **more)


def execute_one(command: Any) -> Outcome:
    """Execute one command and return its outcome, which may be a rejection."""
    (outcome,) = service.execute([command])
    return outcome


def place(side: Side, quantity: int, price: str | None, **more: Any) -> Order:
    """Place an order that must be accepted, and return its row."""
    outcome = execute_one(order(side, quantity, price, **more))
    assert isinstance(outcome, Accepted), outcome
    return Order.objects.get(pk=outcome.order.id)


def rejection_code(command: Any) -> str:
    """Execute a command that must be rejected without any change, and return the error code."""
    before = snapshot()
    outcome = execute_one(command)
    assert isinstance(outcome, ExchangeError), outcome
    assert snapshot() == before
    return outcome.code


def replay(command: PlaceOrder) -> Order:
    """Place an order that must be a replay, and return the row of the earlier order."""
    outcome = execute_one(command)
    assert isinstance(outcome, Replayed), outcome
    return Order.objects.get(pk=outcome.order_id)


def cancel(resting: Order) -> Outcome:
    """Cancel an order on behalf of its owner."""
    return execute_one(CancelOrder(resting.pk, resting.broker_id))


def fills() -> list[tuple[int, Decimal]]:
    """Return quantity and price of every trade, oldest first."""
    return list(Trade.objects.order_by("executed_at", "id").values_list("quantity", "price"))


def balance(broker_id: str) -> tuple[Decimal | int, Decimal | int]:
    """Return cash and reserved cash."""
    row = Broker.objects.get(pk=broker_id)
    return row.cash, row.reserved_cash


def shares(broker_id: str, symbol: str = "AAPL") -> tuple[int, int]:
    """Return shares and reserved shares."""
    row = Holding.objects.get(broker=broker_id, instrument=symbol)
    return int(row.quantity), int(row.reserved)


MODELS: tuple[type[Model], ...] = (Broker, Holding, Instrument, Order, Trade, Event, Subscription, Delivery)
MODELS += (Transfer, ApiKey, AuditEntry, AuditHead)


def snapshot() -> dict[str, str]:
    """Return every row that orders, subscriptions or operators change, as JSON by model, without `last_used_at`."""
    rows = [
        f"(SELECT jsonb_agg(to_jsonb(t) - 'last_used_at' ORDER BY t)::text FROM {model._meta.db_table} t)"  # noqa: S608
        for model in MODELS
    ]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(rows)}")
        return {model.__name__: found for model, found in zip(MODELS, cursor.fetchone(), strict=True)}


@contextmanager
def new_audit_entries() -> Iterator[list[AuditEntry]]:
    """Provide a list that contains the new audit entries, in their order, after the `with` block."""
    entries: list[AuditEntry] = []
    earlier = list(AuditEntry.objects.values_list("pk", flat=True))
    yield entries
    entries += AuditEntry.objects.exclude(pk__in=earlier).order_by("id")


@contextmanager
def failing_commits(*tables: str) -> Iterator[None]:
    """Make the COMMIT of every transaction fail that writes one of `tables` in the `with` block."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION not_this_one() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'not this one'; END $$"
        )
        for table in tables:
            cursor.execute(
                f"CREATE CONSTRAINT TRIGGER not_this_one AFTER INSERT OR UPDATE OR DELETE ON {table} "
                "INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION not_this_one()"
            )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION not_this_one CASCADE")


_COUNT_BROKEN = " UNION ALL ".join(f"SELECT count(*) FROM ({sql}) broken" for sql in checks.CHECKS.values())  # noqa: S608


def assert_sound() -> None:
    """Assert that every invariant holds. Before the first order, the constraints of the database suffice."""
    with connection.cursor() as cursor:
        if Order.objects.exists():
            cursor.execute(f"SELECT sum(count) FROM ({_COUNT_BROKEN}) counts")  # noqa: S608
            if cursor.fetchone() != (0,):
                assert [finding for finding in checks.findings(cursor) if finding.count] == []


# --- Threads --------------------------------------------------------------------------------------------------------


def start_thread(job: Callable[[], T]) -> Future[T]:
    """Run `job` in a new thread, which closes its database connection at the end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            try:
                result = job()
            finally:
                connection.close()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    Thread(target=run, daemon=True).start()  # a daemon thread does not outlive the session if it hangs
    return future


def run_concurrently(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run each job in its own thread, all starting together, and return their results or raise the first exception."""
    start = Barrier(len(jobs), timeout=TIMEOUT_SECONDS)

    def after_the_start(job: Callable[[], T]) -> T:
        start.wait()
        return job()

    running = [start_thread(partial(after_the_start, job)) for job in jobs]
    return [future.result(TIMEOUT_SECONDS) for future in running]
