"""The write path: every change to a book goes through `execute`, under that book's lock."""

from collections.abc import Collection, Sequence
from functools import cache

import structlog
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.backends.utils import CursorWrapper

from exchange.database import is_connection_lost, own_transaction, replace_lost_connections
from exchange.errors import OutcomeUnknown
from exchange.models import Instrument
from orders.matching import store
from orders.matching.commands import Command, Outcome, symbols_of
from orders.matching.market import Market
from orders.matching.state import BookState
from webhooks import wakeup

_log = structlog.get_logger(__name__)


def execute(commands: Sequence[Command], *, skip_busy: bool = False, allow_deep: bool = True) -> list[Outcome]:
    """Run a batch of commands in one transaction and return one outcome per command, in order.

    An error means that nothing was executed, unless it is `OutcomeUnknown`. Raise `TooManyMakers` if the commands reach
    too many resting orders for one transaction; with `allow_deep`, a single command may. With `skip_busy`, do not wait
    for locks: commands that need a locked book or broker are rejected.
    """
    saved, due = None, 0
    try:
        with own_transaction() as cursor:
            targets = store.find_targets(cursor, commands)  # reads only columns that never change
            books = lock_instruments(cursor, symbols_of(commands) | set(targets.values()), skip_busy=skip_busy)
            market = store.load_market(cursor, commands, targets, books, skip_busy=skip_busy, allow_deep=allow_deep)
            outcomes = [market.apply(command) for command in commands]  # no I/O: only the rules
            if market.new_orders or market.changed_orders:
                saved = market
                due = store.save_market(cursor, market)  # writes and commits
    except (OperationalError, InterfaceError) as error:
        if saved is None or not is_connection_lost(error) or not _was_committed(saved):
            raise
        _log.warning("commit_answer_lost", error=str(error))
    if due:
        wakeup.request()
    return outcomes


def lock_instruments(cursor: CursorWrapper, symbols: Collection[str], *, skip_busy: bool = False) -> list[BookState]:
    """Lock these instruments in the order of their symbols; with `skip_busy`, only those not locked already."""
    if not symbols:
        return []
    cursor.execute(_lock_statement(len(symbols), skip_busy), list(symbols))
    return [BookState.of(*row) for row in cursor.fetchall()]


@cache
def _lock_statement(count: int, skip_busy: bool) -> str:
    """The statement that locks `count` instruments, cached because compiling it takes longer than the lock."""
    instruments = Instrument.objects.select_for_update(no_key=True, of=("self",), skip_locked=skip_busy)
    chosen = instruments.filter(symbol__in=[str(number) for number in range(count)]).order_by("symbol")
    sql, _ = chosen.values_list(*BookState.COLUMNS).query.sql_with_params()
    return str(sql)


def _was_committed(market: Market) -> bool:
    """True if a COMMIT without a response was executed."""
    try:
        connection.close()
        replace_lost_connections()
        with transaction.atomic(durable=True), connection.cursor() as cursor:
            lock_instruments(cursor, market.books)
            return store.was_saved(cursor, market)
    except (OperationalError, InterfaceError) as error:
        raise OutcomeUnknown from error


def begin_with_batch_lock() -> None:
    """Begin the transaction of this thread's next `execute` when no other process executes a batch, or on a timeout.

    The lock is the process's turn. It is an optimisation: without it, processes would wait for each other's books with
    batches collected before that wait. Batches would be half as long, and each order would cost more.
    """
    with connection.cursor() as cursor:
        store.begin_with_batch_lock(cursor)


def begin_with_short_lock_timeout() -> None:
    """Begin the transaction of this thread's next `execute`, unless it is open, and set a short lock timeout."""
    with connection.cursor() as cursor:
        store.begin_with_short_lock_timeout(cursor)
