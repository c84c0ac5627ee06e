"""Fixtures for every package's tests."""

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

# The same examples in every run: a test must not fail by chance. `--hypothesis-profile=random` looks for new ones.
hypothesis.settings.register_profile("reproducible", derandomize=True)
hypothesis.settings.register_profile("random", derandomize=False)
hypothesis.settings.load_profile("reproducible")


def pytest_collection_finish() -> None:
    """Keep modules and collected tests out of garbage collections, and make those rare: a tenth of the CPU time."""
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
    """Keep what WhiteNoise finds, because each test client starts the middleware anew and would search again."""
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
    """Forget the requests without a key of the tests before: those of this test have their own lines in the log."""
    log_throttle._throttle = log_throttle.LogThrottle()


@pytest.fixture(scope="session")
def server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    """The API's server, running on the test database; tests that use it need `django_db(transaction=True)`."""
    running = live.server(tmp_path_factory.mktemp("web") / "web.log")
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def backoffice(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    """The back office's server, likewise."""
    running = live.backoffice(tmp_path_factory.mktemp("backoffice") / "backoffice.log")
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def celery(transactional_db: None, tmp_path: Path) -> Iterator[Celery]:
    """Celery's processes, which the test starts, on the session's Valkey; they end before the tables are emptied."""
    with celery_processes.celery(tmp_path, settings.REDIS_URL) as processes:
        yield processes


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey for one test to kill: `child.kill()`, and `restart()` on the same port with nothing in it."""
    own = Valkey(tmp_path, log=tmp_path / "valkey.log")
    try:
        own.start()
        yield own
    finally:
        own.stop()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for one test to stop and to kill."""
    folder = private_short_folder(postgres_account(folder=None))
    own = Postgres(folder / "postgres", log=folder / "postgres.log", options=POSTGRES_OPTIONS)
    try:
        own.start("bourse")
        yield own
    finally:
        own.stop()
        shutil.rmtree(folder)


@pytest.fixture
def celery_apart(transactional_db: None, tmp_path: Path, valkey: Valkey) -> Iterator[Celery]:
    """Celery's processes on the test's own `valkey`, which must be up when the test ends."""
    with celery_processes.celery(tmp_path, valkey.url) as processes:
        yield processes


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Whom webhooks can be sent to."""
    with Receiver() as listening:
        yield listening
