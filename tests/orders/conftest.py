"""Brokers for the order tests, and a check of all invariants after each test."""

from collections.abc import Iterator

import pytest

from tests import api, trading
from tests.exchange.client import Client


@pytest.fixture(autouse=True)
def _check_invariants(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check all invariants after each database test that is not marked `unsound`."""
    uses_database = request.node.get_closest_marker("django_db") is not None
    if uses_database:
        request.getfixturevalue("db")
    yield
    if uses_database and request.node.get_closest_marker("unsound") is None:
        trading.assert_sound()


@pytest.fixture
def alice(db: None) -> Client:
    return api.broker("alice")


@pytest.fixture
def bob(alice: Client) -> Client:
    return api.broker("bob")


@pytest.fixture
def operator(db: None) -> Client:
    return api.operator()
