"""Who wants to be told what, and where."""

from collections.abc import Sequence
from uuid import UUID

import uuid_utils.compat as uuid_utils
from django.db import connection

from exchange.database import database_now
from exchange.errors import WebhookNotFound
from webhooks.models import EventType, Subscription


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


# Of a row that was there before, `xmax` names the transaction that locked it in order to change it: this one.
_SUBSCRIBE = """
INSERT INTO webhooks_subscription (id, broker_id, event_type, url, created_at)
SELECT wanted.id, %s, wanted.event_type, %s, clock_timestamp()
FROM unnest(%s::uuid[], %s::text[]) AS wanted(id, event_type)
ON CONFLICT (broker_id, event_type) WHERE deleted_at IS NULL DO UPDATE SET url = excluded.url
RETURNING id, event_type, xmax = 0
"""
