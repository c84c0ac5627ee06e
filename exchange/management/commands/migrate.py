"""`manage.py migrate`: runs Django's command as the owner of the database, then grants rights to the runtime account.

The owner is the account of DATABASE_OWNER_URL, the runtime account that of DATABASE_URL. If they are the same, nothing
is granted.

The exchange may be trading, so no migration waits for a lock in a way that blocks orders. A migration outside a
transaction (`atomic = False`) blocks nothing and waits for as long as it must. Any other is rolled back after
`MIGRATION_LOCK_TIMEOUT` without a lock, and repeated.
"""

import time
from typing import Any, Literal

import dj_database_url
from django.conf import settings
from django.core.management.commands import migrate
from django.db import OperationalError, connection, transaction
from django.db.migrations import Migration
from psycopg import sql

from exchange.database import is_lock_timeout

ACCOUNT: tuple[Literal["NAME", "USER", "PASSWORD", "HOST", "PORT"], ...] = ("NAME", "USER", "PASSWORD", "HOST", "PORT")
READ_ONLY = ("django_migrations", "exchange_auditentry", "exchange_audithead")  # a function writes the audit log

GRANTS = """
GRANT USAGE ON SCHEMA public TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {role};
-- for tables of later migrations, from their creation on
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role};
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {role};
"""


# The timeouts of the application do not apply. The server ends the session soon after this process is killed.
SET_TIMEOUTS = """
SET statement_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_connection_check_interval = '1s';
"""
RESET_TIMEOUTS = """
RESET lock_timeout;
RESET statement_timeout;
RESET idle_in_transaction_session_timeout;
RESET client_connection_check_interval;
"""
LOCK = 0x6D696772  # advisory lock of the process that migrates; no other code uses its number


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        if options["plan"] or options["check_unapplied"]:
            super().handle(*args, **options)
            return
        runtime, owner = (dj_database_url.parse(url) for url in (settings.DATABASE_URL, settings.DATABASE_OWNER_URL))
        if owner["USER"] != runtime["USER"]:
            connection.settings_dict.update({name: owner[name] for name in ACCOUNT})  # data migrations use it too
        self._wait_until_alone()
        _execute(SET_TIMEOUTS)
        while not self._migrate(*args, **options):
            time.sleep(settings.MIGRATION_RETRY_SECONDS)
        _execute(RESET_TIMEOUTS)
        _execute(f"SELECT pg_advisory_unlock({LOCK})")
        if owner["USER"] != runtime["USER"]:
            _grant(str(runtime["USER"]))

    def _wait_until_alone(self) -> None:
        """Wait for another process that migrates.

        `pg_advisory_lock` would wait with a snapshot, for which the other process may wait to create an index.
        """
        while not _execute(f"SELECT pg_try_advisory_lock({LOCK})"):
            self.stdout.write("Another process migrates this database; waiting for it.")
            time.sleep(settings.MIGRATION_RETRY_SECONDS)

    def _migrate(self, *args: Any, **options: Any) -> bool:
        """Run the migrations, and return False if one could not take a lock in time."""
        try:
            super().handle(*args, **options)
        except OperationalError as error:
            if not is_lock_timeout(error):
                raise
            self.stdout.write(" a table is in use; trying again.")
            return False
        return True

    def migration_progress_callback(self, action: str, migration: Migration | None = None, fake: bool = False) -> None:
        """Set the lock timeout of each migration before it starts."""
        super().migration_progress_callback(action, migration, fake)
        if action in ("apply_start", "unapply_start") and migration:
            _execute(f"SET lock_timeout = '{settings.MIGRATION_LOCK_TIMEOUT if migration.atomic else 0}'")


def _execute(statement: str) -> Any:
    """Execute a statement and return the first value of its result, if there is one."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def _grant(role: str) -> None:
    """Let `role` read and write rows, but only read the audit log. It gets no right to alter or truncate tables."""
    with transaction.atomic(), connection.cursor() as cursor:
        existing = set(connection.introspection.table_names(cursor))
        cursor.execute(sql.SQL(GRANTS).format(role=sql.Identifier(role)))
        for table in existing.intersection(READ_ONLY):
            names = sql.Identifier(table), sql.Identifier(role)
            cursor.execute(sql.SQL("REVOKE INSERT, UPDATE, DELETE ON {} FROM {}").format(*names))
