"""The dispatcher: sends what is due, each endpoint in lanes of its own, so that one that hangs delays no other.

The row is the truth. One dispatcher runs per shard, held by a lock of the database; it claims only what its lanes have
room for, commits, sends, and notes what came of it together with the next claims. At work it looks at intervals, for
all that came and all that ended meanwhile: a look for each would cost more than the sending.
"""

import asyncio
import threading
import zlib
from collections import Counter
from contextlib import suppress
from uuid import UUID

import aiohttp
from django.conf import settings

from webhooks import http_client
from webhooks.delivery_queue import Claim, Claims, Endpoint, Outcome


class Dispatcher:
    """Sends one shard's deliveries until nothing is due or it is told to stop. Runs once."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.was_poked = False
        self.is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._in_flight: Counter[str] = Counter()  # by each of the names in `Claim.lanes`
        self._turn = 0
        self._turns: Counter[UUID] = Counter()  # each subscription's last; 0 if it had none
        self._awaited: set[str] = set()  # lanes of those that had more due at the last look than there was room for
        self._is_full = False  # whether that was because all were taken, whosever
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
                async with http_client.connector() as connector:
                    await self._drain(claims, connector)
        finally:
            await claims.close()
            if self._outcomes:  # the connection was lost: the next one will do for these
                claims = await Claims.connect()
                await claims.settle_and_claim(self._outcomes, [])
                await claims.close()

    async def _drain(self, claims: Claims, connector: aiohttp.BaseConnector) -> None:
        """Look until nothing has come for a while; while something does, it is found by looking, and needs no hint."""
        loop, linger = asyncio.get_running_loop(), settings.WEBHOOK_LINGER_SECONDS
        pause, ends_at = linger, loop.time() + linger
        try:
            while True:
                self._woken.clear()
                self.was_poked = False
                for claim in await self._look(claims):
                    self._start(connector, claim)
                if self._sending or self._outcomes:
                    pause, ends_at = settings.WEBHOOK_POLL_SECONDS, loop.time() + linger
                elif self.is_stopping or (loop.time() >= ends_at and not self._woken.is_set()):
                    return
                await self._rest(pause)
        finally:
            if self._sending:  # whatever happened to us, what is on its way may arrive
                await asyncio.wait(self._sending)

    async def _rest(self, seconds: float) -> None:
        """Until it is woken, or for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    async def _look(self, claims: Claims) -> list[Claim]:
        """Note what has become of earlier attempts and claim new ones, in one statement for both."""
        rooms = [] if self.is_stopping else await self._find_rooms(claims)
        outcomes = list(self._outcomes)
        if not (outcomes or rooms):
            return []
        claimed = await claims.settle_and_claim(outcomes, rooms)
        del self._outcomes[: len(outcomes)]
        if claimed and self.is_stopping:
            await claims.give_back(claimed)
            return []
        return claimed

    async def _find_rooms(self, claims: Claims) -> list[tuple[Endpoint, int]]:
        """What is due and has a lane free; whose lanes are waited for is remembered."""
        counted_up_to = settings.WEBHOOK_LANES_PER_ENDPOINT + 1  # one more than there can be room for
        due = [endpoint for endpoint in await claims.due(counted_up_to) if self._is_mine(endpoint)]
        deleted = [endpoint.subscription_id for endpoint in due if endpoint.is_deleted]
        if deleted:
            await claims.discard(deleted)
            self._woken.set()  # there may be more of it
        endpoints = [endpoint for endpoint in due if not endpoint.is_deleted]
        rooms = self._rooms(endpoints)
        waiting = [each for each in endpoints if rooms[each.subscription_id] < each.due]
        self._awaited = {lane for endpoint in waiting for lane in endpoint.lanes}
        self._is_full = bool(waiting) and len(self._sending) + rooms.total() >= settings.WEBHOOK_LANES
        return [(each, rooms[each.subscription_id]) for each in endpoints if rooms[each.subscription_id]]

    def _is_mine(self, endpoint: Endpoint) -> bool:
        return zlib.crc32(endpoint.url.encode()) % settings.WEBHOOK_SHARDS == self.shard

    def _rooms(self, endpoints: list[Endpoint]) -> Counter[UUID]:
        """How many deliveries of each can be on their way now, beside those that are.

        A lane at a time goes to who has the fewest, and of these to whose last turn is the longest ago: else endpoints
        that hang, whose queues are the oldest, would have every lane that one of them gives up.
        """
        taken, free = Counter(self._in_flight), settings.WEBHOOK_LANES - len(self._sending)
        rooms = Counter[UUID]()
        for _ in range(settings.WEBHOOK_LANES_PER_ENDPOINT):
            wanting = [each for each in endpoints if rooms[each.subscription_id] < each.due]
            for endpoint in sorted(wanting, key=lambda each: (taken[each.url], self._turns[each.subscription_id])):
                has_lane = max(taken[lane] for lane in endpoint.lanes) < settings.WEBHOOK_LANES_PER_ENDPOINT
                if free > 0 and has_lane:
                    rooms[endpoint.subscription_id] += 1
                    taken.update(endpoint.lanes)
                    free -= 1
        return rooms

    def _start(self, connector: aiohttp.BaseConnector, claim: Claim) -> None:
        for lane in claim.lanes:
            self._in_flight[lane] += 1
        self._turn += 1
        self._turns[claim.subscription_id] = self._turn
        task = asyncio.create_task(self._send(connector, claim))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, connector: aiohttp.BaseConnector, claim: Claim) -> None:
        self._outcomes.append(await http_client.send(connector, claim))
        if self.is_stopping or self._is_full or not self._awaited.isdisjoint(claim.lanes):
            self._woken.set()  # for who waits for a lane; else there is no hurry, and the next look notes many outcomes
        for lane in claim.lanes:
            self._in_flight[lane] -= 1
            if not self._in_flight[lane]:
                del self._in_flight[lane]


# --- One at a time per process --------------------------------------------------------------------------------------

_running: dict[int, Dispatcher] = {}
_stopping = threading.Event()
_changing = threading.Lock()


def drain(shard: int) -> None:
    """Send what is due in a shard; where a dispatcher of this process does so already, it is told to look again."""
    while True:
        with _changing:
            if shard in _running:
                _running[shard].poke()
                return
            dispatcher = _running[shard] = Dispatcher(shard)
        if _stopping.is_set():  # looked at after it was put there: either we see the stop, or the stop sees it
            dispatcher.stop()
        try:
            asyncio.run(dispatcher.run())
        finally:
            with _changing:
                del _running[shard]
        if dispatcher.is_stopping or not dispatcher.was_poked:
            return  # else it was poked when it had looked for the last time


def stop() -> None:
    """Have this process' dispatchers end in good order, and start none that sends anything."""
    _stopping.set()
    for dispatcher in list(_running.values()):
        dispatcher.stop()
