"""Subscriptions to events, and the operators' actions on subscriptions and deliveries."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import uuid_utils.compat as uuid_utils
from django.conf import settings
from django.db import connection, transaction

from exchange import audit
from exchange.audit import Action, Actor, Entry
from exchange.database import database_now
from exchange.errors import NothingToRedeliver, ValidationFailed, WebhookDeleted, WebhookNotFound
from webhooks import wakeup
from webhooks.models import Delivery, EventType, Subscription


def subscribe(broker_id: str, *, url: str, events: Sequence[EventType]) -> tuple[list[Subscription], bool]:
    """Subscribe a broker to these events at `url`. Returns the subscriptions, and whether any of them is new."""
    wanted = sorted(set(events))  # rows are always locked in this order
    with connection.cursor() as cursor:
        cursor.execute(
            _SUBSCRIBE, [broker_id, url, [str(uuid_utils.uuid7()) for _ in wanted], [str(each) for each in wanted]]
        )
        rows = cursor.fetchall()
    subscriptions = {
        event_type: Subscription(id=id_, broker_id=broker_id, event_type=event_type, url=url)
        for id_, event_type, _ in rows
    }
    return [subscriptions[each] for each in dict.fromkeys(events)], any(is_new for _, _, is_new in rows)


def unsubscribe(broker_id: str, webhook_id: UUID) -> None:
    """Delete a subscription. Nothing more is sent to it."""
    mine = Subscription.objects.alive().filter(broker=broker_id, pk=webhook_id)
    if not mine.update(deleted_at=database_now()):
        raise WebhookNotFound


# --- Operator actions -----------------------------------------------------------------------------------------------


def pause(subscription_id: UUID, *, by: Actor, reason: str) -> None:
    """Stop sending to a subscription until it is resumed. Due deliveries wait, and new events add to them.

    A new URL does not resume it. Pausing a paused subscription has no effect.
    """
    _set_paused_at(subscription_id, Action.WEBHOOK_PAUSE, database_now(), by, reason)


def resume(subscription_id: UUID, *, by: Actor, reason: str) -> None:
    """Resume a paused subscription, starting with the deliveries that waited."""
    _set_paused_at(subscription_id, Action.WEBHOOK_RESUME, None, by, reason)
    wakeup.request()


def _set_paused_at(subscription_id: UUID, action: Action, paused_at: datetime | None, by: Actor, reason: str) -> None:
    with transaction.atomic(durable=True):
        row = Subscription.objects.select_for_update(no_key=True, of=("self",)).filter(pk=subscription_id).first()
        if row is None:
            raise WebhookNotFound
        if row.deleted_at:
            raise WebhookDeleted
        before, after = ({"state": "paused" if at else "active"} for at in (row.paused_at, paused_at))
        if before != after:
            Subscription.objects.filter(pk=subscription_id).update(paused_at=paused_at)
        audit.record(Entry.of(by, action, subscription_id, reason=reason, before=before, after=after))


def redeliver(delivery_ids: Sequence[UUID], *, by: Actor, reason: str) -> int:
    """Create a new delivery of the same event to the same subscription for each of these, and return their number.

    Deliveries without an outcome, with a pending redelivery, or locked by a concurrent call are skipped: two concurrent
    calls create one redelivery. Raises an error if none is left.
    """
    if len(delivery_ids) > settings.WEBHOOK_REDELIVERIES:
        raise ValidationFailed(f"At most {settings.WEBHOOK_REDELIVERIES} deliveries can be redelivered at once.")
    with transaction.atomic(durable=True):
        candidates = _lock_candidates(delivery_ids)
        selected = [each for each in candidates if each.can_redeliver]
        if not selected:
            all_deleted = bool(candidates) and all(each.is_deleted for each in candidates)
            raise WebhookDeleted if all_deleted else NothingToRedeliver
        redeliveries = Delivery.objects.bulk_create(
            Delivery(event_id=each.event_id, subscription_id=each.subscription_id, redelivery_of_id=each.id)
            for each in selected
        )
        audit.record(
            *(
                Entry.of(
                    by, Action.DELIVERY_REDELIVER, each.redelivery_of_id, reason=reason, after={"redelivery": each.pk}
                )
                for each in redeliveries
            )
        )
    wakeup.request()
    return len(redeliveries)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A delivery selected for redelivery."""

    id: UUID
    event_id: UUID
    subscription_id: UUID
    is_deleted: bool  # its subscription
    is_finished: bool
    is_being_redelivered: bool

    @property
    def can_redeliver(self) -> bool:
        return self.is_finished and not self.is_deleted and not self.is_being_redelivered


def _lock_candidates(delivery_ids: Sequence[UUID]) -> list[_Candidate]:
    """Lock these deliveries, then read their state."""
    lost_before = database_now() - timedelta(seconds=settings.WEBHOOK_LOST_AFTER_SECONDS)
    with connection.cursor() as cursor:
        cursor.execute(_LOCK, [list(delivery_ids)])
        locked = [id_ for (id_,) in cursor.fetchall()]
        cursor.execute(_CANDIDATES, {"ids": locked, "lost_before": lost_before})
        return [_Candidate(*row) for row in cursor.fetchall()]


# Rows that the dispatcher has locked are skipped, so that neither waits for the other.
_LOCK = """
SELECT id FROM webhooks_delivery WHERE id = ANY(%s::uuid[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
"""

_CANDIDATES = """
SELECT delivery.id, delivery.event_id, delivery.subscription_id, subscription.deleted_at IS NOT NULL,
       delivery.completed_at IS NOT NULL OR coalesce(delivery.claimed_at < %(lost_before)s, false),
       EXISTS (SELECT FROM webhooks_delivery again
               WHERE again.redelivery_of_id = delivery.id AND again.completed_at IS NULL
                 AND coalesce(again.claimed_at >= %(lost_before)s, true))
FROM webhooks_delivery delivery JOIN webhooks_subscription subscription ON subscription.id = delivery.subscription_id
WHERE delivery.id = ANY(%(ids)s::uuid[]) ORDER BY delivery.id
"""

# `xmax` of an existing row is the transaction that locked it for the update, this one; of a new row it is 0.
_SUBSCRIBE = """
INSERT INTO webhooks_subscription AS known (id, broker_id, event_type, url, created_at)
SELECT wanted.id, %s, wanted.event_type, %s, clock_timestamp()
FROM unnest(%s::uuid[], %s::text[]) AS wanted(id, event_type)
ON CONFLICT (broker_id, event_type) WHERE deleted_at IS NULL DO UPDATE
SET url = excluded.url, failures_left = CASE WHEN known.url = excluded.url THEN known.failures_left ELSE 1 END
RETURNING id, event_type, xmax = 0
"""
