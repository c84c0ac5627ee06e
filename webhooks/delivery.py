"""The dispatcher: sends what is due, each endpoint in lanes of its own, so that one that hangs delays no other.

The row is the truth. One dispatcher runs per shard, held by a lock of the database; it claims only what its lanes have
room for, commits, sends, and notes what came of it together with the next claims.
"""

import asyncio
import threading
import zlib
from collections import Counter
from contextlib import suppress
from uuid import UUID

import aiohttp
from django.conf import settings

from webhooks import sending
from webhooks.claims import Claim, Claims, Endpoint, Outcome


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
            if self._outcomes:  # the connection was lost: the next one will do for these
                claims = await Claims.connect()
                await claims.complete(self._outcomes)
                await claims.close()

    async def _drain(self, claims: Claims, session: aiohttp.ClientSession) -> None:
        has_lingered = False
        try:
            while True:
                self._woken.clear()
                self.was_poked = False
                for claim in await self._settle_and_claim(claims):
                    self._start(session, claim)
                if self._sending or self._outcomes:
                    has_lingered = False
                    await self._is_woken(settings.WEBHOOK_POLL_SECONDS)
                elif self.is_stopping or (has_lingered and not self._woken.is_set()):
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

    async def _settle_and_claim(self, claims: Claims) -> list[Claim]:
        """Note what has become of earlier attempts and claim new ones, in one transaction."""
        outcomes = list(self._outcomes)
        async with claims.transaction():
            if outcomes:
                await claims.complete(outcomes)
            claimed = [] if self.is_stopping else await self._claim(claims)
        del self._outcomes[: len(outcomes)]
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
        rooms = self._rooms([endpoint for endpoint in due if not endpoint.is_deleted])
        return await claims.claim(rooms) if rooms else []

    def _is_mine(self, endpoint: Endpoint) -> bool:
        return zlib.crc32(endpoint.url.encode()) % settings.WEBHOOK_SHARDS == self.shard

    def _rooms(self, endpoints: list[Endpoint]) -> list[tuple[Endpoint, int]]:
        """How many deliveries of each can be on their way now, beside those that are.

        A lane at a time goes to who has the fewest, and of these to whose last turn is the longest ago: else endpoints
        that hang, whose queues are the oldest, would have every lane that one of them gives up.
        """
        taken, free = Counter(self._in_flight), settings.WEBHOOK_LANES - len(self._sending)
        rooms = Counter[UUID]()
        for _ in range(settings.WEBHOOK_LANES_PER_ENDPOINT):
            for endpoint in sorted(endpoints, key=lambda each: (taken[each.url], self._turns[each.subscription_id])):
                has_lane = max(taken[lane] for lane in endpoint.lanes) < settings.WEBHOOK_LANES_PER_ENDPOINT
                if free > 0 and has_lane and rooms[endpoint.subscription_id] < endpoint.due:
                    rooms[endpoint.subscription_id] += 1
                    taken.update(endpoint.lanes)
                    free -= 1
        return [(each, rooms[each.subscription_id]) for each in endpoints if rooms[each.subscription_id]]

    def _start(self, session: aiohttp.ClientSession, claim: Claim) -> None:
        self._in_flight.update(claim.lanes)
        self._turn += 1
        self._turns[claim.subscription_id] = self._turn
        task = asyncio.create_task(self._send(session, claim))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, session: aiohttp.ClientSession, claim: Claim) -> None:
        self._outcomes.append(await sending.send(session, claim))
        for lane in claim.lanes:
            self._in_flight[lane] -= 1
            if not self._in_flight[lane]:
                del self._in_flight[lane]
        self._woken.set()


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
