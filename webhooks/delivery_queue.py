"""The deliveries' SQL as a dispatcher speaks it: what is due, claiming it, and what became of it.

A claim is committed before anything is sent, and nothing claimed is ever claimed again: at most once, whoever dies.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from uuid import UUID

import msgspec
import psycopg
from django.db import connection as django_connection
from psycopg.rows import TupleRow

from webhooks.models import DeliveryError

Connection = psycopg.AsyncConnection[TupleRow]

_LOCKS = 0x77686B73  # the first half of the advisory locks' numbers: nobody else's here; the second is the shard
_DISCARDED_AT_ONCE = 1_000
# A plan that is kept must not be one for the nearly empty table that it was made on.
_ALWAYS_BY_INDEX = (
    " -c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A subscription that has something due: how much, counted up to a limit."""

    subscription_id: UUID
    url: str
    lanes: list[str]
    is_deleted: bool
    due: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A delivery that is this dispatcher's to send, once.

    Its lanes are those of the URL, which others may share, and those of the broker and event, which a new URL does not
    change: a broker that keeps moving its webhook gets no more of them.
    """

    delivery_id: UUID
    subscription_id: UUID
    url: str
    lanes: list[str]
    event_type: str
    sequence: int
    body: str


class Outcome(msgspec.Struct, frozen=True):
    """What became of one attempt: an answer's status, an error, or both when the answer broke off."""

    id: UUID
    status_code: int | None
    error: DeliveryError | None
    duration_ms: int
    answer: str = ""  # the beginning of its body


class Claims:
    """One connection to the database, in a session that holds its shard's lock.

    What each look says is prepared: planning it took PostgreSQL as long as doing it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls) -> Self:
        """A connection of our own with the settings of Django's, whose own belong to threads and block them."""
        parameters = django_connection.get_connection_params()
        del parameters["cursor_factory"], parameters["context"]  # Django's, for its own way of waiting
        parameters["options"] += _ALWAYS_BY_INDEX
        return cls(await psycopg.AsyncConnection.connect(**parameters, autocommit=True))

    async def close(self) -> None:
        """Let go of the shard first: the session ends a moment later, and the next dispatcher waits for nobody."""
        with suppress(psycopg.Error):
            await self._connection.execute("SELECT pg_advisory_unlock_all()")
        await self._connection.close()

    async def take_shard(self, shard: int) -> bool:
        """Become the only dispatcher of a shard until this connection ends; False if there is one."""
        cursor = await self._connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [_LOCKS, shard])
        row = await cursor.fetchone()
        assert row is not None
        return bool(row[0])

    async def due(self, counted_up_to: int) -> list[Endpoint]:
        """Where something is due and may be sent, what has waited longest first."""
        cursor = await self._connection.execute(_DUE, [counted_up_to], prepare=True)
        return [Endpoint(*row) for row in await cursor.fetchall()]

    async def settle_and_claim(self, outcomes: Sequence[Outcome], rooms: Sequence[tuple[Endpoint, int]]) -> list[Claim]:
        """Note what became of earlier attempts, and claim up to so many deliveries of each endpoint, oldest first.

        One statement and one commit for both; nothing is claimed where the URL changed meanwhile, and nothing that was
        noted before is noted again: who lost the connection tries once more.
        """
        wanted = [{"id": endpoint.subscription_id, "url": endpoint.url, "room": room} for endpoint, room in rooms]
        parameters = [msgspec.json.encode(rows).decode() for rows in (outcomes, wanted)]
        cursor = await self._connection.execute(_SETTLE_AND_CLAIM, parameters, prepare=True)
        return [Claim(*row) for row in await cursor.fetchall()]

    async def discard(self, subscription_ids: Sequence[UUID]) -> None:
        """Close some of what is due to subscriptions that were deleted."""
        await self._connection.execute(
            _DISCARD, [DeliveryError.SUBSCRIPTION_DELETED, list(subscription_ids), _DISCARDED_AT_ONCE]
        )

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """Make what was claimed and not sent due again."""
        await self._connection.execute(_GIVE_BACK, [[claim.delivery_id for claim in claims]])


_HEALTH_MAY_LAG = "interval '5 s'"

_LANES = "ARRAY[subscription.url, subscription.broker_id || ' ' || subscription.event_type]"

# When most rows are one subscription's, the planner hopes to meet another's soon whichever way it reads, and reads past
# all of them. BETWEEN and the order by both columns leave it nothing but the index of what is due.

# One step along the index per subscription that has something due, however long its queue is.
_DUE = f"""
WITH RECURSIVE due AS (
  (SELECT subscription_id, id FROM webhooks_delivery
   WHERE claimed_at IS NULL ORDER BY subscription_id, id LIMIT 1)
  UNION ALL
  SELECT next.subscription_id, next.id
  FROM due CROSS JOIN LATERAL (
    SELECT subscription_id, id FROM webhooks_delivery
    WHERE claimed_at IS NULL AND subscription_id > due.subscription_id ORDER BY subscription_id, id LIMIT 1) next
)
SELECT subscription.id, subscription.url, {_LANES}, subscription.deleted_at IS NOT NULL, queue.length
FROM due JOIN webhooks_subscription subscription
  ON subscription.id = due.subscription_id AND (subscription.paused_at IS NULL OR subscription.deleted_at IS NOT NULL)
CROSS JOIN LATERAL (
  SELECT count(*) AS length FROM (
    SELECT FROM webhooks_delivery
    WHERE subscription_id BETWEEN due.subscription_id AND due.subscription_id AND claimed_at IS NULL
    ORDER BY subscription_id, id LIMIT %s) counted
) queue
ORDER BY due.id
"""

