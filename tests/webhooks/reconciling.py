"""What receivers got, compared with the rows that say what was to be sent: each event once at most, and none forgotten.

It reads the database by its URL, so that it can also look into one that is not the test session's.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

import psycopg

from config.local.processes import wait_until
from tests.receiver import Request
from webhooks.models import DeliveryError


@dataclass(frozen=True, slots=True)
class Row:
    """An event, a delivery that tells it if there is one, and what the dispatcher knows of that."""

    broker_id: str
    sequence: int
    event_type: str
    body: str
    delivery_id: UUID | None
    subscription_id: UUID | None
    is_claimed: bool
    is_completed: bool
    status_code: int | None
    error: str | None
    is_unsubscribed: bool


def rows(database_url: str) -> list[Row]:
    """Every event with its deliveries."""
    with psycopg.connect(database_url) as connection:
        return [Row(*row) for row in connection.execute(_ROWS)]


def due(database_url: str) -> int:
    """How many deliveries nobody has claimed yet."""
    with psycopg.connect(database_url) as connection:
        (count,) = connection.execute(_DUE).fetchone() or (0,)
    return int(count)


def dispatcher(database_url: str) -> str | None:
    """What the session that dispatches now calls itself, if there is one."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute(_DISPATCHER).fetchone()
    return str(row[0]) if row else None


def all_is_sent(database_url: str, within_seconds: float) -> bool:
    """Whether nothing is due any more, and the dispatcher has noted what became of all that was sent."""
    return wait_until(lambda: due(database_url) == 0 and dispatcher(database_url) is None, within_seconds)


def assert_each_event_is_told(rows: Sequence[Row]) -> None:
    """Each event has exactly one delivery."""
    assert [row for row in rows if row.delivery_id is None] == []
    assert _highest_count((row.broker_id, row.sequence) for row in rows) == 1


def unknown(rows: Sequence[Row], requests: Sequence[Request]) -> list[Row]:
    """What was claimed and has no outcome, so that it may have arrived; all else must be as the rows say.

    Nothing arrived twice or without a row; all that has an outcome was answered, unless its subscription was deleted.
    """
    deliveries = {str(row.delivery_id): row for row in rows if row.delivery_id}
    arrived = {request.headers["x-delivery-id"] for request in requests}
    assert _highest_count(request.headers["x-delivery-id"] for request in requests) == 1
    for request in requests:
        row = deliveries[request.headers["x-delivery-id"]]
        assert row.is_claimed
        assert request.body == row.body.encode()
        assert _told_by_headers(request) == (str(row.subscription_id), row.event_type, str(row.sequence))
    without_outcome = {id_: row for id_, row in deliveries.items() if row.is_claimed and not row.is_completed}
    for id_, row in deliveries.items() - without_outcome.items():
        if row.is_unsubscribed and id_ not in arrived:
            assert (row.status_code, row.error) == (None, DeliveryError.SUBSCRIPTION_DELETED)
        else:
            assert (row.status_code, row.error, id_ in arrived) == (200, "", True)
    return list(without_outcome.values())


def _told_by_headers(request: Request) -> tuple[str, str, str]:
    return request.headers["x-webhook-id"], request.headers["x-event-type"], request.headers["x-event-sequence"]


def _highest_count(items: Iterable[Hashable]) -> int:
    """How often there is what is there most often."""
    return max(Counter(items).values())


_ROWS = """
SELECT event.broker_id, event.sequence, event.type, event.body, delivery.id, delivery.subscription_id,
       delivery.claimed_at IS NOT NULL, delivery.completed_at IS NOT NULL, delivery.status_code, delivery.error,
       subscription.deleted_at IS NOT NULL
FROM webhooks_event event
LEFT JOIN webhooks_delivery delivery ON delivery.event_id = event.id
LEFT JOIN webhooks_subscription subscription ON subscription.id = delivery.subscription_id
"""

_DUE = "SELECT count(*) FROM webhooks_delivery WHERE claimed_at IS NULL"

_DISPATCHER = """
SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid)
WHERE locktype = 'advisory' AND granted AND datname = current_database()
"""
