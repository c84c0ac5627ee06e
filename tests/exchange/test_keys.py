"""Cached keys need no query, and revoked and expired ones are rejected in time (contract: "Access")."""

import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from exchange import keys, services
from exchange.database import database_now
from exchange.errors import Unauthenticated
from exchange.keys import authenticate_key, cached_principal, new_key, refresh_cache, save_last_used
from exchange.models import ApiKey
from exchange.rules import Scope
from tests import trading
from tests.exchange.client import Client
from tests.live import Server
from tests.trading import BY

SECONDS = 4.0  # KEY_CACHE_SECONDS
INVALID_SECONDS = 1.0  # INVALID_KEY_CACHE_SECONDS


def at(seconds: float) -> Callable[[], float]:
    """Return a stopped monotonic clock."""
    return lambda: 1_000.0 + seconds


def is_valid(key: str, seconds: float = 0) -> bool:
    """True if the key is valid at this time after the start of the test."""
    try:
        authenticate_key(key, at(seconds))
    except Unauthenticated:
        return False
    return True


@contextmanager
def revoke_after_the_next_query(key: str) -> Iterator[None]:
    """Revoke the key after the next query, before its result is used."""

    def revoke_after(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if ApiKey.objects.get(pk=key.split("_")[1]).revoked_at is None:
            services.revoke_key("alice", key.split("_")[1], by=BY)
        return result

    calls = iter([revoke_after])
    with connection.execute_wrapper(lambda execute, *args: next(calls, lambda e, *a: e(*a))(execute, *args)):
        yield


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    keys._cache = keys._KeyCache()


@pytest.fixture
def key(alice: Client) -> str:
    """Alice's key, not used yet."""
    assert alice.key is not None
    return alice.key


def test_a_cached_key_needs_no_query(key: str, django_assert_num_queries: DjangoAssertNumQueries) -> None:
    with django_assert_num_queries(1):
        first = authenticate_key(key, at(0))
    with django_assert_num_queries(0):
        assert [authenticate_key(key, at(each)) for each in (0, 1, SECONDS - 0.001)] == [first] * 3
    with django_assert_num_queries(1):
        assert authenticate_key(key, at(SECONDS)) == first


def test_a_key_revoked_in_this_process_is_rejected_immediately(key: str, bob: Client) -> None:
    assert bob.key is not None
    assert is_valid(key)
    assert is_valid(bob.key)

    services.revoke_key("alice", key.split("_")[1], by=BY)

    assert not is_valid(key)
    assert is_valid(bob.key)


def test_a_key_revoked_by_another_process_is_rejected_when_its_cache_entry_expires(key: str) -> None:
    assert is_valid(key)
    ApiKey.objects.filter(pk=key.split("_")[1]).update(revoked_at=timezone.now())

    assert is_valid(key, SECONDS - 0.001)  # the contract allows five seconds
    assert not is_valid(key, SECONDS)


@pytest.mark.django_db(transaction=True)
def test_a_key_revoked_during_its_lookup_is_not_cached(key: str) -> None:
    with revoke_after_the_next_query(key):
        assert is_valid(key)  # it was valid at the time of the query

    assert not is_valid(key)


def test_keys_in_use_are_refreshed_together(
    alice: Client, django_assert_num_queries: DjangoAssertNumQueries, settings: Settings
) -> None:
    settings.KEY_REFRESH_SECONDS = 1.5
    used = [services.issue_key("alice", by=BY)[1] for _ in range(20)]
    unused = services.issue_key("alice", by=BY)[1]
    assert all(is_valid(key) for key in [*used, unused])
    refresh_cache(at(SECONDS / 2))
    assert all(is_valid(key, 3) for key in used)

    with django_assert_num_queries(1):
        refresh_cache(at(SECONDS))
    with django_assert_num_queries(0):
        assert all(cached_principal(key, at(2 * SECONDS - 0.001)) == authenticate_key(key, at(5)) for key in used)
        assert [cached_principal(key, at(2 * SECONDS)) for key in used] == [None] * 20
        assert cached_principal(unused, at(1.5 * SECONDS)) is None


def test_a_key_revoked_by_another_process_is_not_refreshed(key: str) -> None:
    assert is_valid(key)
    ApiKey.objects.filter(pk=key.split("_")[1]).update(revoked_at=timezone.now())
    refresh_cache(at(SECONDS / 2))

    assert is_valid(key, SECONDS - 0.001)
    assert not is_valid(key, SECONDS)


@pytest.mark.django_db(transaction=True)
def test_a_key_revoked_during_a_refresh_is_rejected(key: str) -> None:
    assert is_valid(key)
    with revoke_after_the_next_query(key):
        refresh_cache(at(SECONDS / 2))

    assert not is_valid(key, SECONDS / 2)


def test_without_the_database_cached_keys_stay_valid_until_their_expiry(
    key: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_valid(key)

    def fail(*_: Any) -> Any:
        raise OperationalError("away")

    with connection.execute_wrapper(fail):
        refresh_cache(at(SECONDS / 2))
        assert is_valid(key, SECONDS - 0.001)
    assert "keys_not_renewed" in caplog.text


def test_an_expired_key_is_rejected_although_it_is_cached(alice: Client) -> None:
    expires_at = timezone.now() + timedelta(seconds=0.5)
    key = services.issue_key("alice", expires_at=expires_at, by=BY)[1]
    assert is_valid(key)

    time.sleep((expires_at - timezone.now()).total_seconds())
    assert not is_valid(key)


def test_invalid_keys_are_not_in_the_cache_of_valid_keys(key: str) -> None:
    keys._cache.by_digest.clear()
    revoked, revoked_key = services.issue_key("alice", by=BY)
    services.revoke_key("alice", revoked.pk, by=BY)
    forged = key[:-1] + ("0" if key[-1] != "0" else "1")
    bad = [revoked_key, forged, "", "x" * len(key), "é" * len(key), *(new_key()[0] for _ in range(100))]

    assert not any(is_valid(each) for each in bad)
    assert keys._cache.by_digest == {}


def test_an_invalid_key_needs_one_query_per_second(key: str, django_assert_num_queries: DjangoAssertNumQueries) -> None:
    forged = key[:-1] + ("0" if key[-1] != "0" else "1")
    unknown, prefix, secret_hash = new_key()
    with django_assert_num_queries(2):
        assert not any(is_valid(bad, each) for each in (0, 0.5, INVALID_SECONDS - 0.001) for bad in (forged, unknown))
    made = {"prefix": prefix, "secret_hash": secret_hash, "broker_id": "alice", "created_at": timezone.now()}
    ApiKey.objects.create(**made, scopes=[Scope.READ])

    assert is_valid(unknown, INVALID_SECONDS)
    assert is_valid(key)


def test_the_number_of_cached_invalid_keys_is_limited(settings: Settings, db: None) -> None:
    settings.INVALID_KEY_CACHE_SIZE = 10
    assert not any(is_valid(new_key()[0]) for _ in range(30))
    assert len(keys._cache.rejected_until) == 10


def test_a_cached_key_with_another_secret_is_rejected(key: str) -> None:
    assert is_valid(key)

    assert not is_valid(key[:-1] + ("0" if key[-1] != "0" else "1"))


def test_the_number_of_cached_keys_is_limited(alice: Client, settings: Settings) -> None:
    settings.KEY_CACHE_SIZE = 10
    keys._cache.by_digest.clear()
    many = [services.issue_key("alice", scopes=[Scope.READ], by=BY)[1] for _ in range(30)]

    assert all(is_valid(key) for key in many)
    assert {known.principal.key_prefix for known in keys._cache.by_digest.values()} == {
        key.split("_")[1] for key in many[-10:]
    }
    assert not any(key.split("_")[2] in repr(keys._cache.by_digest) for key in many)


# --- Last use -------------------------------------------------------------------------------------------------------


def last_use(key: str) -> datetime | None:
    return ApiKey.objects.get(pk=key.split("_")[1]).last_used_at


def test_the_last_use_of_keys_is_stored_in_one_statement(
    alice: Client, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    used = [services.issue_key("alice", by=trading.BY)[1] for _ in range(5)]
    unused = services.issue_key("alice", by=trading.BY)[1]
    assert all(is_valid(key, 10) for key in used)
    assert all(cached_principal(key, at(11)) for key in used)
    assert [last_use(key) for key in used] == [None] * 5

    before = database_now()
    with django_assert_num_queries(1):
        save_last_used(at(191))
    after = database_now()

    (moment,) = {last_use(key) for key in used}
    assert moment is not None
    age = timedelta(seconds=180)
    assert before - age <= moment <= after - age
    assert last_use(unused) is None


def test_the_first_use_of_a_key_is_not_before_its_issue(key: str) -> None:
    assert is_valid(key)
    save_last_used(at(0))

    stored = ApiKey.objects.get(pk=key.split("_")[1])
    assert stored.last_used_at is not None
    assert stored.last_used_at >= stored.created_at


def test_a_last_use_is_stored_at_most_once_a_minute(key: str) -> None:
    def use_again(last: datetime) -> datetime | None:
        ApiKey.objects.filter(pk=key.split("_")[1]).update(last_used_at=last)
        assert is_valid(key)
        save_last_used(at(0))
        return last_use(key)

    now = database_now()
    minute = now.replace(second=0, microsecond=0)
    assert use_again(now) == now or database_now() >= minute + timedelta(minutes=1)
    last = minute - timedelta(microseconds=1)
    assert use_again(last) != last


def test_a_last_use_is_stored_once_and_never_goes_back(
    key: str, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    later = timezone.now() + timedelta(hours=1)
    ApiKey.objects.filter(pk=key.split("_")[1]).update(last_used_at=later)  # by another process
    assert is_valid(key)

    save_last_used(at(1))
    assert last_use(key) == later
    with django_assert_num_queries(0):
        save_last_used(at(2))


def test_the_last_use_of_a_key_revoked_since_is_stored(key: str) -> None:
    assert is_valid(key)
    services.revoke_key("alice", key.split("_")[1], by=trading.BY)
    refresh_cache(at(1))

    save_last_used(at(1))
    assert last_use(key) is not None


def test_a_last_use_that_could_not_be_stored_is_stored_later(key: str) -> None:
    assert is_valid(key)

    def fail(*_: Any) -> Any:
        raise OperationalError("away")

    with connection.execute_wrapper(fail), pytest.raises(OperationalError):
        save_last_used(at(1))
    assert last_use(key) is None
    save_last_used(at(2))
    assert last_use(key) is not None


def test_a_rejected_key_has_no_last_use(key: str) -> None:
    ApiKey.objects.filter(pk=key.split("_")[1]).update(expires_at=timezone.now())
    assert not is_valid(key)
    assert not is_valid(key[:-1] + ("0" if key[-1] != "0" else "1"))

    save_last_used(at(1))
    assert last_use(key) is None


# --- A web process --------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_key_revoked_by_one_process_is_rejected_by_another_within_five_seconds(server: Server) -> None:
    key = trading.broker("alice")
    other = services.issue_key("alice", by=BY)[1]

    def status(bearer: str) -> int:
        request = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        request.request("GET", "/stocks", headers={"Authorization": f"Bearer {bearer}"})
        try:
            return request.getresponse().status
        finally:
            request.close()

    assert (status(key), status(other)) == (200, 200)
    services.revoke_key("alice", key.split("_")[1], by=BY)
    deadline = time.monotonic() + 5
    while status(key) == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (status(key), status(other)) == (401, 200)
