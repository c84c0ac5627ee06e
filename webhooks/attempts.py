"""Which deliveries belong together: those of one event, the first to each subscription and those made again of it.

There is no index of deliveries by event. The first were written by the statement that wrote the event, so that their
ids follow its own closely: there they are looked for, among so many and no further. All others name the one before.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from django.db import connection

from exchange.paging import first_id_at, moment_of
from webhooks.models import Delivery, Event

MAX_NEAR = 4_000  # deliveries that are looked through for those of an event
MAX_FAMILY = 100  # deliveries of one event that are told of
_WRITTEN_WITHIN = timedelta(minutes=1)  # no statement takes as long


def of_event(event: Event) -> list[Delivery]:
    """An event's deliveries, oldest first."""
    written_at = moment_of(event.pk)
    near = (
        Delivery.objects.filter(pk__gte=first_id_at(written_at), pk__lt=first_id_at(written_at + _WRITTEN_WITHIN))
        .order_by("pk")
        .values_list("pk", "event_id")[:MAX_NEAR]
    )
    return _descended_from([pk for pk, event_id in near if event_id == event.pk])


def of_the_same(delivery: Delivery) -> list[Delivery]:
    """A delivery, those that it makes again, and those by which it was made again, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(_FIRST, [delivery.pk])
        return _descended_from([id_ for (id_,) in cursor.fetchall()])


def _descended_from(first: Sequence[UUID]) -> list[Delivery]:
    with connection.cursor() as cursor:
        cursor.execute(_DESCENDED, [list(first), MAX_FAMILY])
        ids = [id_ for (id_,) in cursor.fetchall()]
    return list(Delivery.objects.filter(pk__in=ids).select_related("subscription").order_by("pk"))


_FIRST = """
WITH RECURSIVE line AS (
  SELECT id, redelivery_of_id FROM webhooks_delivery WHERE id = %s
  UNION ALL
  SELECT before.id, before.redelivery_of_id
  FROM line JOIN webhooks_delivery before ON before.id = line.redelivery_of_id
)
SELECT id FROM line WHERE redelivery_of_id IS NULL
"""

_DESCENDED = """
WITH RECURSIVE family AS (
  SELECT id FROM webhooks_delivery WHERE id = ANY(%s::uuid[])
  UNION ALL
  SELECT again.id FROM family JOIN webhooks_delivery again ON again.redelivery_of_id = family.id
)
SELECT id FROM family LIMIT %s
"""
