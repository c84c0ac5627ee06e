"""What the settings promise."""

import pytest
from django.db import connection


@pytest.mark.django_db
def test_a_commit_waits_for_the_disk() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("on",)
