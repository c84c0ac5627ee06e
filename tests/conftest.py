"""Fixtures for every package's tests."""

from collections.abc import Iterator

import pytest

from tests import live


@pytest.fixture(scope="session")
def server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    """A running web server on the test database; tests that use it need `django_db(transaction=True)`."""
    running = live.server(tmp_path_factory.mktemp("web") / "web.log")
    try:
        running.start()
        yield running
    finally:
        running.stop()
