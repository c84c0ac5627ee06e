"""The throttled log has few lines with a correct count, and a line for every request with a valid key."""

import json
import logging
from typing import Any

import pytest
from pytest_django import Settings

from exchange.http import log_throttle
from exchange.http.log_throttle import LogThrottle
from tests.exchange.client import Client
from tests.exchange.http.test_middleware import lines

HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"


@pytest.fixture(autouse=True)
def _three_lines(settings: Settings) -> None:
    settings.LOG_UNKNOWN_LINES = 3


def counted(caplog: pytest.LogCaptureFixture) -> dict[str, tuple[int, dict[str, int]]]:
    """Return the logged counts by address."""
    logged: list[Any] = [record.msg for record in caplog.records if record.name == "exchange.http.log_throttle"]
    return {line["address"]: (line["count"], line["statuses"]) for line in logged}


@pytest.mark.django_db
def test_many_unauthenticated_requests_are_counted_and_valid_keys_are_always_logged(
    alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for number in range(200):
            Client(None).get("/stocks" if number % 4 else "/healthz")
            alice.get("/stocks")
        log_throttle.flush()
        log_throttle.flush()

    logged = [json.loads(line) for line in lines(caplog)]
    own = [line for line in logged if line["key"] is None]
    assert len(logged) - len(own) == 200
    ((count, statuses),) = counted(caplog).values()
    assert len(own) + count == 200
    assert 3 <= len(own) < 200
    by_status = {status: sum(line["status"] == int(status) for line in own) + statuses[status] for status in statuses}
    assert by_status == {"200": 50, "401": 150}
    assert [record.name for record in caplog.records].count("exchange.http.log_throttle") == 1


def test_each_address_has_its_limit_of_lines_per_second() -> None:
    throttle = LogThrottle()
    is_logged = [throttle.should_log(address, 401, now) for now in (7.0, 7.9, 8.0) for address in [HERE, ELSEWHERE] * 3]
    assert is_logged == [True] * 6 + [False] * 6 + [True] * 6
    assert throttle.take_counts() == {HERE: {401: 3}, ELSEWHERE: {401: 3}}
    assert throttle.take_counts() == {}


def test_addresses_beyond_the_limit_are_counted_together(settings: Settings) -> None:
    settings.LOG_UNKNOWN_ADDRESSES = 2
    throttle = LogThrottle()
    is_logged = [throttle.should_log(f"192.0.2.{number}", 429, 7.0) for number in range(100)]
    assert is_logged.count(True) == 2
    assert throttle.take_counts() == {"192.0.2.2": {429: 1}, "192.0.2.3": {429: 1}, log_throttle.OTHERS: {429: 96}}
