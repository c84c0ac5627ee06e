"""The requests that wait in the sequencer's queue, in a thread or on an event loop."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain, repeat

from exchange.errors import ExchangeError
from orders.matching.commands import Command, Outcome


class Waiter:
    """Commands that wait together: for their outcomes, or until the first of them is to lead."""

    __slots__ = ("commands", "is_leader", "outcomes")

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.outcomes: list[Outcome] = []
        self.is_leader = False

    def promote(self) -> None:
        """It is the first of those that wait: have it lead."""
        raise NotImplementedError

    def wake(self) -> None:
        """Its outcomes are there."""
        raise NotImplementedError

    def complete(self, outcomes: Iterable[Outcome], rest: ExchangeError) -> None:
        """Take its outcomes from these, and `rest` for those that are not there."""
        in_order = chain(outcomes, repeat(rest))
        self.outcomes = [next(in_order) for _ in self.commands]
        self.wake()


class ThreadWaiter(Waiter):
    """A thread waits, and leads itself."""

    __slots__ = ("_wake_lock",)

    def __init__(self, commands: Sequence[Command]) -> None:
        super().__init__(commands)
        self._wake_lock = threading.Lock()  # the cheapest thing that can be waited for
        self._wake_lock.acquire()

    def promote(self) -> None:
        self.is_leader = True
        self._wake_lock.release()

    def wake(self) -> None:
        if not self.is_leader:  # else who asks is here
            self._wake_lock.release()

    def wait(self, seconds: float) -> bool:
        return self._wake_lock.acquire(timeout=seconds)


class LoopWaiter(Waiter):
    """A request on the event loop waits, and has a thread lead."""

    __slots__ = ("_start_leader", "_waker", "future")

    def __init__(self, commands: Sequence[Command], waker: "LoopWaker", start_leader: Callable[[], None]) -> None:
        super().__init__(commands)
        self._waker, self._start_leader = waker, start_leader
        self.future: asyncio.Future[None] = waker.loop.create_future()

    def promote(self) -> None:
        self.is_leader = True
        self._start_leader()

    def wake(self) -> None:
        self._waker.wake(self.future)

    def reject(self, error: ExchangeError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class LoopWaker:
    """Answers the futures of one event loop from other threads: with one call into it for all that come together."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._futures: deque[asyncio.Future[None]] = deque()
        self._is_scheduled = False

    def wake(self, future: asyncio.Future[None]) -> None:
        self._futures.append(future)
        if not self._is_scheduled:
            self._is_scheduled = True
            with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                self.loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        self._is_scheduled = False  # first: what is put from now on is called for again
        while self._futures:
            future = self._futures.popleft()
            if not future.done():
                future.set_result(None)
