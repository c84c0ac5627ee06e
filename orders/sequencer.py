"""Where requests hand in their commands and wait for the outcome.

One of the waiting requests leads: it executes what has queued meanwhile, whatever books it is for, as one list in one
transaction, with one commit for all of it, and hands the lead on. When little is asked the list is one command long and
nothing waits; when more is asked the lists grow by themselves. Other processes do the same: it is the locks that keep
every book right.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import overload

import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, connection

from exchange.database import is_connection_lost, is_lock_timeout, replace_lost_connections
from exchange.errors import ExchangeError, InternalError, OutcomeUnknown, Overloaded
from orders import services, store
from orders.commands import Accepted, Cancelled, CancelOrder, Command, Outcome, PlaceOrder, Replayed, Swept

_log = structlog.get_logger(__name__)


@overload
def submit(command: PlaceOrder) -> Accepted | Replayed: ...
@overload
def submit(command: CancelOrder) -> Cancelled: ...
def submit(command: PlaceOrder | CancelOrder) -> Accepted | Replayed | Cancelled | Swept:
    """Run one command now and answer with its outcome; a refusal is raised."""
    (outcome,) = submit_all([command])
    if isinstance(outcome, ExchangeError):
        raise outcome
    return outcome


def submit_all(commands: Sequence[Command]) -> list[Outcome]:
    """Run `commands` now; one outcome each, in their order: a refusal is an outcome like any other.

    `Overloaded` is raised when they certainly were not done, `OutcomeUnknown` when that is not known in time.
    """
    if not commands:
        return []
    if not connection.in_atomic_block:
        connection.close()  # who waits holds no connection: who leads may need it
    return _sequencer.submit(commands)


def is_full() -> bool:
    """Whether anything handed in now would be refused."""
    return _sequencer.is_full()


class Ticket:
    """A request's commands, where it waits, and what it is called for: their outcomes, or the lead."""

    __slots__ = ("_uncalled", "commands", "leads", "outcomes")

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.outcomes: list[Outcome] = []
        self.leads = False
        self._uncalled = threading.Lock()  # the cheapest thing that can be waited for
        self._uncalled.acquire()

    def call(self) -> None:
        self._uncalled.release()

    def is_called_within(self, seconds: float) -> bool:
        return self._uncalled.acquire(timeout=seconds)


