"""What is kept for a time only: the beginnings of the receivers' answers, and the hours of a subscription's health."""

from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import connection

from exchange.database import database_now
from exchange.ids import first_id_at


def delete_old() -> int:
    """Drop what is older than it is kept, a batch per transaction; how many answers those were.

    An answer is as old as its delivery, whose id says when that was written.
    """
    now = database_now()
    dropped = _drop_answers(first_id_at(now - settings.WEBHOOK_ANSWERS_KEPT))
    with connection.cursor() as cursor:
        cursor.execute(
            _DROP_HOURS, [settings.WEBHOOK_DROP_BATCH, now - settings.WEBHOOK_ANSWERS_KEPT - timedelta(hours=1)]
        )
    return dropped


def _drop_answers(before: UUID) -> int:
    """A batch begins where the last one ended: what was dropped still stands at the beginning of the index."""
    dropped, after = 0, UUID(int=0)
    for _ in range(settings.WEBHOOK_DROP_BATCHES):
        with connection.cursor() as cursor:
            cursor.execute(_DROP_ANSWERS, [after, before, settings.WEBHOOK_DROP_BATCH])
            ids = [id_ for (id_,) in cursor.fetchall()]
        dropped += len(ids)
        if len(ids) < settings.WEBHOOK_DROP_BATCH:
            break
        after = max(ids)
    return dropped


_DROP_ANSWERS = """
DELETE FROM webhooks_answer WHERE delivery_id = ANY(ARRAY(
  SELECT delivery_id FROM webhooks_answer WHERE delivery_id > %s AND delivery_id < %s ORDER BY delivery_id LIMIT %s))
RETURNING delivery_id
"""

# Ids ascend with the hours, or nearly: those that come first are looked at, and no more.
_DROP_HOURS = """
DELETE FROM webhooks_subscriptionhour WHERE id = ANY(ARRAY(
  SELECT id FROM (SELECT id, hour FROM webhooks_subscriptionhour ORDER BY id LIMIT %s) oldest WHERE hour < %s))
"""
