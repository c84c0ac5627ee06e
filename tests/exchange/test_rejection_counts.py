"""Each rejected order is counted once; unauthenticated requests and unknown outcomes are not counted."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from config.local.processes import wait_until
from exchange import rejection_counts, services
from exchange.models import RejectedOrders
from exchange.tasks import drop_rejects
from gateway import order_entry
from gateway.application import Gateway
from orders.matching import sequencer
from tests import trading
from tests.api import LIMIT
from tests.exchange.client import ApiHandler
from tests.live import Server

pytestmark = pytest.mark.django_db(transaction=True)

TEN = datetime(2026, 3, 2, 10, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _nothing_is_counted() -> None:
    rejection_counts._counts.clear()


def at(seconds: float) -> Callable[[], float]:
    """Return a clock stopped at this time after ten o'clock."""
    return lambda: TEN.timestamp() + seconds


def stored() -> dict[datetime, int]:
    return dict(RejectedOrders.objects.order_by("at").values_list("at", "count"))


def counted() -> int:
    """Return the count that this process has not stored yet."""
    return sum(rejection_counts._counts.values())


# --- Counted requests -----------------------------------------------------------------------------------------------


def send(key: str, path: str, body: Any, *, full: bool = False, method: str = "POST", media_type: str = "json") -> int:
    """Send a request through the gateway and return the status of the response."""
    content = msgspec.json.encode(body)
    headers = {
        "host": "localhost:8000",
        "authorization": f"Bearer {key}",
        "content-type": f"application/{media_type}",
        "content-length": str(len(content)),
    }
    scope = SimpleNamespace(
        method=method, path=path, query_string="", http_version="1.1", server="127.0.0.1:8000", client="10.0.0.1:4711",
        scheme="http", headers=SimpleNamespace(items=headers.items),
    )  # fmt: skip
    responses: list[int] = []

    class Protocol:
        async def __call__(self) -> bytes:
            return content

        def response_bytes(self, status: int, headers: Any, content: bytes) -> None:
            responses.append(status)

    gateway = Gateway(ApiHandler(), (lambda: True) if full else sequencer.is_full, order_entry.parse_fast_request)
    asyncio.run(gateway.__rsgi__(scope, Protocol()))  # type: ignore[arg-type]  # the smallest fake of both
    return responses[0]


FAST, FULL = "json", "json; charset=UTF8"  # the fast path and the full path


@pytest.mark.parametrize("media_type", [FAST, FULL])
def test_a_rejected_order_counts_once_on_the_fast_path_and_the_full_path(media_type: str) -> None:
    key = trading.broker("alice")
    assert send(key, "/orders", LIMIT, media_type=media_type) == 201
    assert counted() == 0

    bodies = [LIMIT | {"price": "900000000"}, LIMIT | {"symbol": "NONE"}, LIMIT | {"quantity": 0}]
    assert [send(key, "/orders", body, media_type=media_type) for body in bodies] == [409, 404, 400]
    assert counted() == 3


def test_a_replay_is_not_a_rejection() -> None:
    key, body = trading.broker("alice"), LIMIT | {"client_order_id": "once"}

    assert [send(key, "/orders", body) for _ in range(2)] == [201, 200]
    assert send(key, "/orders", body | {"quantity": 6}) == 409
    assert counted() == 1


def test_unauthenticated_requests_do_not_count() -> None:
    trading.broker("alice")

    assert send(f"brs_{'0' * 12}_{'0' * 64}", "/orders", LIMIT) == 401
    assert counted() == 0


def test_rejections_by_a_full_queue_count() -> None:
    key = trading.broker("alice")

    assert send(key, "/orders", LIMIT, full=True) == 503
    assert send(key, "/orders/batch", {"orders": [LIMIT] * 3}, full=True) == 503
    assert send(key, "/orders/01a1b97c-7119-7000-8000-000000000000", {}, full=True, method="DELETE") == 503
    assert counted() == 2


