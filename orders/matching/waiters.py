"""The requests that wait in the sequencer's queue, in a thread or on an event loop."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain, repeat

from exchange.errors import ExchangeError
from orders.matching.commands import Command, Outcome


class Ticket:
    """Commands that wait together: for their outcomes, or until the first of them is to lead."""

    __slots__ = ("commands", "leads", "outcomes")

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.outcomes: list[Outcome] = []
        self.leads = False

    def appoint(self) -> None:
        """It is the first of those that wait: have it lead."""
        raise NotImplementedError

    def call(self) -> None:
        """Its outcomes are there."""
        raise NotImplementedError

    def answer(self, outcomes: Iterable[Outcome], rest: ExchangeError) -> None:
        """Take its outcomes from these, and `rest` for those that are not there."""
        in_order = chain(outcomes, repeat(rest))
        self.outcomes = [next(in_order) for _ in self.commands]
        self.call()


class ThreadTicket(Ticket):
    """A thread waits, and leads itself."""

    __slots__ = ("_uncalled",)

    def __init__(self, commands: Sequence[Command]) -> None:
        super().__init__(commands)
        self._uncalled = threading.Lock()  # the cheapest thing that can be waited for
        self._uncalled.acquire()

    def appoint(self) -> None:
        self.leads = True
        self._uncalled.release()

    def call(self) -> None:
        if not self.leads:  # else who asks is here
            self._uncalled.release()

    def is_called_within(self, seconds: float) -> bool:
        return self._uncalled.acquire(timeout=seconds)


class LoopTicket(Ticket):
    """A request on the event loop waits, and has a thread lead."""

    __slots__ = ("_mailbox", "_start_leader", "answered")

    def __init__(self, commands: Sequence[Command], mailbox: "Mailbox", start_leader: Callable[[], None]) -> None:
        super().__init__(commands)
        self._mailbox, self._start_leader = mailbox, start_leader
        self.answered: asyncio.Future[None] = mailbox.loop.create_future()

    def appoint(self) -> None:
        self.leads = True
        self._start_leader()

    def call(self) -> None:
        self._mailbox.put(self.answered)

    def refuse(self, refusal: ExchangeError) -> None:
        if not self.answered.done():
            self.answered.set_exception(refusal)


class Mailbox:
    """Answers the futures of one event loop from other threads: with one call into it for all that come together."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._futures: deque[asyncio.Future[None]] = deque()
        self._is_called_for = False

    def put(self, future: asyncio.Future[None]) -> None:
        self._futures.append(future)
        if not self._is_called_for:
            self._is_called_for = True
            with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                self.loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._is_called_for = False  # first: what is put from now on is called for again
        while self._futures:
            future = self._futures.popleft()
            if not future.done():
                future.set_result(None)
