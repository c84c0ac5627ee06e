"""The dispatcher's SQL: find due deliveries, claim them and save their outcomes.

A claim is committed before anything is sent, and a claimed delivery is never claimed again. So each delivery is sent at
most once, also if the dispatcher crashes.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from uuid import UUID

import msgspec
import psycopg
from django.conf import settings
from django.db import connection as django_connection
from psycopg.rows import TupleRow

from webhooks.models import TOLERATED_FAILURES, DeliveryError

Connection = psycopg.AsyncConnection[TupleRow]

_LOCK_NAMESPACE = 0x77686B73  # the first key of the advisory locks, used here only; the second is the shard
_DISCARD_BATCH = 1_000
# Prepared statements keep their plan, which must not be one for the nearly empty table at the time of planning.
_INDEX_PLANS = (
    " -c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"
)


@dataclass(frozen=True, slots=True)
class DueSubscription:
    """A subscription with due deliveries; `due` is their number, counted up to a limit."""

    subscription_id: UUID
    url: str
    limit_keys: list[str]
    is_deleted: bool
    due: int


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery that this dispatcher must send, once.

    Deliveries with the same limit key share a concurrency limit. One key is the URL, which several subscriptions may
    have. The other is the broker and event type, which a new URL does not change: so a broker that keeps changing its
    URL gets no higher concurrency.
    """

    delivery_id: UUID
    subscription_id: UUID
    url: str
    limit_keys: list[str]
    event_type: str
    sequence: int
    body: str


class DeliveryOutcome(msgspec.Struct, frozen=True):
    """Result of an attempt: the response's status, an error, or both if the response was incomplete."""

    id: UUID
    status_code: int | None
    error: DeliveryError | None
    duration_ms: int
    answer: str = ""  # the beginning of the response's body


