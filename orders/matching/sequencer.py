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
from orders.matching.depth import TooManyMakers
from orders.matching.waiters import LoopWaiter, LoopWaker, ThreadWaiter, Waiter

_log = structlog.get_logger(__name__)
_leader_thread = ThreadPoolExecutor(1, "leader")  # of the lists whose first request waits on an event loop
_deep_thread = ThreadPoolExecutor(1, "deep")


@overload
def submit(command: PlaceOrder) -> Accepted | Replayed: ...
@overload
def submit(command: CancelOrder) -> Cancelled: ...
def submit(command: PlaceOrder | CancelOrder) -> Accepted | Replayed | Cancelled | Swept:
    """Run one command now and answer with its outcome; a refusal is raised."""
    return _unwrap(submit_all([command]))


@overload
async def submit_async(command: PlaceOrder) -> Accepted | Replayed: ...
@overload
async def submit_async(command: CancelOrder) -> Cancelled: ...
async def submit_async(command: PlaceOrder | CancelOrder) -> Accepted | Replayed | Cancelled | Swept:
    """The same for who waits on an event loop."""
    return _unwrap(await _sequencer.submit_async([command]))


def _unwrap(outcomes: list[Outcome]) -> Accepted | Replayed | Cancelled | Swept:
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
    """A bounded queue of waiters; the first of them leads, and hands the lead on when its list is done."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiters: deque[Waiter] = deque()
        self._queued_commands = 0
        self._has_leader = False
        self._seconds_per_command = 0.0  # of the last list
        self._deep_requests = 0  # waiters
        self._waker: LoopWaker | None = None  # of the loop that asked last: a web process has one

    def submit(self, commands: Sequence[Command]) -> list[Outcome]:
        waiter = ThreadWaiter(commands)
        self._enqueue(waiter)
        if not waiter.wait(settings.SEQUENCER_PATIENCE_SECONDS):
            self._withdraw(waiter)
            if not waiter.is_leader and not waiter.wait(settings.SEQUENCER_LAST_PATIENCE_SECONDS):
                raise OutcomeUnknown
        if waiter.is_leader:
            waiter.wait(0)  # by its appointment, if that came after the wait
            self._run_batch()
            if not waiter.is_leader and not waiter.wait(settings.SEQUENCER_LAST_PATIENCE_SECONDS):
                raise OutcomeUnknown
        return waiter.outcomes

    async def submit_async(self, commands: Sequence[Command]) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        waker = self._waker
        if waker is None or waker.loop is not loop:
            waker = self._waker = LoopWaker(loop)
        waiter = LoopWaiter(commands, waker, self._start_leader)
        self._enqueue(waiter)
        timer = loop.call_later(settings.SEQUENCER_PATIENCE_SECONDS, self._time_out, waiter)
        try:
            await waiter.future
        finally:
            timer.cancel()
        return waiter.outcomes

    def is_full(self) -> bool:
        return (
            len(self._waiters) >= settings.SEQUENCER_QUEUE_REQUESTS
            or self._queued_commands >= settings.SEQUENCER_QUEUE_COMMANDS
        )

    def _enqueue(self, waiter: Waiter) -> None:
        with self._mutex:
            if self.is_full():
                raise Overloaded
            self._waiters.append(waiter)
            self._queued_commands += len(waiter.commands)
            if not self._has_leader:
                self._has_leader = True
                self._waiters[0].promote()

    def _withdraw(self, waiter: Waiter) -> None:
        """Take back what still waits; what does not is under way, or its turn came just now."""
        with self._mutex:
            if not waiter.is_leader and waiter in self._waiters:
                self._waiters.remove(waiter)
                self._queued_commands -= len(waiter.commands)
                raise Overloaded

    def _time_out(self, waiter: LoopWaiter) -> None:
        try:
            self._withdraw(waiter)
        except Overloaded as error:
            waiter.reject(error)
        else:
            loop = waiter.future.get_loop()
            loop.call_later(settings.SEQUENCER_LAST_PATIENCE_SECONDS, waiter.reject, OutcomeUnknown())

    def _run_batch(self) -> None:
        """Execute what waits, the first one's commands first, and appoint who leads next before calling who is done."""
        taken: list[Waiter] = []
        waiters: list[Waiter] = []
        outcomes: list[Outcome] = []
        try:
            is_retry = (
                len(self._waiters) > 1
                and settings.WEB_PROCESSES > 1
                and not batches.try_begin(service.begin_with_batch_lock)
            )
            taken = waiters = self._dequeue(self._batch_capacity())
            while waiters and not outcomes:
                try:
                    outcomes = self._execute(waiters, is_retry=is_retry)
                except TooManyMakers as too_many:  # nothing was done
                    waiters = self._split_off_deep(waiters, too_many)
        finally:  # also should this thread be torn down meanwhile
            waiters = waiters if taken else self._dequeue(0)
            self._promote_next()
            in_order = iter(outcomes)
            for waiter in waiters:
                waiter.complete(in_order, rest=OutcomeUnknown())

    def _execute(self, waiters: Sequence[Waiter], *, is_retry: bool) -> list[Outcome]:
        commands = [command for waiter in waiters for command in waiter.commands]
        started = time.monotonic()
        if self._deep_requests:  # which holds locks for seconds
            is_retry = not batches.try_begin(service.begin_with_short_lock_timeout) or is_retry
        try:
            return batches.execute(commands, is_retry=is_retry)
        finally:
            self._seconds_per_command = (time.monotonic() - started) / len(commands)

    # --- Aside ------------------------------------------------------------------------------------------------------

    def _split_off_deep(self, waiters: Sequence[Waiter], too_many: TooManyMakers) -> list[Waiter]:
        """Set aside the waiters with an order that must be executed by itself; return the others."""
        others = []
        for waiter in waiters:
            if any(too_many.is_deep(command) for command in waiter.commands):
                self._submit_deep(waiter, too_many)
            else:
                others.append(waiter)
        return others

    def _submit_deep(self, waiter: Waiter, too_many: TooManyMakers) -> None:
        waiter.is_leader = False
        with self._mutex:
            is_admitted = self._deep_requests < settings.SEQUENCER_ASIDE_REQUESTS
            self._deep_requests += is_admitted
        if is_admitted:
            _deep_thread.submit(
                self._execute_deep, waiter, too_many, time.monotonic() + settings.SEQUENCER_ASIDE_SECONDS
            )
        else:
            waiter.complete([], rest=Overloaded())

    def _execute_deep(self, waiter: Waiter, too_many: TooManyMakers, deadline: float) -> None:
        """Part after part, until one would begin after the deadline: what is left is certainly not done."""
        outcomes: list[Outcome] = []
        rest: ExchangeError = OutcomeUnknown()
        try:
            with closing(connection):
                for part in too_many.split(waiter.commands):
                    if time.monotonic() >= deadline:
                        break
                    outcomes += batches.execute(part, split_deep=True)
            rest = Overloaded()
        except Exception as error:  # nobody waits for this thread's result
            _log.error("aside_failed", exc_info=error)
        finally:
            with self._mutex:
                self._deep_requests -= 1
            waiter.complete(outcomes, rest)

    def _start_leader(self) -> None:
        _leader_thread.submit(self._run_batch_in_thread)

    def _run_batch_in_thread(self) -> None:
        try:
            with closing(connection):
                self._run_batch()
        except Exception as error:  # nobody waits for this thread's result
            _log.error("leader_failed", exc_info=error)

    def _dequeue(self, capacity: int) -> list[Waiter]:
        """The first waiter, and as many more as there is capacity for their commands."""
        with self._mutex:
            taken = [self._waiters.popleft()]
            capacity -= len(taken[0].commands)
            while self._waiters and len(self._waiters[0].commands) <= capacity:
                taken.append(self._waiters.popleft())
                capacity -= len(taken[-1].commands)
            self._queued_commands -= sum(len(waiter.commands) for waiter in taken)
            return taken

    def _batch_capacity(self) -> int:
        """How many commands one transaction may have, and may last at the pace of the list before."""
        if self._seconds_per_command == 0:
            return settings.SEQUENCER_BATCH
        return min(settings.SEQUENCER_BATCH, int(settings.SEQUENCER_BATCH_SECONDS / self._seconds_per_command))

    def _promote_next(self) -> None:
        with self._mutex:
            self._has_leader = bool(self._waiters)
            if self._has_leader:
                self._waiters[0].promote()


_sequencer = Sequencer()
