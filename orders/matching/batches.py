"""Executes batches of commands. A failed batch is retried once, then bisected to isolate the failing command."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from django.db import DatabaseError, Error, InterfaceError, OperationalError, connection

from exchange.database import has_no_connection, is_connection_lost, is_lock_timeout, replace_lost_connections
from exchange.errors import ExchangeError, InternalError, OutcomeUnknown, Overloaded
from orders.matching import service
from orders.matching.commands import Command, Outcome
from orders.matching.depth import TooManyMakers

_log = structlog.get_logger(__name__)


def execute(
    commands: Sequence[Command], *, is_retry: bool = False, skip_busy: bool = False, split_deep: bool = False
) -> list[Outcome]:
    """Execute `commands` and return one outcome per command, in order.

    A failed batch is retried once, then bisected until the failing command is isolated. If the commands reach too many
    resting orders for one transaction, raise `TooManyMakers` without executing any; with `split_deep`, execute them in
    several transactions instead, however long that takes.
    """
    try:
        return service.execute(commands, skip_busy=skip_busy, allow_deep=split_deep)
    except TooManyMakers as too_many:
        if not split_deep:
            raise
        parts: Sequence[Sequence[Command]] = too_many.split(commands)
    except OutcomeUnknown:
        return [OutcomeUnknown() for _ in commands]
    except Exception as error:
        is_lost = isinstance(error, OperationalError | InterfaceError) and is_connection_lost(error)
        skip_busy = skip_busy or is_lock_timeout(error)
        trace = None if has_no_connection(error) else error  # a traceback per order would fill the disk in an outage
        _log.warning("list_failed", commands=len(commands), is_retry=is_retry, error=str(error), exc_info=trace)
        if is_lost:
            _reconnect()
        if not is_retry and trace:
            return execute(commands, is_retry=True, skip_busy=skip_busy, split_deep=split_deep)
        if is_lost or len(commands) == 1:
            return [_error_for(error) for _ in commands]
        half = len(commands) // 2
        parts = [commands[:half], commands[half:]]
    return [
        outcome for part in parts for outcome in execute(part, is_retry=is_retry, skip_busy=skip_busy, split_deep=True)
    ]


def try_begin(begin: Callable[[], None]) -> bool:
    """Begin the next batch's transaction. False if that failed; the batch then counts as retried.

    Otherwise each batch would wait for an unreachable database three times.
    """
    try:
        begin()
    except Error as error:
        _log.warning("begin_failed", exc_info=error)
        _reconnect()
        return False
    return True


def _reconnect() -> None:
    """Discard dead connections. If the database is unreachable, the next query fails."""
    with suppress(DatabaseError):
        connection.close()
        replace_lost_connections()


def _error_for(error: Exception) -> ExchangeError:
    """The outcome of a command that was not executed because of `error`."""
    return Overloaded() if isinstance(error, OperationalError | InterfaceError) else InternalError()
