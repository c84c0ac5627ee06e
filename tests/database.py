"""Empty the test database quickly between tests that commit, and count the rows that queries read.

Django's own flush truncates every table and emits `post_migrate`, which costs more than most tests. Here, only
tables that are not empty are truncated, and the rows of the migrations (permissions and groups) are kept.
"""

from collections import Counter
from functools import cache

from django.apps import apps
from django.db import connection, transaction
from django.test import TransactionTestCase

WRITTEN_BY_MIGRATIONS = {"auth_group", "auth_group_permissions", "auth_permission", "django_content_type"}
WRITTEN_BY_MIGRATIONS |= {"exchange_audithead"}


def empty_tables(_: TransactionTestCase) -> None:
    """Replace `TransactionTestCase._fixture_teardown`."""
    with transaction.atomic(), connection.cursor() as cursor:
        # By size, because rows that were rolled back or deleted still influence the planner.
        cursor.execute(
            "SELECT string_agg(name, ', ') FROM unnest(%s::text[]) AS name WHERE pg_relation_size(name::regclass) > 0",
            [_tables()],
        )
        (written,) = cursor.fetchone()
        if written:
            cursor.execute("SET LOCAL session_replication_role = replica")  # the audit log's triggers forbid this
            cursor.execute(f"TRUNCATE {written} CASCADE")
            cursor.execute("UPDATE exchange_audithead SET number = 0, hash = '' WHERE number > 0")


@cache
def _tables() -> list[str]:
    models = apps.get_models(include_auto_created=True)
    return sorted({model._meta.db_table for model in models} - WRITTEN_BY_MIGRATIONS)


def rows_read() -> Counter[str]:
    """Count the rows read in this transaction, by sequential scans per table and by index."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT relname, seq_tup_read FROM pg_stat_xact_user_tables WHERE relname ~ '^(ord|exch)'
            UNION ALL
            SELECT indexrelname, pg_stat_get_xact_tuples_returned(indexrelid) FROM pg_stat_user_indexes
            WHERE relname ~ '^(ord|exch)'
            """
        )
        return Counter(dict(cursor.fetchall()))
