"""Requests that wait in the sequencer's queue, in a thread or on an event loop."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain, repeat

from exchange.errors import ExchangeError
from orders.matching.commands import Command, Outcome


class Waiter:
    """The commands of one request, until it gets their outcomes or becomes the leader."""

    __slots__ = ("commands", "is_leader", "outcomes")

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.outcomes: list[Outcome] = []
        self.is_leader = False

    def promote(self) -> None:
        """Make this waiter, the first in the queue, the leader."""
        raise NotImplementedError

    def wake(self) -> None:
        """Wake the request: its outcomes are set."""
        raise NotImplementedError

    def complete(self, outcomes: Iterable[Outcome], rest: ExchangeError) -> None:
        """Take the next outcomes, or `rest` where there are none left, and wake the request."""
        in_order = chain(outcomes, repeat(rest))
        self.outcomes = [next(in_order) for _ in self.commands]
        self.wake()


class ThreadWaiter(Waiter):
    """A request that waits in a thread, which executes the batch when it leads."""

    __slots__ = ("_wake_lock",)

    def __init__(self, commands: Sequence[Command]) -> None:
        super().__init__(commands)
        self._wake_lock = threading.Lock()  # the cheapest primitive to wait for
        self._wake_lock.acquire()

    def promote(self) -> None:
        self.is_leader = True
        self._wake_lock.release()

    def wake(self) -> None:
        if not self.is_leader:  # a leader is not waiting
            self._wake_lock.release()

    def wait(self, seconds: float) -> bool:
        return self._wake_lock.acquire(timeout=seconds)


class LoopWaiter(Waiter):
    """A request that waits on the event loop; when it leads, a thread executes the batch."""

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
    """Completes futures of one event loop from other threads, several with each call into the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._futures: deque[asyncio.Future[None]] = deque()
        self._is_scheduled = False

    def wake(self, future: asyncio.Future[None]) -> None:
        self._futures.append(future)
        if not self._is_scheduled:
            self._is_scheduled = True
            with suppress(RuntimeError):  # the loop has ended, with all its requests
                self.loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        self._is_scheduled = False  # first, so that a future added from now on schedules a call again
        while self._futures:
            future = self._futures.popleft()
            if not future.done():
                future.set_result(None)