class DeliveryQueue:
    """A database session that holds its shard's lock, and loses both if this process is frozen.

    The statements of each poll are prepared, because planning them took PostgreSQL as long as executing them.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls) -> Self:
        """Open an async connection with Django's settings. Django's own connections are per thread and blocking."""
        parameters = django_connection.get_connection_params()
        del parameters["cursor_factory"], parameters["context"]  # for Django's blocking connections
        parameters["options"] += _INDEX_PLANS
        parameters["options"] += f" -c idle_session_timeout={settings.IDLE_LOCK_TIMEOUT_MS}"
        return cls(await psycopg.AsyncConnection.connect(**parameters, autocommit=True))

    async def close(self) -> None:
        """Unlock the shard, then close. The session ends only later, and the next dispatcher must not wait for it."""
        with suppress(psycopg.Error):
            await self._connection.execute("SELECT pg_advisory_unlock_all()")
        await self._connection.close()

    async def lock_shard(self, shard: int) -> bool:
        """Become the only dispatcher of a shard until this connection ends. False if there is already one."""
        cursor = await self._connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [_LOCK_NAMESPACE, shard])
        row = await cursor.fetchone()
        assert row is not None
        return bool(row[0])

    async def find_due(self, max_count: int) -> list[DueSubscription]:
        """Return the subscriptions with due deliveries, longest waiting first: deleted ones too, but no paused ones."""
        cursor = await self._connection.execute(_DUE, [max_count], prepare=True)
        return [DueSubscription(*row) for row in await cursor.fetchall()]

    async def save_outcomes_and_claim(
        self, outcomes: Sequence[DeliveryOutcome], slots: Sequence[tuple[DueSubscription, int]]
    ) -> list[ClaimedDelivery]:
        """Save outcomes, and claim up to `slots` deliveries of each subscription, oldest first, in one statement.

        Nothing is claimed if the subscription's URL has changed. Saving an outcome again has no effect, so the call can
        be repeated after the connection was lost.
        """
        wanted = [{"id": each.subscription_id, "url": each.url, "slots": count} for each, count in slots]
        parameters = [msgspec.json.encode(rows).decode() for rows in (outcomes, wanted)]
        cursor = await self._connection.execute(_SAVE_OUTCOMES_AND_CLAIM, parameters, prepare=True)
        return [ClaimedDelivery(*row) for row in await cursor.fetchall()]

    async def discard(self, subscription_ids: Sequence[UUID]) -> None:
        """Discard a batch of due deliveries of deleted subscriptions."""
        await self._connection.execute(
            _DISCARD, [DeliveryError.SUBSCRIPTION_DELETED, list(subscription_ids), _DISCARD_BATCH]
        )

    async def release(self, deliveries: Sequence[ClaimedDelivery]) -> None:
        """Make claimed deliveries that were not sent due again."""
        await self._connection.execute(_RELEASE, [[each.delivery_id for each in deliveries]])


_HEALTH_LAG = "interval '5 s'"

_LIMIT_KEYS = "ARRAY[subscription.url, subscription.broker_id || ' ' || subscription.event_type]"

# If most rows belong to one subscription, the planner expects any scan to find another subscription's rows soon, and
# reads the whole table. BETWEEN and ordering by both columns leave only the index of due deliveries.

# One index step per subscription with due deliveries, regardless of the length of its queue.
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
SELECT subscription.id, subscription.url, {_LIMIT_KEYS}, subscription.deleted_at IS NOT NULL, queue.length
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

# The two updates of deliveries never change the same row: one requires `claimed_at`, the other that it is null.
# `id = ANY(ARRAY(…))` makes the planner expect few rows; otherwise it would read both tables in full with a long queue.
# `is_failed` is the condition of `models.IS_FAILED`.
# A subscription's health is for display. If only its times would change, and by only a few seconds, the row is not
# updated: publishing reads it, and a long transaction would keep all its versions. A locked row is skipped, so that no
# transaction delays the deliveries. The counts per hour are complete.
_SAVE_OUTCOMES_AND_CLAIM = f"""
WITH completed AS (
  UPDATE webhooks_delivery delivery
  SET completed_at = clock_timestamp(), status_code = row.status_code, error = coalesce(row.error, ''),
      duration_ms = row.duration_ms
  FROM ROWS FROM (
    json_to_recordset(%s::json) AS (id uuid, status_code smallint, error text, duration_ms int, answer text)
  ) WITH ORDINALITY AS row(id, status_code, error, duration_ms, answer, position)
  WHERE delivery.id = row.id AND delivery.completed_at IS NULL
  RETURNING delivery.id, delivery.subscription_id, delivery.completed_at, row.answer, row.position,
            delivery.error <> '' OR delivery.status_code NOT BETWEEN 200 AND 299 AS is_failed
), answered AS (
  INSERT INTO webhooks_answer (delivery_id, body) SELECT id, answer FROM completed WHERE answer <> ''
), counted AS (
  SELECT subscription_id, date_trunc('hour', completed_at, 'UTC') AS hour, count(*) AS completed,
         count(*) FILTER (WHERE is_failed) AS failed
  FROM completed GROUP BY 1, 2
), summed AS (
  INSERT INTO webhooks_subscriptionhour AS hours (subscription_id, hour, completed, failed)
  SELECT subscription_id, hour, completed, failed FROM counted ORDER BY subscription_id, hour
  ON CONFLICT (subscription_id, hour)
  DO UPDATE SET completed = hours.completed + excluded.completed, failed = hours.failed + excluded.failed
), latest AS (
  SELECT subscription_id, max(completed_at) FILTER (WHERE NOT is_failed) AS succeeded_at,
         max(completed_at) FILTER (WHERE is_failed) AS failed_at,
         count(*) FILTER (WHERE successes_since = 0) AS failures_since
  FROM (
    SELECT *, count(*) FILTER (WHERE NOT is_failed)
                OVER (PARTITION BY subscription_id ORDER BY position DESC) AS successes_since
    FROM completed) attempt
  GROUP BY 1
), changed_health AS (
  SELECT subscription.id, greatest(last_success_at, succeeded_at) AS success_at,
         greatest(last_failure_at, failed_at) AS failure_at, remaining.failures
  FROM latest JOIN webhooks_subscription subscription ON subscription.id = latest.subscription_id
  CROSS JOIN LATERAL (
    SELECT greatest(CASE WHEN succeeded_at IS NULL THEN failures_left ELSE {TOLERATED_FAILURES} END - failures_since, 0)
  ) AS remaining(failures)
  WHERE succeeded_at > coalesce(last_success_at + {_HEALTH_LAG}, '-infinity')
     OR failed_at > coalesce(last_failure_at + {_HEALTH_LAG}, '-infinity')
     OR remaining.failures <> failures_left
  FOR NO KEY UPDATE OF subscription SKIP LOCKED
), updated AS (
  UPDATE webhooks_subscription subscription
  SET last_success_at = success_at, last_failure_at = failure_at, failures_left = failures
  FROM changed_health WHERE subscription.id = changed_health.id
), selected AS (
  SELECT delivery.id
  FROM json_to_recordset(%s::json) AS wanted(id uuid, url text, slots int)
  JOIN webhooks_subscription subscription
    ON subscription.id = wanted.id AND subscription.url = wanted.url
       AND subscription.deleted_at IS NULL AND subscription.paused_at IS NULL
  CROSS JOIN LATERAL (
    SELECT id FROM webhooks_delivery
    WHERE subscription_id BETWEEN wanted.id AND wanted.id AND claimed_at IS NULL
    ORDER BY subscription_id, id LIMIT wanted.slots FOR UPDATE SKIP LOCKED) delivery
), claimed AS (
  UPDATE webhooks_delivery SET claimed_at = clock_timestamp()
  WHERE id = ANY(ARRAY(SELECT id FROM selected)) RETURNING id, event_id, subscription_id
)
SELECT claimed.id, subscription.id, subscription.url, {_LIMIT_KEYS}, event.type, event.sequence, event.body
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

_RELEASE = "UPDATE webhooks_delivery SET claimed_at = NULL WHERE id = ANY(%s) AND completed_at IS NULL"
