"""The market as tests set it up: brokers, instruments and orders through the front door, and what became of them."""

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
PATIENCE_SECONDS = 30.0  # no thread may take longer: a test that hangs is a test that fails

T = TypeVar("T")


def instrument(
    symbol: str = "AAPL", *, tick: str = "0.01", lot: int = 1, pricing: Pricing = Pricing.SELLER
) -> Instrument:
    """List an instrument."""
    return exchange_services.list_instrument(symbol, tick_size=Decimal(tick), lot_size=lot, pricing=pricing, by=BY)


def broker(broker_id: str, *, cash: Decimal | int = CASH, holdings: dict[str, int] | None = None) -> str:
    """Admit a broker with ample cash and shares of AAPL, or with what is said; its key."""
    held = {"AAPL": SHARES} if holdings is None else holdings
    _, key = exchange_services.create_broker(broker_id, initial_cash=Decimal(cash), initial_holdings=held, by=BY)
    return key


def limit_makers(settings: Settings, makers_max: int) -> None:
    """Let an order, and orders executed together, fill no more resting orders than this."""
    settings.MAX_MAKERS_READ_AT_ONCE = settings.MAX_MAKERS_PER_BATCH = settings.MAX_MAKERS_PER_COMMAND = makers_max


def order(
    side: Side, quantity: int, price: str | None, *, by: str = "alice", symbol: str = "AAPL", **more: Any
) -> PlaceOrder:
    """A command: a gtc limit order, or an ioc market order when there is no price."""
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
    """Lock and read, as the matching service does."""
    targets = store.find_targets(cursor, commands)
    books = service.lock_instruments(cursor, symbols_of(commands) | set(targets.values()))
    return store.load_market(cursor, commands, targets, books, **more)


def attempt(command: Any) -> Outcome:
    """Run one command; its outcome, be it a refusal."""
    (outcome,) = service.execute([command])
    return outcome


def place(side: Side, quantity: int, price: str | None, **more: Any) -> Order:
    """Place an order that must be accepted; its row."""
    outcome = attempt(order(side, quantity, price, **more))
    assert isinstance(outcome, Accepted), outcome
    return Order.objects.get(pk=outcome.order.id)


def refused(command: Any) -> str:
    """Run a command that must be refused, and change nothing; the refusal's code."""
    before = everything()
    outcome = attempt(command)
    assert isinstance(outcome, ExchangeError), outcome
    assert everything() == before
    return outcome.code


def replayed(command: PlaceOrder) -> Order:
    """Place an order that must turn out to have been placed before; that earlier order's row."""
    outcome = attempt(command)
    assert isinstance(outcome, Replayed), outcome
    return Order.objects.get(pk=outcome.order_id)


def cancel(resting: Order) -> Outcome:
    """Cancel an order on behalf of its owner."""
    return attempt(CancelOrder(resting.pk, resting.broker_id))


def fills() -> list[tuple[int, Decimal]]:
    """Quantity and price of every trade, oldest first."""
    return list(Trade.objects.order_by("executed_at", "id").values_list("quantity", "price"))


def balance(broker_id: str) -> tuple[Decimal | int, Decimal | int]:
    """Cash, and how much of it is reserved."""
    row = Broker.objects.get(pk=broker_id)
    return row.cash, row.reserved_cash


def shares(broker_id: str, symbol: str = "AAPL") -> tuple[int, int]:
    """Shares, and how many of them are reserved."""
    row = Holding.objects.get(broker=broker_id, instrument=symbol)
    return int(row.quantity), int(row.reserved)


MODELS: tuple[type[Model], ...] = (Broker, Holding, Instrument, Order, Trade, Event, Subscription, Delivery)
MODELS += (Transfer, ApiKey, AuditEntry, AuditHead)


def everything() -> dict[str, str]:
    """Every row that an order, a subscription or an operator could change, as JSON by model, without `last_used_at`."""
    rows = [
        f"(SELECT jsonb_agg(to_jsonb(t) - 'last_used_at' ORDER BY t)::text FROM {model._meta.db_table} t)"  # noqa: S608
        for model in MODELS
    ]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(rows)}")
        return {model.__name__: found for model, found in zip(MODELS, cursor.fetchone(), strict=True)}


@contextmanager
def on_record() -> Iterator[list[AuditEntry]]:
    """What goes on record meanwhile, in the order in which it did; it is there at the end of the `with`."""
    entries: list[AuditEntry] = []
    earlier = list(AuditEntry.objects.values_list("pk", flat=True))
    yield entries
    entries += AuditEntry.objects.exclude(pk__in=earlier).order_by("id")


@contextmanager
def refused_at_commit(*tables: str) -> Iterator[None]:
    """Whoever writes one of `tables` meanwhile is refused by its COMMIT, when all is done that there was to do."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION not_this_one() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'not this one'; END $$"
        )
        for table in tables:
            cursor.execute(
                f"CREATE CONSTRAINT TRIGGER not_this_one AFTER INSERT OR UPDATE ON {table} "
                "INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION not_this_one()"
            )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION not_this_one CASCADE")


_COUNT_BROKEN = " UNION ALL ".join(f"SELECT count(*) FROM ({sql}) broken" for sql in checks.CHECKS.values())  # noqa: S608


def assert_sound() -> None:
    """Every invariant holds. Before the first order, the constraints of the database are enough."""
    with connection.cursor() as cursor:
        if Order.objects.exists():
            cursor.execute(f"SELECT sum(count) FROM ({_COUNT_BROKEN}) counts")  # noqa: S608
            if cursor.fetchone() != (0,):
                assert [finding for finding in checks.findings(cursor) if finding.count] == []


# --- Several at a time ----------------------------------------------------------------------------------------------


def in_thread(job: Callable[[], T]) -> Future[T]:
    """Start `job` in a thread of its own, which gives its connection back at the end."""
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

    Thread(target=run, daemon=True).start()  # a daemon: what hangs fails its test and does not outlive the session
    return future


def at_once(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run every job in a thread of its own, all starting together; their results, or the first exception."""
    start = Barrier(len(jobs), timeout=PATIENCE_SECONDS)

    def after_the_start(job: Callable[[], T]) -> T:
        start.wait()
        return job()

    running = [in_thread(partial(after_the_start, job)) for job in jobs]
    return [future.result(PATIENCE_SECONDS) for future in running]
