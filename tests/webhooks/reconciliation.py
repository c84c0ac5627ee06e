"""Comparison of received requests with the rows: each event is sent at most once, and none is forgotten.

It reads the database by its URL, which may be another one than the test session's.
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
    """An event, its delivery if it has one, and the outcome of that delivery."""

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


def count_due(database_url: str) -> int:
    """Count the unclaimed deliveries."""
    with psycopg.connect(database_url) as connection:
        (count,) = connection.execute(_DUE).fetchone() or (0,)
    return int(count)


def dispatcher_name(database_url: str) -> str | None:
    """The application name of the session that dispatches, if there is one."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute(_DISPATCHER).fetchone()
    return str(row[0]) if row else None


def wait_until_sent(database_url: str, within_seconds: float) -> bool:
    """True once no delivery is due and the dispatcher has stored all outcomes."""
    return wait_until(lambda: count_due(database_url) == 0 and dispatcher_name(database_url) is None, within_seconds)


def assert_each_event_has_one_delivery(rows: Sequence[Row]) -> None:
    assert [row for row in rows if row.delivery_id is None] == []
    assert _highest_count((row.broker_id, row.sequence) for row in rows) == 1


def unknown_outcomes(rows: Sequence[Row], requests: Sequence[Request]) -> list[Row]:
    """Deliveries that were claimed and have no outcome. Check that all others agree with the requests.

    No request arrives twice or without a row. A delivery with an outcome arrived, unless its subscription was deleted.
    """
    deliveries = {str(row.delivery_id): row for row in rows if row.delivery_id}
    arrived = {request.headers["x-delivery-id"] for request in requests}
    assert _highest_count(request.headers["x-delivery-id"] for request in requests) == 1
    for request in requests:
        row = deliveries[request.headers["x-delivery-id"]]
        assert row.is_claimed
        assert request.body == row.body.encode()
        assert _identity(request) == (str(row.subscription_id), row.event_type, str(row.sequence))
    without_outcome = {id_: row for id_, row in deliveries.items() if row.is_claimed and not row.is_completed}
    for id_, row in deliveries.items() - without_outcome.items():
        if row.is_unsubscribed and id_ not in arrived:
            assert (row.status_code, row.error) == (None, DeliveryError.SUBSCRIPTION_DELETED)
        else:
            assert (row.status_code, row.error, id_ in arrived) == (200, "", True)
    return list(without_outcome.values())


def _identity(request: Request) -> tuple[str, str, str]:
    return request.headers["x-webhook-id"], request.headers["x-event-type"], request.headers["x-event-sequence"]


def _highest_count(items: Iterable[Hashable]) -> int:
    """The count of the most frequent item."""
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
