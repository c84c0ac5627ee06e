"""The one way in: every change to a book goes through `execute`, under that book's lock."""

from collections.abc import Sequence

import structlog
from django.db import InterfaceError, OperationalError, connection, transaction

from exchange.database import is_connection_lost, own_transaction, replace_lost_connections
from exchange.errors import OutcomeUnknown
from orders.matching import store
from orders.matching.commands import Command, Outcome
from orders.matching.depth import MakersCutShort
from orders.matching.market import Market
from webhooks import wakeup

_log = structlog.get_logger(__name__)


def execute(commands: Sequence[Command]) -> list[Outcome]:
    """Run `commands` against their books in one transaction; one outcome each, in their order."""
    try:
        return execute_together(commands, however_deep=True)
    except MakersCutShort as cut:  # nothing was done
        return [outcome for part in cut.parts(commands) for outcome in execute(part)]


def await_turn() -> None:
    """Begin the transaction of this thread's next `execute_together` when no other process is in one, or soon anyway.

    This decides nothing: the locks do. But a list that waits for the books of another one was taken before that wait.
    Lists would be half as long, and cost more for each order.
    """
    with connection.cursor() as cursor:
        store.await_turn(cursor)


def wait_briefly() -> None:
    """Begin the transaction of this thread's next `execute_together`, unless it is open, with a short lock timeout."""
    with connection.cursor() as cursor:
        store.wait_briefly(cursor)


def execute_together(
    commands: Sequence[Command], *, skip_busy: bool = False, however_deep: bool = False
) -> list[Outcome]:
    """`execute`, in one transaction or not at all: what this raises was not done, unless it is `OutcomeUnknown`.

    With `skip_busy` it waits for no lock, and refuses what needs a book or a broker that others hold. `MakersCutShort`
    is raised when too many resting orders are reached for a list; with `however_deep` not by a command alone.
    """
    saved, due = None, 0
    try:
        with own_transaction() as cursor:
            # Locks, and reads the clock and the books.
            market = store.load_market(cursor, commands, skip_busy=skip_busy, however_deep=however_deep)
            outcomes = [market.apply(command) for command in commands]  # no I/O: the rules, and nothing else
            if market.placed or market.changed:
                saved = market
                due = store.save_market(cursor, market)  # writes and commits
    except (OperationalError, InterfaceError) as error:
        if saved is None or not is_connection_lost(error) or not _was_committed(saved):
            raise
        _log.warning("commit_answer_lost", error=str(error))
    if due:
        wakeup.ask()
    return outcomes


def _was_committed(market: Market) -> bool:
    """Whether a COMMIT that was sent, and not answered, took place."""
    try:
        connection.close()
        replace_lost_connections()
        with transaction.atomic(durable=True), connection.cursor() as cursor:
            return store.was_saved(cursor, market)
    except (OperationalError, InterfaceError) as error:
        raise OutcomeUnknown from error
