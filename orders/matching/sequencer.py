"""Where requests hand in their commands and wait for the outcome.

The request that waits in front leads, or has a thread lead when it waits on the event loop: what has queued meanwhile
is executed, whatever books it is for, as one list in one transaction, with one commit for all of it, and the lead is
handed on. When little is asked the list is one command long and nothing waits; when more is asked the lists grow by
themselves. Other processes do the same, in turns where many wait; but it is the locks that keep every book right.

What would fill very many resting orders is executed aside, by itself and for a limited time. That takes seconds, in
which its own book is locked and the others go on.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import overload

import structlog
from django.conf import settings
from django.db import connection

from exchange.errors import ExchangeError, OutcomeUnknown, Overloaded
from orders.matching import batches, service
from orders.matching.commands import Accepted, Cancelled, CancelOrder, Command, Outcome, PlaceOrder, Replayed, Swept
from orders.matching.depth import MakersCutShort
from orders.matching.waiters import LoopTicket, Mailbox, ThreadTicket, Ticket

_log = structlog.get_logger(__name__)
_leader = ThreadPoolExecutor(1, "leader")  # of the lists whose first request waits on an event loop
_aside = ThreadPoolExecutor(1, "aside")


@overload
def submit(command: PlaceOrder) -> Accepted | Replayed: ...
@overload
def submit(command: CancelOrder) -> Cancelled: ...
def submit(command: PlaceOrder | CancelOrder) -> Accepted | Replayed | Cancelled | Swept:
    """Run one command now and answer with its outcome; a refusal is raised."""
    return _done(submit_all([command]))


@overload
async def submit_in_loop(command: PlaceOrder) -> Accepted | Replayed: ...
@overload
async def submit_in_loop(command: CancelOrder) -> Cancelled: ...
async def submit_in_loop(command: PlaceOrder | CancelOrder) -> Accepted | Replayed | Cancelled | Swept:
    """The same for who waits on an event loop."""
    return _done(await _sequencer.submit_in_loop([command]))


def _done(outcomes: list[Outcome]) -> Accepted | Replayed | Cancelled | Swept:
    (outcome,) = outcomes
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


class Sequencer:
    """A bounded queue of tickets; the first of them leads, and hands the lead on when its list is done."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._tickets: deque[Ticket] = deque()
        self._commands_waiting = 0
        self._is_led = False
        self._seconds_per_command = 0.0  # of the last list
        self._put_aside = 0  # tickets
        self._mailbox: Mailbox | None = None  # of the loop that asked last: a web process has one

    def submit(self, commands: Sequence[Command]) -> list[Outcome]:
        ticket = ThreadTicket(commands)
        self._queue(ticket)
        if not ticket.is_called_within(settings.SEQUENCER_PATIENCE_SECONDS):
            self._require_under_way(ticket)
            if not ticket.leads and not ticket.is_called_within(settings.SEQUENCER_LAST_PATIENCE_SECONDS):
                raise OutcomeUnknown
        if ticket.leads:
            ticket.is_called_within(0)  # by its appointment, if that came after the wait
            self._lead()
            if not ticket.leads and not ticket.is_called_within(settings.SEQUENCER_LAST_PATIENCE_SECONDS):
                raise OutcomeUnknown
        return ticket.outcomes

    async def submit_in_loop(self, commands: Sequence[Command]) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        mailbox = self._mailbox
        if mailbox is None or mailbox.loop is not loop:
            mailbox = self._mailbox = Mailbox(loop)
        ticket = LoopTicket(commands, mailbox, self._start_leader)
        self._queue(ticket)
        patience = loop.call_later(settings.SEQUENCER_PATIENCE_SECONDS, self._lose_patience, ticket)
        try:
            await ticket.answered
        finally:
            patience.cancel()
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
                self._tickets[0].appoint()

    def _require_under_way(self, ticket: Ticket) -> None:
        """Take back what still waits; what does not is under way, or its turn came just now."""
        with self._mutex:
            if not ticket.leads and ticket in self._tickets:
                self._tickets.remove(ticket)
                self._commands_waiting -= len(ticket.commands)
                raise Overloaded

    def _lose_patience(self, ticket: LoopTicket) -> None:
        try:
            self._require_under_way(ticket)
        except Overloaded as refusal:
            ticket.refuse(refusal)
        else:
            loop = ticket.answered.get_loop()
            loop.call_later(settings.SEQUENCER_LAST_PATIENCE_SECONDS, ticket.refuse, OutcomeUnknown())

    def _lead(self) -> None:
        """Execute what waits, the first one's commands first, and appoint who leads next before calling who is done."""
        taken: list[Ticket] = []
        tickets: list[Ticket] = []
        outcomes: list[Outcome] = []
        try:
            is_retry = len(self._tickets) > 1 and settings.WEB_PROCESSES > 1 and not batches.began(service.await_turn)
            taken = tickets = self._take(self._room())
            while tickets and not outcomes:
                try:
                    outcomes = self._execute(tickets, is_retry=is_retry)
                except MakersCutShort as cut:  # nothing was done
                    tickets = self._without_deep(tickets, cut)
        finally:  # also should this thread be torn down meanwhile
            tickets = tickets if taken else self._take(0)
            self._hand_on()
            in_order = iter(outcomes)
            for ticket in tickets:
                ticket.answer(in_order, rest=OutcomeUnknown())

    def _execute(self, tickets: Sequence[Ticket], *, is_retry: bool) -> list[Outcome]:
        commands = [command for ticket in tickets for command in ticket.commands]
        started = time.monotonic()
        if self._put_aside:  # which holds locks for seconds
            is_retry = not batches.began(service.wait_briefly) or is_retry
        try:
            return batches.outcomes_of(commands, is_retry=is_retry)
        finally:
            self._seconds_per_command = (time.monotonic() - started) / len(commands)

    # --- Aside ------------------------------------------------------------------------------------------------------

    def _without_deep(self, tickets: Sequence[Ticket], cut: MakersCutShort) -> list[Ticket]:
        """Set aside the tickets with an order that must be executed by itself; return the others."""
        others = []
        for ticket in tickets:
            if any(cut.is_about(command) for command in ticket.commands):
                self._set_aside(ticket, cut)
            else:
                others.append(ticket)
        return others

    def _set_aside(self, ticket: Ticket, cut: MakersCutShort) -> None:
        ticket.leads = False
        with self._mutex:
            has_room = self._put_aside < settings.SEQUENCER_ASIDE_REQUESTS
            self._put_aside += has_room
        if has_room:
            _aside.submit(self._execute_aside, ticket, cut, time.monotonic() + settings.SEQUENCER_ASIDE_SECONDS)
        else:
            ticket.answer([], rest=Overloaded())

    def _execute_aside(self, ticket: Ticket, cut: MakersCutShort, deadline: float) -> None:
        """Part after part, until one would begin after the deadline: what is left is certainly not done."""
        outcomes: list[Outcome] = []
        rest: ExchangeError = OutcomeUnknown()
        try:
            with closing(connection):
                for part in cut.parts(ticket.commands):
                    if time.monotonic() >= deadline:
                        break
                    outcomes += batches.outcomes_of(part, by_parts=True)
            rest = Overloaded()
        except Exception as error:  # nobody waits for this thread's result
            _log.error("aside_failed", exc_info=error)
        finally:
            with self._mutex:
                self._put_aside -= 1
            ticket.answer(outcomes, rest)

    def _start_leader(self) -> None:
        _leader.submit(self._lead_in_its_thread)

    def _lead_in_its_thread(self) -> None:
        try:
            with closing(connection):
                self._lead()
        except Exception as error:  # nobody waits for this thread's result
            _log.error("leader_failed", exc_info=error)

    def _take(self, room: int) -> list[Ticket]:
        """The first ticket, and as many more as there is room for their commands."""
        with self._mutex:
            taken = [self._tickets.popleft()]
            room -= len(taken[0].commands)
            while self._tickets and len(self._tickets[0].commands) <= room:
                taken.append(self._tickets.popleft())
                room -= len(taken[-1].commands)
            self._commands_waiting -= sum(len(ticket.commands) for ticket in taken)
            return taken

    def _room(self) -> int:
        """How many commands one transaction may have, and may last at the pace of the list before."""
        if self._seconds_per_command == 0:
            return settings.SEQUENCER_BATCH
        return min(settings.SEQUENCER_BATCH, int(settings.SEQUENCER_BATCH_SECONDS / self._seconds_per_command))

    def _hand_on(self) -> None:
        with self._mutex:
            self._is_led = bool(self._tickets)
            if self._is_led:
                self._tickets[0].appoint()


_sequencer = Sequencer()
