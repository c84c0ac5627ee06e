"""The dispatcher: sends what is due, each endpoint in lanes of its own, so that one that hangs delays no other.

The row is the truth. One dispatcher runs per shard, held by a lock of the database; it claims only what its lanes have
room for, commits, sends, and notes what came of it together with the next claims.
"""

import asyncio
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from uuid import UUID

import aiohttp
from django.conf import settings

from webhooks import sending
from webhooks.claims import Claim, Claims, Endpoint, Outcome


class Dispatcher:
    """Sends one shard's deliveries until nothing is due, its time is up, or it is told to stop. Runs once."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.was_poked = False
        self.is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._in_flight: Counter[str] = Counter()  # by URL: an endpoint is one, whoever subscribes to it
        self._outcomes: list[Outcome] = []

    # --- From other threads -----------------------------------------------------------------------------------------

    def poke(self) -> None:
        """Something is due."""
        self.was_poked = True
        self._wake()

    def stop(self) -> None:
        """Claim nothing more, and end when what is on its way has arrived or failed."""
        self.is_stopping = True
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._woken.set)

    # --- In its own -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Dispatch, unless somebody else does so for this shard."""
        self._loop = asyncio.get_running_loop()
        claims = await Claims.connect()
        try:
            if await claims.take_shard(self.shard):
                async with sending.session() as session:
                    await self._drain(claims, session)
        finally:
            await claims.close()

    async def _drain(self, claims: Claims, session: aiohttp.ClientSession) -> None:
        ends_at = time.monotonic() + settings.WEBHOOK_DRAIN_SECONDS
        has_lingered = False
        try:
            while True:
                self._woken.clear()
                self.was_poked = False
                is_ending = self.is_stopping or time.monotonic() > ends_at
                for claim in await self._settle_and_claim(claims, is_ending=is_ending):
                    self._start(session, claim)
                if self._sending or self._outcomes:
                    has_lingered = False
                    await self._is_woken(settings.WEBHOOK_POLL_SECONDS)
                elif is_ending or (has_lingered and not self._woken.is_set()):
                    return
                else:  # before it ends it looks once more: a hint may be lost, or be with another process
                    has_lingered = not await self._is_woken(settings.WEBHOOK_LINGER_SECONDS)
        finally:
            if self._sending:  # whatever happened to us, what is on its way may arrive
                await asyncio.wait(self._sending)

    async def _is_woken(self, within_seconds: float) -> bool:
        try:
            async with asyncio.timeout(within_seconds):
                return await self._woken.wait()
        except TimeoutError:
            return False

    async def _settle_and_claim(self, claims: Claims, *, is_ending: bool) -> list[Claim]:
        """Note what has become of earlier attempts and claim new ones, in one transaction."""
        outcomes, self._outcomes = self._outcomes, []
        async with claims.transaction():
            if outcomes:
                await claims.complete(outcomes)
            claimed = [] if is_ending else await self._claim(claims)
        if claimed and self.is_stopping:
            await claims.give_back(claimed)
            return []
        return claimed

    async def _claim(self, claims: Claims) -> list[Claim]:
        due = [
            endpoint for endpoint in await claims.due(settings.WEBHOOK_LANES_PER_ENDPOINT) if self._is_mine(endpoint)
        ]
        deleted = [endpoint.subscription_id for endpoint in due if endpoint.is_deleted]
        if deleted:
            await claims.discard(deleted)
            self._woken.set()  # there may be more of it
        rooms = self._rooms(endpoint for endpoint in due if not endpoint.is_deleted)
        return await claims.claim(rooms) if rooms else []

    def _is_mine(self, endpoint: Endpoint) -> bool:
        return zlib.crc32(endpoint.url.encode()) % settings.WEBHOOK_SHARDS == self.shard

    def _rooms(self, endpoints: Iterable[Endpoint]) -> dict[UUID, int]:
        """How many deliveries of each subscription can be on their way now, beside those that are."""
        taken = Counter(self._in_flight)
        free = settings.WEBHOOK_LANES - taken.total()
        rooms = {}
        for endpoint in endpoints:
            room = min(endpoint.due, settings.WEBHOOK_LANES_PER_ENDPOINT - taken[endpoint.url], free)
            if room > 0:
                rooms[endpoint.subscription_id] = room
                taken[endpoint.url] += room
                free -= room
        return rooms

    def _start(self, session: aiohttp.ClientSession, claim: Claim) -> None:
        self._in_flight[claim.url] += 1
        task = asyncio.create_task(self._send(session, claim))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, session: aiohttp.ClientSession, claim: Claim) -> None:
        outcome = await sending.send(session, claim)  # first: the list is another one by then
        self._outcomes.append(outcome)
        self._in_flight[claim.url] -= 1
        if not self._in_flight[claim.url]:
            del self._in_flight[claim.url]
        self._woken.set()


# --- One at a time per process --------------------------------------------------------------------------------------

_running: dict[int, Dispatcher] = {}
_changing = threading.Lock()


def drain(shard: int) -> None:
    """Send what is due in a shard; where a dispatcher of this process does so already, it is told to look again."""
    while True:
        with _changing:
            if shard in _running:
                _running[shard].poke()
                return
            dispatcher = _running[shard] = Dispatcher(shard)
        try:
            asyncio.run(dispatcher.run())
        finally:
            with _changing:
                del _running[shard]
        if dispatcher.is_stopping or not dispatcher.was_poked:
            return  # else it was poked when it had looked for the last time


def stop() -> None:
    """Have this process' dispatchers end in good order."""
    for dispatcher in list(_running.values()):
        dispatcher.stop()
