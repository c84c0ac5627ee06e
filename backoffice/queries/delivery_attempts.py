"""All deliveries of an event: the first one and its redeliveries.

There is no index of deliveries by event. The first delivery is written by the same statement as the event, so its ID
closely follows the event's: a limited number of deliveries from there are scanned. Redeliveries refer to the delivery
that they repeat.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import connection

from exchange.ids import first_id_at, time_of_id
from webhooks.models import Delivery

MAX_SCANNED_DELIVERIES = 4_000  # in the search for an event's first delivery
MAX_RELATED_DELIVERIES = 500  # returned for one event or several
_WRITTEN_WITHIN = timedelta(minutes=1)  # longer than any statement


def deliveries_of_events(event_ids: Sequence[UUID]) -> list[Delivery]:
    """Return the deliveries of these events, oldest first."""
    written_at = [time_of_id(each) for each in event_ids]
    values: dict[str, Any] = {
        "ids": list(event_ids),
        "firsts": [first_id_at(each) for each in written_at],
        "ends": [first_id_at(each + _WRITTEN_WITHIN) for each in written_at],
        "max_near": MAX_SCANNED_DELIVERIES,
    }
    with connection.cursor() as cursor:
        cursor.execute(_FIRST_OF_EVENTS, values)
        return _with_redeliveries([id_ for (id_,) in cursor.fetchall()])


def related_deliveries(delivery: Delivery) -> list[Delivery]:
    """Return all deliveries of the same event as this one, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(_FIRST, [delivery.pk])
        return _with_redeliveries([id_ for (id_,) in cursor.fetchall()])


def _with_redeliveries(first: Sequence[UUID]) -> list[Delivery]:
    with connection.cursor() as cursor:
        cursor.execute(_REDELIVERIES, [list(first), MAX_RELATED_DELIVERIES])
        ids = [id_ for (id_,) in cursor.fetchall()]
    return list(Delivery.objects.filter(pk__in=ids).select_related("subscription").order_by("pk"))


# A broker has one subscription per event type, so an event has at most one first delivery, and the scan stops there.
_FIRST_OF_EVENTS = """
SELECT first.id
FROM unnest(%(ids)s::uuid[], %(firsts)s::uuid[], %(ends)s::uuid[]) AS event(id, first, last) CROSS JOIN LATERAL (
  SELECT near.id FROM (
    SELECT id, event_id FROM webhooks_delivery
    WHERE id >= event.first AND id < event.last ORDER BY id LIMIT %(max_near)s
  ) near
  WHERE near.event_id = event.id LIMIT 1
) first
"""

_FIRST = """
WITH RECURSIVE line AS (
  SELECT id, redelivery_of_id FROM webhooks_delivery WHERE id = %s
  UNION ALL
  SELECT before.id, before.redelivery_of_id
  FROM line JOIN webhooks_delivery before ON before.id = line.redelivery_of_id
)
SELECT id FROM line WHERE redelivery_of_id IS NULL
"""

_REDELIVERIES = """
WITH RECURSIVE family AS (
  SELECT id FROM webhooks_delivery WHERE id = ANY(%s::uuid[])
  UNION ALL
  SELECT again.id FROM family JOIN webhooks_delivery again ON again.redelivery_of_id = family.id
)
SELECT id FROM family LIMIT %s
"""
