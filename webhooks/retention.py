"""Retention of receivers' responses and of subscriptions' health counts per hour."""

from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import connection

from exchange.database import database_now
from exchange.ids import first_id_at


def delete_old() -> int:
    """Delete rows past their retention, one transaction per batch, and return the number of deleted responses.

    A response is as old as its delivery, whose id contains its time.
    """
    now = database_now()
    deleted = _delete_answers(first_id_at(now - settings.WEBHOOK_RESPONSE_RETENTION))
    with connection.cursor() as cursor:
        cursor.execute(
            _DELETE_HOURS,
            [settings.WEBHOOK_RETENTION_BATCH, now - settings.WEBHOOK_RESPONSE_RETENTION - timedelta(hours=1)],
        )
    return deleted


def _delete_answers(before: UUID) -> int:
    """Delete batches of responses. Each starts after the last, because dead rows remain at the start of the index."""
    deleted, after = 0, UUID(int=0)
    for _ in range(settings.WEBHOOK_RETENTION_BATCHES):
        with connection.cursor() as cursor:
            cursor.execute(_DELETE_ANSWERS, [after, before, settings.WEBHOOK_RETENTION_BATCH])
            ids = [id_ for (id_,) in cursor.fetchall()]
        deleted += len(ids)
        if len(ids) < settings.WEBHOOK_RETENTION_BATCH:
            break
        after = max(ids)
    return deleted


_DELETE_ANSWERS = """
DELETE FROM webhooks_answer WHERE delivery_id = ANY(ARRAY(
  SELECT delivery_id FROM webhooks_answer WHERE delivery_id > %s AND delivery_id < %s ORDER BY delivery_id LIMIT %s))
RETURNING delivery_id
"""

# Ids ascend roughly with the hours, so only the first rows are checked.
_DELETE_HOURS = """
DELETE FROM webhooks_subscriptionhour WHERE id = ANY(ARRAY(
  SELECT id FROM (SELECT id, hour FROM webhooks_subscriptionhour ORDER BY id LIMIT %s) oldest WHERE hour < %s))
"""
