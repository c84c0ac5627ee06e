"""Who wants to be told what, and where; and what operators may do about the telling."""

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
    """Send these events of a broker to `url` from now on; the subscriptions as asked for, and whether any is new."""
    wanted = sorted(set(events))  # in one order for all, for each row is locked
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
    """Send nothing to this subscription any more."""
    mine = Subscription.objects.alive().filter(broker=broker_id, pk=webhook_id)
    if not mine.update(deleted_at=database_now()):
        raise WebhookNotFound


# --- What operators do ----------------------------------------------------------------------------------------------


def pause(subscription_id: UUID, *, by: Actor, reason: str) -> None:
    """Send nothing to this subscription until it is resumed: what is due stays due, and what happens is due too.

    It does not end by another URL. Twice is once.
    """
    _set_paused_at(subscription_id, Action.WEBHOOK_PAUSE, database_now(), by, reason)


def resume(subscription_id: UUID, *, by: Actor, reason: str) -> None:
    """Send what waited, and go on. Twice is once."""
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
    """Have events delivered again to where they went before, each by a new delivery; how many there will be.

    Left out is what has had no outcome yet, what is being made again already, and what somebody else is having made
    again right now: the old deliveries are locked meanwhile, so that two who press at once make one. If that leaves
    nothing it is refused.
    """
    if len(delivery_ids) > settings.WEBHOOK_REDELIVERIES:
        raise ValidationFailed(f"No more than {settings.WEBHOOK_REDELIVERIES} at once.")
    with transaction.atomic(durable=True):
        candidates = _lock_candidates(delivery_ids)
        chosen = [each for each in candidates if each.may_be_made_again]
        if not chosen:
            all_deleted = bool(candidates) and all(each.is_deleted for each in candidates)
            raise WebhookDeleted if all_deleted else NothingToRedeliver
        again = Delivery.objects.bulk_create(
            Delivery(event_id=each.event_id, subscription_id=each.subscription_id, redelivery_of_id=each.id)
            for each in chosen
        )
        audit.record(
            *(
                Entry.of(
                    by, Action.DELIVERY_REDELIVER, each.redelivery_of_id, reason=reason, after={"redelivery": each.pk}
                )
                for each in again
            )
        )
    wakeup.request()
    return len(again)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A delivery that is to be made again."""

    id: UUID
    event_id: UUID
    subscription_id: UUID
    is_deleted: bool  # its subscription
    is_over: bool
    is_repeated: bool

    @property
    def may_be_made_again(self) -> bool:
        return self.is_over and not self.is_deleted and not self.is_repeated


def _lock_candidates(delivery_ids: Sequence[UUID]) -> list[_Candidate]:
    """What is known of these deliveries, read after they were locked."""
    lost_before = database_now() - timedelta(seconds=settings.WEBHOOK_LOST_AFTER_SECONDS)
    with connection.cursor() as cursor:
        cursor.execute(_LOCK, [list(delivery_ids)])
        locked = [id_ for (id_,) in cursor.fetchall()]
        cursor.execute(_CANDIDATES, {"ids": locked, "lost_before": lost_before})
        return [_Candidate(*row) for row in cursor.fetchall()]


# Who completes one of them now is not waited for, nor are we: nobody stands in the dispatcher's way.
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

# Of a row that was there before, `xmax` names the transaction that locked it in order to change it: this one.
_SUBSCRIBE = """
INSERT INTO webhooks_subscription (id, broker_id, event_type, url, created_at)
SELECT wanted.id, %s, wanted.event_type, %s, clock_timestamp()
FROM unnest(%s::uuid[], %s::text[]) AS wanted(id, event_type)
ON CONFLICT (broker_id, event_type) WHERE deleted_at IS NULL DO UPDATE SET url = excluded.url
RETURNING id, event_type, xmax = 0
"""
