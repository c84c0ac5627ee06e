"""The dispatcher of due deliveries. Concurrency limits per endpoint prevent a slow receiver from delaying the others.

The database row is the truth. One dispatcher runs per shard, ensured by an advisory lock. It claims only as many
deliveries as it can send at once, commits, sends them, and saves the outcomes together with the next claims. While it
is busy, it polls at intervals, for all new deliveries and all outcomes at once: a query for each would cost more than
sending.
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
from webhooks.delivery_queue import ClaimedDelivery, DeliveryOutcome, DeliveryQueue, DueSubscription


class Dispatcher:
    """Sends the deliveries of a shard until none is due or it is stopped. Runs once."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.was_notified = False
        self.is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._send_tasks: set[asyncio.Task[None]] = set()
        self._in_flight: Counter[str] = Counter()  # by limit key
        self._sends = 0
        self._last_send: Counter[UUID] = Counter()  # the number of each subscription's latest send, 0 without any
        self._contended_keys: set[str] = set()  # limit keys of subscriptions with deliveries left over at the last poll
        self._is_at_limit = False  # deliveries were left over, and all slots of the dispatcher were taken
        self._outcomes: list[DeliveryOutcome] = []

    # --- Called from other threads ----------------------------------------------------------------------------------

    def notify(self) -> None:
        """Poll again, because deliveries may be due."""
        self.was_notified = True
        self._wake()

    def stop(self) -> None:
        """Claim nothing more, and end when all deliveries in flight have an outcome."""
        self.is_stopping = True
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the event loop has ended
                self._loop.call_soon_threadsafe(self._woken.set)

    # --- Run in the dispatcher's thread -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Dispatch, unless another dispatcher holds the shard."""
        self._loop = asyncio.get_running_loop()
        queue = await DeliveryQueue.connect()
        try:
            if await queue.lock_shard(self.shard):
                async with http_client.create_connector() as connector:
                    await self._drain(queue, connector)
        finally:
            await queue.close()
            if self._outcomes:  # the connection was lost: save these over a new one
                queue = await DeliveryQueue.connect()
                await queue.save_outcomes_and_claim(self._outcomes, [])
                await queue.close()

    async def _drain(self, queue: DeliveryQueue, connector: aiohttp.BaseConnector) -> None:
        """Poll until nothing has been due for `WEBHOOK_LINGER_SECONDS`. A busy dispatcher needs no wake-up."""
        loop, linger = asyncio.get_running_loop(), settings.WEBHOOK_LINGER_SECONDS
        pause, ends_at = linger, loop.time() + linger
        try:
            while True:
                self._woken.clear()
                self.was_notified = False
                for delivery in await self._poll(queue):
                    self._start(connector, delivery)
                if self._send_tasks or self._outcomes:
                    pause, ends_at = settings.WEBHOOK_POLL_SECONDS, loop.time() + linger
                elif self.is_stopping or (loop.time() >= ends_at and not self._woken.is_set()):
                    return
                await self._sleep(pause)
        finally:
            if self._send_tasks:  # even after an error, wait for the deliveries in flight
                await asyncio.wait(self._send_tasks)

    async def _sleep(self, seconds: float) -> None:
        """Wait until woken, at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    async def _poll(self, queue: DeliveryQueue) -> list[ClaimedDelivery]:
        """Save the outcomes of earlier deliveries and claim new ones, in one statement."""
        slots = [] if self.is_stopping else await self._find_slots(queue)
        outcomes = list(self._outcomes)
        if not (outcomes or slots or self.is_stopping):
            return []
        # While it is stopping, an empty statement keeps the session, which would otherwise end as idle.
        claimed = await queue.save_outcomes_and_claim(outcomes, slots)
        del self._outcomes[: len(outcomes)]
        if claimed and self.is_stopping:
            await queue.release(claimed)
            return []
        return claimed

    async def _find_slots(self, queue: DeliveryQueue) -> list[tuple[DueSubscription, int]]:
        """Return the due subscriptions with the number of deliveries to claim of each, and note the contended keys."""
        max_count = settings.WEBHOOK_CONCURRENCY_PER_ENDPOINT + 1  # one more than can be sent at once
        due = [subscription for subscription in await queue.find_due(max_count) if self._is_mine(subscription)]
        deleted = [subscription.subscription_id for subscription in due if subscription.is_deleted]
        if deleted:
            await queue.discard(deleted)
            self._woken.set()  # there may be more to discard
        subscriptions = [subscription for subscription in due if not subscription.is_deleted]
        slots = self._allocate_slots(subscriptions)
        waiting = [each for each in subscriptions if slots[each.subscription_id] < each.due]
        self._contended_keys = {key for subscription in waiting for key in subscription.limit_keys}
        self._is_at_limit = bool(waiting) and len(self._send_tasks) + slots.total() >= settings.WEBHOOK_CONCURRENCY
        return [(each, slots[each.subscription_id]) for each in subscriptions if slots[each.subscription_id]]

    def _is_mine(self, subscription: DueSubscription) -> bool:
        return zlib.crc32(subscription.url.encode()) % settings.WEBHOOK_SHARDS == self.shard

    def _allocate_slots(self, subscriptions: list[DueSubscription]) -> Counter[UUID]:
        """Return the number of further deliveries of each subscription that may be in flight.

        Slots are allocated one at a time, to the URL with the fewest in flight, and among these to the subscription
        with the oldest last send. Otherwise, slow receivers, whose queues are the oldest, would get every slot that one
        of them frees.
        """
        taken, free = Counter(self._in_flight), settings.WEBHOOK_CONCURRENCY - len(self._send_tasks)
        slots = Counter[UUID]()
        for _ in range(settings.WEBHOOK_CONCURRENCY_PER_ENDPOINT):
            candidates = [each for each in subscriptions if slots[each.subscription_id] < each.due]
            for each in sorted(candidates, key=lambda each: (taken[each.url], self._last_send[each.subscription_id])):
                is_below_limit = max(taken[key] for key in each.limit_keys) < settings.WEBHOOK_CONCURRENCY_PER_ENDPOINT
                if free > 0 and is_below_limit:
                    slots[each.subscription_id] += 1
                    taken.update(each.limit_keys)
                    free -= 1
        return slots

    def _start(self, connector: aiohttp.BaseConnector, delivery: ClaimedDelivery) -> None:
        for key in delivery.limit_keys:
            self._in_flight[key] += 1
        self._sends += 1
        self._last_send[delivery.subscription_id] = self._sends
        task = asyncio.create_task(self._send(connector, delivery))
        self._send_tasks.add(task)
        task.add_done_callback(self._send_tasks.discard)

    async def _send(self, connector: aiohttp.BaseConnector, delivery: ClaimedDelivery) -> None:
        self._outcomes.append(await http_client.send(connector, delivery))
        if self.is_stopping or self._is_at_limit or not self._contended_keys.isdisjoint(delivery.limit_keys):
            self._woken.set()  # a delivery waits for this slot; otherwise the next poll saves many outcomes at once
        for key in delivery.limit_keys:
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key]


# --- One dispatcher per shard and process ---------------------------------------------------------------------------

_running: dict[int, Dispatcher] = {}
_stopping = threading.Event()
_lock = threading.Lock()


def drain(shard: int) -> None:
    """Send the due deliveries of a shard, or notify this process's dispatcher of the shard if there is one."""
    while True:
        with _lock:
            if shard in _running:
                _running[shard].notify()
                return
            dispatcher = _running[shard] = Dispatcher(shard)
        if _stopping.is_set():  # checked after registering the dispatcher, so that either side sees the other
            dispatcher.stop()
        try:
            asyncio.run(dispatcher.run())
        finally:
            with _lock:
                del _running[shard]
        if dispatcher.is_stopping or not dispatcher.was_notified:
            return  # otherwise, the notification came after the last poll


def stop() -> None:
    """Stop this process's dispatchers gracefully, and prevent new ones from sending."""
    _stopping.set()
    for dispatcher in list(_running.values()):
        dispatcher.stop()
