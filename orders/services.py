"""The one way in: every change to a book goes through `execute`, under that book's lock."""

from collections.abc import Iterator, Sequence

import structlog
from django.db import connection, transaction

from exchange import services as exchange_services
from exchange.database import already_committed
from exchange.rules import BrokerStatus
from orders import store
from orders.commands import CancelOrders, Command, ExpireOrders, Outcome, Swept
from orders.models import Order
from orders.terms import CancelReason

_log = structlog.get_logger(__name__)


def execute(commands: Sequence[Command]) -> list[Outcome]:
    """Run `commands` against their books in one transaction; one outcome each, in their order."""
    try:
        return _execute_together(commands)
    except store.MakersCutShort:  # nothing was done: fewer commands reach fewer resting orders
        half = len(commands) // 2
        return execute(commands[:half]) + execute(commands[half:])


def _execute_together(commands: Sequence[Command]) -> list[Outcome]:
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        market = store.load_market(cursor, commands)  # locks instruments, reads clock and book, locks brokers
        outcomes = [market.apply(command) for command in commands]  # no I/O: the rules, and nothing else
        store.save_market(cursor, market)  # a fixed number of statements, however many commands
    return outcomes


def cancel_all(broker_id: str, *, reason: CancelReason) -> int:
    """Cancel every working order of a broker, book by book in batches; how many that were."""
    symbols = Order.objects.working().filter(broker=broker_id).values_list("instrument", flat=True).distinct()
    return sum(
        swept.cancelled
        for symbol in sorted(symbols)
        for swept in _sweep(CancelOrders(broker_id, symbol, reason=reason))
    )


def expire_orders(symbol: str) -> None:
    """Expire every order of a book whose time has passed, in batches."""
    for _ in _sweep(ExpireOrders(symbol)):
        pass


def _sweep(command: CancelOrders | ExpireOrders) -> Iterator[Swept]:
    """Repeat a sweep, each batch in a transaction of its own, until nothing is left for it."""
    while True:
        (outcome,) = execute([command])
        assert isinstance(outcome, Swept)
        if outcome.closed == 0:
            return
        yield outcome


def suspend(broker_id: str, *, cancel_orders: bool, reason: str = "") -> int:
    """Refuse the broker's new orders from now on and, if asked, cancel its resting ones; how many were cancelled.

    The suspension commits first: every place decides under the broker's lock, so none slips in behind the cancels.
    """
    exchange_services.set_broker_status(broker_id, BrokerStatus.SUSPENDED)
    _log.info("broker_suspended", broker=broker_id, reason=reason)
    with already_committed():
        return cancel_all(broker_id, reason=CancelReason.BROKER_SUSPENDED) if cancel_orders else 0


def reinstate(broker_id: str, *, reason: str = "") -> None:
    """Let a suspended broker place orders again."""
    exchange_services.set_broker_status(broker_id, BrokerStatus.ACTIVE)
    _log.info("broker_reinstated", broker=broker_id, reason=reason)
