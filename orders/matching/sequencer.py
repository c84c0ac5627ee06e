"""The queue in which concurrent requests wait for the outcomes of their commands.

The first waiter is the leader. It executes all queued commands, of any books, as one batch: one transaction, one
commit. It then promotes the next waiter. A waiter in a thread leads itself; one on the event loop has a thread lead.
Under low load a batch has one command and nothing waits; under high load the batches grow. Web processes take turns
when requests wait, which saves time; only the locks of the database keep the books correct.

A deep order is executed in a separate transaction, by a thread of its own and with a time limit. That can take seconds,
in which its book is locked and the other books go on.
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
_leader_thread = ThreadPoolExecutor(1, "leader")  # for batches whose leader waits on the event loop
_deep_thread = ThreadPoolExecutor(1, "deep")


@overload
def submit(command: PlaceOrder) -> Accepted | Replayed: ...
@overload
def submit(command: CancelOrder) -> Cancelled: ...
def submit(command: PlaceOrder | CancelOrder) -> Accepted | Replayed | Cancelled | Swept:
    """Execute one command and return its outcome. Raise the outcome if it is an error."""
    return _unwrap(submit_all([command]))


@overload
async def submit_async(command: PlaceOrder) -> Accepted | Replayed: ...
@overload
async def submit_async(command: CancelOrder) -> Cancelled: ...
async def submit_async(command: PlaceOrder | CancelOrder) -> Accepted | Replayed | Cancelled | Swept:
    """Async variant of `submit`."""
    return _unwrap(await _sequencer.submit_async([command]))


def _unwrap(outcomes: list[Outcome]) -> Accepted | Replayed | Cancelled | Swept:
    (outcome,) = outcomes
    if isinstance(outcome, ExchangeError):
        raise outcome
    return outcome


def submit_all(commands: Sequence[Command]) -> list[Outcome]:
    """Execute `commands` and return one outcome per command, in order. An outcome may be an error.

    Raise `Overloaded` if they were certainly not executed, `OutcomeUnknown` if that is not known in time.
    """
    if not commands:
        return []
    if not connection.in_atomic_block:
        connection.close()  # waiters hold no connection, so that the leader gets one
    return _sequencer.submit(commands)


def is_full() -> bool:
    """True if a request would be rejected with `Overloaded` now."""
    return _sequencer.is_full()


class Sequencer:
    """A bounded queue of waiters, whose first waiter leads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiters: deque[Waiter] = deque()
        self._queued_commands = 0
        self._has_leader = False
        self._seconds_per_command = 0.0  # in the previous batch
        self._deep_requests = 0  # waiting for, or in, a separate transaction
        self._waker: LoopWaker | None = None  # for the event loop; a web process has one loop

    def submit(self, commands: Sequence[Command]) -> list[Outcome]:
        waiter = ThreadWaiter(commands)
        self._enqueue(waiter)
        if not waiter.wait(settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS):
            self._withdraw(waiter)
            if not waiter.is_leader and not waiter.wait(settings.SEQUENCER_EXECUTION_TIMEOUT_SECONDS):
                raise OutcomeUnknown
        if waiter.is_leader:
            waiter.wait(0)  # takes the wake-up of a promotion that came after the timeout
            self._run_batch()
            if not waiter.is_leader and not waiter.wait(settings.SEQUENCER_EXECUTION_TIMEOUT_SECONDS):
                raise OutcomeUnknown
        return waiter.outcomes

    async def submit_async(self, commands: Sequence[Command]) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        waker = self._waker
        if waker is None or waker.loop is not loop:
            waker = self._waker = LoopWaker(loop)
        waiter = LoopWaiter(commands, waker, self._start_leader)
        self._enqueue(waiter)
        timer = loop.call_later(settings.SEQUENCER_QUEUE_TIMEOUT_SECONDS, self._time_out, waiter)
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
        """Remove the waiter from the queue and raise `Overloaded`, unless it leads or its batch has begun."""
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
            loop.call_later(settings.SEQUENCER_EXECUTION_TIMEOUT_SECONDS, waiter.reject, OutcomeUnknown())

    def _start_leader(self) -> None:
        _leader_thread.submit(self._run_batch_in_thread)

    def _run_batch_in_thread(self) -> None:
        try:
            with closing(connection):
                self._run_batch()
        except Exception as error:  # the future of this thread is never read
            _log.error("leader_failed", exc_info=error)

    def _run_batch(self) -> None:
        """Execute the next batch, promote the next leader, then wake the waiters of the batch."""
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
                except TooManyMakers as too_many:  # nothing was executed
                    waiters = self._split_off_deep(waiters, too_many)
        finally:  # runs even if an exception from outside stops this thread
            waiters = waiters if taken else self._dequeue(0)
            self._promote_next()
            in_order = iter(outcomes)
            for waiter in waiters:
                waiter.complete(in_order, rest=OutcomeUnknown())

    def _execute(self, waiters: Sequence[Waiter], *, is_retry: bool) -> list[Outcome]:
        commands = [command for waiter in waiters for command in waiter.commands]
        started = time.monotonic()
        if self._deep_requests:  # their transaction may hold locks for seconds
            is_retry = not batches.try_begin(service.begin_with_short_lock_timeout) or is_retry
        try:
            return batches.execute(commands, is_retry=is_retry)
        finally:
            self._seconds_per_command = (time.monotonic() - started) / len(commands)

    def _dequeue(self, capacity: int) -> list[Waiter]:
        """Take the first waiter, and the next ones while their commands fit in `capacity`."""
        with self._mutex:
            taken = [self._waiters.popleft()]
            capacity -= len(taken[0].commands)
            while self._waiters and len(self._waiters[0].commands) <= capacity:
                taken.append(self._waiters.popleft())
                capacity -= len(taken[-1].commands)
            self._queued_commands -= sum(len(waiter.commands) for waiter in taken)
            return taken

    def _batch_capacity(self) -> int:
        """The maximum number of commands of a batch, also by time, at the pace of the previous batch."""
        if self._seconds_per_command == 0:
            return settings.SEQUENCER_BATCH
        return min(settings.SEQUENCER_BATCH, int(settings.SEQUENCER_BATCH_SECONDS / self._seconds_per_command))

    def _promote_next(self) -> None:
        with self._mutex:
            self._has_leader = bool(self._waiters)
            if self._has_leader:
                self._waiters[0].promote()

    # --- Deep orders ------------------------------------------------------------------------------------------------

    def _split_off_deep(self, waiters: Sequence[Waiter], too_many: TooManyMakers) -> list[Waiter]:
        """Pass the waiters with a deep order to the deep thread and return the others."""
        others = []
        for waiter in waiters:
            if any(too_many.is_deep(command) for command in waiter.commands):
                self._submit_deep(waiter, too_many)
            else:
                others.append(waiter)
        return others

    def _submit_deep(self, waiter: Waiter, too_many: TooManyMakers) -> None:
        waiter.is_leader = False  # it waits for the deep thread instead
        with self._mutex:
            is_admitted = self._deep_requests < settings.SEQUENCER_DEEP_REQUESTS
            self._deep_requests += is_admitted
        if is_admitted:
            _deep_thread.submit(
                self._execute_deep, waiter, too_many, time.monotonic() + settings.SEQUENCER_DEEP_TIME_LIMIT_SECONDS
            )
        else:
            waiter.complete([], rest=Overloaded())

    def _execute_deep(self, waiter: Waiter, too_many: TooManyMakers, deadline: float) -> None:
        """Execute the waiter's commands in parts. Parts left at the deadline are certainly not executed."""
        outcomes: list[Outcome] = []
        rest: ExchangeError = OutcomeUnknown()
        try:
            with closing(connection):
                for part in too_many.split(waiter.commands):
                    if time.monotonic() >= deadline:
                        break
                    outcomes += batches.execute(part, split_deep=True)
            rest = Overloaded()
        except Exception as error:  # the future of this thread is never read
            _log.error("aside_failed", exc_info=error)
        finally:
            with self._mutex:
                self._deep_requests -= 1
            waiter.complete(outcomes, rest)


_sequencer = Sequencer()
