"""`manage.py create_roles`: creates the two database accounts, neither of which is a superuser.

The owner (DATABASE_OWNER_URL) owns the database and everything in it. The runtime account (DATABASE_URL) gets its
rights from `manage.py migrate`. The command is idempotent: it repairs differences, and takes over a database whose
tables belong to another account. It sets the passwords in DATABASE_PASSWORD and DATABASE_OWNER_PASSWORD, if present.
"""

import os
from typing import Any

import dj_database_url
import psycopg
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from psycopg import sql

RIGHTS = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"

# Selects statements that change the owner of all tables and functions. Sequences and indexes follow their tables.
CHANGE_OWNERS = """
SELECT format('ALTER TABLE %%s OWNER TO %%I', oid::regclass, %(owner)s::text)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
  AND relowner <> %(owner)s::text::regrole
UNION ALL
SELECT format('ALTER ROUTINE %%s OWNER TO %%I', oid::regprocedure, %(owner)s::text)
FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proowner <> %(owner)s::text::regrole
"""


class Command(BaseCommand):
    help = "Create the owner and the runtime account of the database. Requires DATABASE_ADMIN_URL, of a superuser."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        urls = (settings.DATABASE_OWNER_URL, settings.DATABASE_URL)
        owner, runtime = (str(dj_database_url.parse(url)["USER"]) for url in urls)
        if owner == runtime:
            raise CommandError("DATABASE_OWNER_URL must name another account than DATABASE_URL.")
        with psycopg.connect(os.environ["DATABASE_ADMIN_URL"]) as connection:  # one transaction
            _create(connection, owner, os.environ.get("DATABASE_OWNER_PASSWORD"))
            _create(connection, runtime, os.environ.get("DATABASE_PASSWORD"))
            _hand_over(connection, owner)


def _create(connection: psycopg.Connection, role: str, password: str | None) -> None:
    """Create a role, or set the rights and password of an existing one."""
    exists = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).rowcount
    verb = sql.SQL("ALTER" if exists else "CREATE")
    connection.execute(sql.SQL("{} ROLE {} {}").format(verb, sql.Identifier(role), sql.SQL(RIGHTS)))
    if password:  # a SCRAM verifier is sent, so that the password cannot appear in a log
        verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier)))


def _hand_over(connection: psycopg.Connection, owner: str) -> None:
    """Make `owner` the owner of the database and its objects, and revoke temporary tables from all others."""
    database = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, sql.Identifier(owner)))
    connection.execute(sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(database))
    for (statement,) in connection.execute(CHANGE_OWNERS, {"owner": owner}).fetchall():
        connection.execute(statement)