# What is completed was claimed before, and what is claimed was not: the two updates never meet in a row.
# By its estimate of how many are chosen it would read both tables whole when much is due; of an array it expects few.
# `is_failed` says what `models.FAILED` does. A subscription's two times are for people: while they say the same of it,
# to within a few seconds, its row is left alone, since publishing reads it and a long transaction would keep every
# version of it; and whoever is changing it is not waited for, so that nobody holds up the sending. Its hours count all.
_SETTLE_AND_CLAIM = f"""
WITH completed AS (
  UPDATE webhooks_delivery delivery
  SET completed_at = clock_timestamp(), status_code = row.status_code, error = coalesce(row.error, ''),
      duration_ms = row.duration_ms
  FROM json_to_recordset(%s::json) AS row(id uuid, status_code smallint, error text, duration_ms int, answer text)
  WHERE delivery.id = row.id AND delivery.completed_at IS NULL
  RETURNING delivery.id, delivery.subscription_id, delivery.completed_at, row.answer,
            delivery.error <> '' OR delivery.status_code NOT BETWEEN 200 AND 299 AS is_failed
), answered AS (
  INSERT INTO webhooks_answer (delivery_id, body) SELECT id, answer FROM completed WHERE answer <> ''
), counted AS (
  SELECT subscription_id, date_trunc('hour', completed_at, 'UTC') AS hour, count(*) AS completed,
         count(*) FILTER (WHERE is_failed) AS failed, max(completed_at) FILTER (WHERE NOT is_failed) AS succeeded_at,
         max(completed_at) FILTER (WHERE is_failed) AS failed_at
  FROM completed GROUP BY 1, 2
), summed AS (
  INSERT INTO webhooks_subscriptionhour AS hours (subscription_id, hour, completed, failed)
  SELECT subscription_id, hour, completed, failed FROM counted ORDER BY subscription_id, hour
  ON CONFLICT (subscription_id, hour)
  DO UPDATE SET completed = hours.completed + excluded.completed, failed = hours.failed + excluded.failed
), news AS (
  SELECT subscription.id, greatest(last_success_at, succeeded_at) AS success_at,
         greatest(last_failure_at, failed_at) AS failure_at
  FROM (SELECT subscription_id, max(succeeded_at) AS succeeded_at, max(failed_at) AS failed_at
        FROM counted GROUP BY 1) latest
  JOIN webhooks_subscription subscription ON subscription.id = latest.subscription_id
  WHERE succeeded_at > coalesce(last_success_at + {_HEALTH_MAY_LAG}, '-infinity')
     OR failed_at > coalesce(last_failure_at + {_HEALTH_MAY_LAG}, '-infinity')
     OR coalesce(failed_at > succeeded_at, failed_at IS NOT NULL)
        <> coalesce(last_failure_at > last_success_at, last_failure_at IS NOT NULL)
  FOR NO KEY UPDATE OF subscription SKIP LOCKED
), told AS (
  UPDATE webhooks_subscription subscription SET last_success_at = success_at, last_failure_at = failure_at
  FROM news WHERE subscription.id = news.id
), chosen AS (
  SELECT delivery.id
  FROM json_to_recordset(%s::json) AS wanted(id uuid, url text, room int)
  JOIN webhooks_subscription subscription
    ON subscription.id = wanted.id AND subscription.url = wanted.url
       AND subscription.deleted_at IS NULL AND subscription.paused_at IS NULL
  CROSS JOIN LATERAL (
    SELECT id FROM webhooks_delivery
    WHERE subscription_id BETWEEN wanted.id AND wanted.id AND claimed_at IS NULL
    ORDER BY subscription_id, id LIMIT wanted.room FOR UPDATE SKIP LOCKED) delivery
), claimed AS (
  UPDATE webhooks_delivery SET claimed_at = clock_timestamp()
  WHERE id = ANY(ARRAY(SELECT id FROM chosen)) RETURNING id, event_id, subscription_id
)
SELECT claimed.id, subscription.id, subscription.url, {_LANES}, event.type, event.sequence, event.body
FROM claimed JOIN webhooks_event event ON event.id = claimed.event_id
JOIN webhooks_subscription subscription ON subscription.id = claimed.subscription_id
"""

_DISCARD = """
UPDATE webhooks_delivery SET claimed_at = clock_timestamp(), completed_at = clock_timestamp(), error = %s
WHERE id = ANY(ARRAY(
  SELECT delivery.id FROM unnest(%s::uuid[]) AS deleted(id) CROSS JOIN LATERAL (
    SELECT id FROM webhooks_delivery
    WHERE subscription_id BETWEEN deleted.id AND deleted.id AND claimed_at IS NULL
    ORDER BY subscription_id, id LIMIT %s FOR UPDATE SKIP LOCKED) delivery))
"""

_GIVE_BACK = "UPDATE webhooks_delivery SET claimed_at = NULL WHERE id = ANY(%s) AND completed_at IS NULL"
