"""Fixtures for the tests of all packages."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from django.conf import settings
from django.test import TransactionTestCase
from whitenoise.middleware import WhiteNoiseMiddleware

from config.local.servers import Postgres, Valkey, postgres_account, private_short_folder
from exchange.http import log_throttle
from tests import celery_processes, database, live
from tests.celery_processes import Celery
from tests.receiver import Receiver
from tests.servers import POSTGRES_OPTIONS

# Use the same examples in every run, so that no test fails by chance. `--hypothesis-profile=random` tries new ones.
hypothesis.settings.register_profile("reproducible", derandomize=True)
hypothesis.settings.register_profile("random", derandomize=False)
hypothesis.settings.load_profile("reproducible")


def pytest_collection_finish() -> None:
    """Exclude modules and collected tests from garbage collection and make it rare, saving a tenth of the CPU time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _empty_tables_quickly() -> Iterator[None]:
    """Replace Django's flush after each test that commits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", database.empty_tables)
        yield


@pytest.fixture(scope="session", autouse=True)
def _find_static_files_once() -> Iterator[None]:
    """Cache the files that WhiteNoise finds, because each test client creates the middleware and would search again."""
    find = WhiteNoiseMiddleware.add_files_from_finders
    found: dict[str, Any] = {}

    def add_files_from_finders(self: WhiteNoiseMiddleware) -> None:
        if not found:
            find(self)
            found.update(self.files)
        self.files.update(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WhiteNoiseMiddleware, "add_files_from_finders", add_files_from_finders)
        yield


@pytest.fixture(autouse=True)
def _no_flood() -> None:
    """Reset the log throttle, so that requests without a key are logged in each test."""
    log_throttle._throttle = log_throttle.LogThrottle()


@pytest.fixture(scope="session")
def server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    """The API's server on the test database. Tests that use it need `django_db(transaction=True)`."""
    running = live.server(tmp_path_factory.mktemp("web") / "web.log")
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def backoffice(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    """The back office's server on the test database. Tests that use it need `django_db(transaction=True)`."""
    running = live.backoffice(tmp_path_factory.mktemp("backoffice") / "backoffice.log")
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def celery(transactional_db: None, tmp_path: Path) -> Iterator[Celery]:
    """Celery's processes, started by the test, with the session's Valkey; they end before the tables are emptied."""
    with celery_processes.celery(tmp_path, settings.REDIS_URL) as processes:
        yield processes


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey that a test may kill with `child.kill()`, and `restart()` on the same port without data."""
    own = Valkey(tmp_path, log=tmp_path / "valkey.log")
    try:
        own.start()
        yield own
    finally:
        own.stop()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that a test may stop and kill."""
    folder = private_short_folder(postgres_account(folder=None))
    own = Postgres(folder / "postgres", log=folder / "postgres.log", options=POSTGRES_OPTIONS)
    try:
        own.start("bourse")
        yield own
    finally:
        own.stop()
        shutil.rmtree(folder)


@pytest.fixture
def celery_on_own_valkey(transactional_db: None, tmp_path: Path, valkey: Valkey) -> Iterator[Celery]:
    """Celery's processes with the test's own `valkey`, which must be running when the test ends."""
    with celery_processes.celery(tmp_path, valkey.url) as processes:
        yield processes


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A running webhook receiver."""
    with Receiver() as listening:
        yield listening
