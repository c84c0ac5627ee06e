"""`/readyz` queries the database at most once a second, and reports that it is unavailable without waiting for it."""

import http.client
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from django.db import connection, transaction
from pytest_django import DjangoAssertNumQueries, Settings

from config.local.processes import wait_until
from exchange import readiness
from tests import live, trading

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("no_cached_readiness")]

TIMEOUT_SECONDS = 30.0
DETECTION_SECONDS = 5.0  # a change is detected within a second, or later on a slow machine


@contextmanager
def locked_migrations() -> Iterator[None]:
    """Block all queries of the migrations."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE django_migrations IN ACCESS EXCLUSIVE MODE")
        yield


@contextmanager
def without_migrations() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE django_migrations RENAME TO elsewhere")
        yield
        cursor.execute("ALTER TABLE elsewhere RENAME TO django_migrations")


def status(server: live.Server) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_SECONDS)) as client:
        client.request("GET", "/readyz")
        return client.getresponse().status


def test_the_readiness_is_cached(settings: Settings, django_assert_num_queries: DjangoAssertNumQueries) -> None:
    settings.READINESS_CACHE_SECONDS = TIMEOUT_SECONDS
    assert readiness.current().database
    with django_assert_num_queries(0):
        assert {readiness.current().database for _ in range(10)} == {True}
    settings.READINESS_CACHE_SECONDS = 0
    assert readiness.cached() is None
    with django_assert_num_queries(2):
        readiness.current()


def test_only_one_thread_checks_and_the_others_get_the_cached_readiness(settings: Settings) -> None:
    settings.READINESS_TIMEOUT_SECONDS = TIMEOUT_SECONDS
    assert readiness.current().database
    settings.READINESS_CACHE_SECONDS = 0
    with locked_migrations():
        first = trading.start_thread(readiness.current)
        assert wait_until(lambda: readiness._readiness._refreshing_since is not None, TIMEOUT_SECONDS)
        others = trading.run_concurrently([readiness.current] * 10)
        assert {response.database for response in others} == {True}
        assert not first.done()


def test_a_database_that_does_not_answer_counts_as_unavailable(settings: Settings) -> None:
    assert readiness.current().database
    settings.READINESS_CACHE_SECONDS, settings.READINESS_TIMEOUT_SECONDS = 0, 0.2
    with locked_migrations():
        first = trading.start_thread(readiness.current)
        assert wait_until(_is_cached_as_not_ready, TIMEOUT_SECONDS)
        assert not first.done()
    first.result(TIMEOUT_SECONDS)
    assert readiness.current().database


def _is_cached_as_not_ready() -> bool:
    response = readiness.cached()
    return response is not None and not response.database


def test_the_server_detects_the_loss_and_return_of_the_database(server: live.Server) -> None:
    assert wait_until(lambda: status(server) == 200, DETECTION_SECONDS)
    with without_migrations():
        assert wait_until(lambda: status(server) == 503, DETECTION_SECONDS)
    assert wait_until(lambda: status(server) == 200, DETECTION_SECONDS)
