"""Each stored function is defined in a file beside its caller, and the migrations install the same function."""

import re

import pytest
from django.db import connection

from orders.enums import WORKING, OrderStatus
from tests.live import ROOT

FILES = [
    *sorted((ROOT / "orders" / "matching" / "sql").glob("*.sql")),
    *sorted((ROOT / "webhooks" / "sql").glob("*.sql")),
    *sorted((ROOT / "exchange" / "sql").glob("*.sql")),
]
DEFINED = re.compile(r"^CREATE OR REPLACE FUNCTION (\w+)\(", re.MULTILINE)


def definitions() -> dict[str, str]:
    """Return the functions of the database, as PostgreSQL formats them."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        )
        return dict(cursor.fetchall())


@pytest.mark.django_db
def test_a_migrated_database_has_the_functions_of_the_files() -> None:
    migrated = definitions()
    defined = [name for path in FILES for name in DEFINED.findall(path.read_text())]
    assert len(defined) == len(FILES)
    assert sorted(migrated) == sorted(defined)

    with connection.cursor() as cursor:
        for path in FILES:
            cursor.execute(path.read_text())
    assert definitions() == migrated


def test_no_migration_builds_its_text_from_another() -> None:
    migrations = [path for path in ROOT.glob("*/migrations/*.py") if path.name != "__init__.py"]
    assert migrations
    built = [path.name for path in migrations if re.search(r"\.replace\(|import_module", path.read_text())]
    assert built == []


def test_no_migration_reads_a_file_that_changes() -> None:
    """Migrations read only the versioned copies in their own folder."""
    for path in ROOT.glob("*/migrations/*.py"):
        for name in re.findall(r"SQL / \"([^\"]+)\"", path.read_text()):
            assert re.fullmatch(r"\w+_v\d+\.sql", name)
            assert (path.parent / "sql" / name).is_file()


@pytest.mark.django_db
def test_the_working_statuses_are_the_same_in_the_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT status FROM unnest(%s::text[]) AS status WHERE orders_is_working(status)", [list(OrderStatus)]
        )
        assert [status for (status,) in cursor.fetchall()] == [status.value for status in WORKING]
