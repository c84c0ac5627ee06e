"""Who trades in the tests of orders; each of these tests ends with the books balanced."""

from collections.abc import Iterator

import pytest

from tests import api, trading
from tests.exchange.client import Client


@pytest.fixture(autouse=True)
def _sound_at_the_end(request: pytest.FixtureRequest) -> Iterator[None]:
    """Reconcile after each test that touches the database, unless it breaks things on purpose (`unsound`)."""
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
