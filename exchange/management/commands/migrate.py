"""`manage.py migrate`: runs Django's command as the owner of the database, then grants rights to the runtime account.

The owner is the account of DATABASE_OWNER_URL, the runtime account that of DATABASE_URL. If they are the same, this is
Django's command unchanged.
"""

from typing import Any, Literal

import dj_database_url
from django.conf import settings
from django.core.management.commands import migrate
from django.db import connection, transaction
from psycopg import sql

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


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        runtime, owner = (dj_database_url.parse(url) for url in (settings.DATABASE_URL, settings.DATABASE_OWNER_URL))
        if owner["USER"] == runtime["USER"]:
            super().handle(*args, **options)
            return
        connection.settings_dict.update({name: owner[name] for name in ACCOUNT})  # data migrations use it too
        super().handle(*args, **options)
        if not options["plan"]:
            _grant(str(runtime["USER"]))


def _grant(role: str) -> None:
    """Let `role` read and write rows, but only read the audit log. It gets no right to alter or truncate tables."""
    with transaction.atomic(), connection.cursor() as cursor:
        existing = set(connection.introspection.table_names(cursor))
        cursor.execute(sql.SQL(GRANTS).format(role=sql.Identifier(role)))
        for table in existing.intersection(READ_ONLY):
            names = sql.Identifier(table), sql.Identifier(role)
            cursor.execute(sql.SQL("REVOKE INSERT, UPDATE, DELETE ON {} FROM {}").format(*names))