class Sequencer:
    """A bounded queue of tickets; the first of them leads, and hands the lead on when its list is done."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._tickets: deque[Ticket] = deque()
        self._commands_waiting = 0
        self._is_led = False
        self._seconds_per_command = 0.0  # of the last list
        self._last_size = 0  # how many requests it served

    def submit(self, commands: Sequence[Command]) -> list[Outcome]:
        ticket = Ticket(commands)
        self._queue(ticket)
        if not ticket.is_called_within(settings.SEQUENCER_PATIENCE_SECONDS):
            self._withdraw(ticket)
        if ticket.leads:
            self._lead()
        return ticket.outcomes

    def is_full(self) -> bool:
        return (
            len(self._tickets) >= settings.SEQUENCER_QUEUE_REQUESTS
            or self._commands_waiting >= settings.SEQUENCER_QUEUE_COMMANDS
        )

    def _queue(self, ticket: Ticket) -> None:
        with self._mutex:
            if self.is_full():
                raise Overloaded
            self._tickets.append(ticket)
            self._commands_waiting += len(ticket.commands)
            if not self._is_led:
                self._is_led = True
                self._appoint_first()

    def _appoint_first(self) -> None:
        self._tickets[0].leads = True
        self._tickets[0].call()

    def _withdraw(self, ticket: Ticket) -> None:
        """Take back what still waits; what does not is under way, and how it ends is not known in time."""
        with self._mutex:
            if ticket.leads:  # its turn came just now, after all
                return
            if ticket in self._tickets:
                self._tickets.remove(ticket)
                self._commands_waiting -= len(ticket.commands)
                raise Overloaded
        if not ticket.is_called_within(settings.SEQUENCER_LAST_PATIENCE_SECONDS):
            raise OutcomeUnknown

    def _lead(self) -> None:
        """Execute what waits, one's own commands first, and call who is to lead next before those that are done."""
        self._gather()
        tickets = self._take()
        commands = [command for ticket in tickets for command in ticket.commands]
        outcomes: list[Outcome] = [OutcomeUnknown() for _ in commands]  # should this thread be torn down meanwhile
        started = time.monotonic()
        try:
            outcomes = outcomes_of(commands)
        finally:
            self._seconds_per_command = (time.monotonic() - started) / len(commands)
            self._last_size = len(tickets)
            self._hand_on()
            in_order = iter(outcomes)
            for ticket in tickets:
                ticket.outcomes = [next(in_order) for _ in ticket.commands]
                if not ticket.leads:  # that one is here
                    ticket.call()

    def _gather(self) -> None:
        """When much is asked, wait a moment for more of it.

        Who leads at once finds what came in during the last list, and then competes for the interpreter with all who
        read requests and write answers: lists stay small. Larger ones cost less for each; few at a time do not wait.
        """
        if self._last_size < settings.SEQUENCER_GATHER_FROM:
            return
        until = time.monotonic() + settings.SEQUENCER_GATHER_SECONDS
        while len(self._tickets) < 2 * self._last_size and time.monotonic() < until:
            time.sleep(settings.SEQUENCER_GATHER_SECONDS / 10)

    def _take(self) -> list[Ticket]:
        """The first tickets: as many commands as one transaction may have, and may last."""
        with self._mutex:
            taken = [self._tickets.popleft()]
            room = self._room() - len(taken[0].commands)
            while self._tickets and len(self._tickets[0].commands) <= room:
                taken.append(self._tickets.popleft())
                room -= len(taken[-1].commands)
            self._commands_waiting -= sum(len(ticket.commands) for ticket in taken)
            return taken

    def _room(self) -> int:
        """How many commands fit, at the pace of the list before."""
        if self._seconds_per_command == 0:
            return settings.SEQUENCER_BATCH
        return min(settings.SEQUENCER_BATCH, int(settings.SEQUENCER_BATCH_SECONDS / self._seconds_per_command))

    def _hand_on(self) -> None:
        with self._mutex:
            self._is_led = bool(self._tickets)
            if self._is_led:
                self._appoint_first()


def outcomes_of(commands: Sequence[Command], *, is_retry: bool = False, skip_busy: bool = False) -> list[Outcome]:
    """One outcome each, whatever happens: what fails is tried once more, then by halves, down to who is to blame."""
    try:
        return services.execute_together(commands, skip_busy=skip_busy)
    except store.MakersCutShort:
        pass  # nothing failed: by halves at once
    except OutcomeUnknown:
        return [OutcomeUnknown() for _ in commands]
    except Exception as error:
        is_lost = isinstance(error, OperationalError | InterfaceError) and is_connection_lost(error)
        skip_busy = skip_busy or is_lock_timeout(error)
        _log.warning("list_failed", commands=len(commands), is_retry=is_retry, exc_info=error)
        if is_lost:
            _reconnect()
        if not is_retry:
            return outcomes_of(commands, is_retry=True, skip_busy=skip_busy)
        if is_lost or len(commands) == 1:
            return [_refusal(error) for _ in commands]
    half = len(commands) // 2
    return [
        outcome
        for part in (commands[:half], commands[half:])
        for outcome in outcomes_of(part, is_retry=is_retry, skip_busy=skip_busy)
    ]


def _reconnect() -> None:
    """Leave no dead connection behind; where the database is away, the next to ask will hear so."""
    with suppress(DatabaseError):
        connection.close()
        replace_lost_connections()


def _refusal(error: Exception) -> ExchangeError:
    """Nothing was done."""
    return Overloaded() if isinstance(error, OperationalError | InterfaceError) else InternalError()


_sequencer = Sequencer()