def test_each_rejected_order_of_a_batch_counts() -> None:
    key = trading.broker("alice")
    orders = [LIMIT, LIMIT | {"price": "900000000"}, "no order", LIMIT | {"broker_id": "bob"}, LIMIT]

    assert send(key, "/orders/batch", {"orders": orders}) == 200
    assert counted() == 3


def test_a_rejected_batch_counts_as_one() -> None:
    key = trading.broker("alice")

    assert send(key, "/orders/batch", {"orders": []}) == 400
    assert counted() == 1


def test_other_requests_do_not_count() -> None:
    key = trading.broker("alice")

    assert send(key, "/webhooks", {}) == 400
    assert send(key, "/orders/01a1b97c-7119-7000-8000-000000000000", {}, method="DELETE") == 404
    assert counted() == 0


@pytest.mark.parametrize(
    ("status", "is_rejection"),
    [(200, False), (201, False), (400, True), (401, False), (403, True), (409, True), (429, True), (500, False),
     (503, True), (504, False)],
)  # fmt: skip
def test_only_statuses_of_requests_that_were_not_executed_are_rejections(status: int, is_rejection: bool) -> None:
    assert rejection_counts.is_rejection(status) is is_rejection


# --- Storage --------------------------------------------------------------------------------------------------------


def test_counts_are_summed_in_buckets_of_ten_seconds() -> None:
    for seconds in (0, 9.9, 10, 25):
        rejection_counts.add(1, at(seconds))
    rejection_counts.flush()
    rejection_counts.add(5, at(3))  # by another process
    rejection_counts.flush()
    rejection_counts.flush()

    assert stored() == {TEN: 7, TEN + timedelta(seconds=10): 1, TEN + timedelta(seconds=20): 1}


def test_counts_that_could_not_be_stored_are_stored_later() -> None:
    rejection_counts.add(2, at(0))

    def fail(*_: Any) -> Any:
        rejection_counts.add(1, at(1))  # during the failing flush
        raise OperationalError("away")

    with connection.execute_wrapper(fail), pytest.raises(OperationalError):
        rejection_counts.flush()
    rejection_counts.flush()

    assert stored() == {TEN: 3}


def test_without_rejections_a_flush_needs_no_query(django_assert_num_queries: Any) -> None:
    rejection_counts.add(0)
    with django_assert_num_queries(0):
        rejection_counts.flush()


def test_concurrent_threads_lose_no_count() -> None:
    def count_many() -> None:
        for _ in range(2_000):
            rejection_counts.add(1, at(0))

    trading.run_concurrently([count_many] * 8)
    rejection_counts.flush()

    assert stored() == {TEN: 16_000}


def test_the_summary_has_the_last_minute_the_day_and_each_minute() -> None:
    for seconds in (-3_700, -70, -50, -10, 5, 15):  # relative to midnight
        rejection_counts.add(1, at(seconds))
    rejection_counts.flush()

    assert rejection_counts.summary(TEN + timedelta(seconds=20), TEN, 3) == (3, 2, [0, 1, 2])
    assert rejection_counts.summary(TEN + timedelta(seconds=80), TEN, 1) == (0, 2, [2])


def test_counts_are_deleted_after_two_days_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection_counts, "DELETE_BATCH", 3)
    edge = timezone.now() - rejection_counts.RETENTION
    for seconds in (-70, -60, -50, -40, -30, -20, -10, 60):
        RejectedOrders.objects.create(at=edge + timedelta(seconds=seconds), count=1)

    drop_rejects()

    assert stored() == {edge + timedelta(seconds=60): 1}


def test_a_web_process_stores_its_counts_periodically(server: Server) -> None:
    key = trading.broker("alice")
    services.halt("AAPL", by=trading.BY)
    client = HTTPConnection("127.0.0.1", server.port, timeout=10)
    for _ in range(3):
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        client.request("POST", "/orders", msgspec.json.encode(LIMIT), headers)
        response = client.getresponse()
        assert response.status == 409
        response.read()
    client.close()

    assert wait_until(lambda: sum(stored().values()) == 3, 10)
