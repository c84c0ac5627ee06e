"""`manage.py migrate` beside a running exchange and a backup: it waits, blocks nothing and can be repeated."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread

import psycopg
import pytest
from django.conf import settings
from django.contrib.postgres import operations
from django.db.migrations.loader import MigrationLoader

from config.local.processes import wait_until
from exchange.migration_operations import AddIndexConcurrently
from tests.live import ROOT

DATABASE = "bourse_upgrade"
OLD_VERSION = ["webhooks", "0004"]  # the next migration changes a table, the one after it creates an index concurrently
INDEX = "delivery_failed"
TIMEOUT_SECONDS = 30.0
EVENTS = 2_000

INSERT_EVENTS = """
INSERT INTO webhooks_event (id, broker_id, sequence, type, occurred_at, body)
SELECT gen_random_uuid(), 'alice', number, 'order.expired', now(), '{}' FROM generate_series(1, %s) AS number
"""
INSERT_DELIVERIES = """
INSERT INTO webhooks_delivery (id, event_id, subscription_id) SELECT gen_random_uuid(), id, id FROM webhooks_event
"""
INDEX_STATE = (
    "SELECT indexrelid, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE relname = %s"
)
LONG_BUILDS = """
SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CREATE INDEX CONCURRENTLY%%'
  AND state = 'active' AND clock_timestamp() - query_start > %s * interval '1.1 ms'
"""


class Load:
    """A thread that writes deliveries with the application's lock timeout, one transaction after another."""

    def __init__(self, url: str) -> None:
        self.writes = 0
        self.error: Exception | None = None
        self._url = url
        self._ended = Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        options = f"-c lock_timeout={settings.DATABASE_LOCK_TIMEOUT_MS}"
        try:
            with psycopg.connect(self._url, options=options, autocommit=True) as connection:
                while not self._ended.wait(0.005):
                    delivery = uuid.uuid4()
                    connection.execute(
                        "INSERT INTO webhooks_delivery (id, event_id, subscription_id) VALUES (%s, %s, %s)",
                        [delivery] * 3,
                    )
                    connection.execute(
                        "UPDATE webhooks_delivery SET completed_at = now(), error = 'timeout' WHERE id = %s", [delivery]
                    )
                    self.writes += 1
        except psycopg.Error as error:
            self.error = error


class Upgrade:
    """A database of an older version, and the processes that upgrade it."""

    def __init__(self, url: str, folder: Path, cleanup: ExitStack) -> None:
        self.url = url
        self._log = folder / "migrate.log"
        self._cleanup = cleanup
        self.connection = cleanup.enter_context(psycopg.connect(url, autocommit=True))

    def migrate(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "manage.py", "migrate", *arguments],
                cwd=ROOT,
                env=os.environ | {"DATABASE_URL": self.url},
                stdout=log,
                stderr=log,
            )
        self._cleanup.callback(process.wait)
        self._cleanup.callback(process.kill)
        return process

    @property
    def output(self) -> str:
        return self._log.read_text()

    def begin(self, first_statement: str) -> psycopg.Connection:
        """Begin a transaction with a snapshot, like `pg_dump`."""
        session = self._cleanup.enter_context(psycopg.connect(self.url))
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        session.execute(first_statement)
        return session

    def index(self) -> tuple[int, bool] | None:
        """Return the id of the index, and whether it is valid."""
        return self.connection.execute(INDEX_STATE, [INDEX]).fetchone()

    def has_long_build(self) -> bool:
        """True if an index is being created for longer than the application's lock timeout."""
        return self.connection.execute(LONG_BUILDS, [settings.DATABASE_LOCK_TIMEOUT_MS]).fetchone() is not None


@pytest.fixture
def upgrade(tmp_path: Path) -> Iterator[Upgrade]:
    base, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    with psycopg.connect(f"{base}/postgres", autocommit=True) as server:
        server.execute(f"CREATE DATABASE {DATABASE}")
        try:
            with ExitStack() as cleanup:
                yield Upgrade(f"{base}/{DATABASE}", tmp_path, cleanup)
        finally:
            server.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.mark.processes
def test_an_upgrade_under_load_waits_for_a_backup_and_can_be_interrupted(upgrade: Upgrade) -> None:
    assert upgrade.migrate(*OLD_VERSION).wait(TIMEOUT_SECONDS) == 0, upgrade.output
    upgrade.connection.execute(INSERT_EVENTS, [EVENTS])
    upgrade.connection.execute(INSERT_DELIVERIES)
    backup = upgrade.begin("LOCK TABLE webhooks_delivery IN ACCESS SHARE MODE")
    report = upgrade.begin("SELECT FROM django_migrations")  # only its snapshot matters

    with Load(upgrade.url) as load:
        interrupted = upgrade.migrate()
        # A table that the backup has locked: the load fails if the migration waits for it.
        _wait(upgrade, lambda: "a table is in use; trying again." in upgrade.output)
        backup.rollback()
        _wait(upgrade, lambda: upgrade.index() is not None)
        left_behind = upgrade.index()
        interrupted.kill()

        repeated = upgrade.migrate()
        _wait(upgrade, lambda: upgrade.index() not in (None, left_behind))
        _wait(upgrade, upgrade.has_long_build)
        during = load.writes
        _wait(upgrade, lambda: load.writes > during)
        report.rollback()
        assert repeated.wait(TIMEOUT_SECONDS) == 0, upgrade.output
    assert load.error is None

    applied = upgrade.connection.execute("SELECT app, name FROM django_migrations").fetchall()
    assert set(applied) == set(MigrationLoader(None).disk_migrations)
    assert upgrade.connection.execute("SELECT FROM pg_index WHERE NOT indisvalid").fetchall() == []
    (stored,) = upgrade.connection.execute("SELECT count(*) FROM webhooks_delivery").fetchone() or (0,)
    assert stored == EVENTS + load.writes


def _wait(upgrade: Upgrade, condition: Callable[[], bool]) -> None:
    assert wait_until(condition, TIMEOUT_SECONDS), upgrade.output


def test_every_index_that_is_created_concurrently_can_be_created_again() -> None:
    created = [
        operation
        for migration in MigrationLoader(None).disk_migrations.values()
        for operation in migration.operations
        if isinstance(operation, operations.AddIndexConcurrently)
    ]
    assert created
    assert {type(operation) for operation in created} == {AddIndexConcurrently}
