"""The embedded servers of the tests have the settings of production."""

import pytest
import redis
from django.conf import settings
from django.db import connection
from redis.backoff import NoBackoff
from redis.retry import Retry


@pytest.mark.django_db
def test_the_database_is_postgresql_in_utf8() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_database(), current_setting('server_encoding'), upper('é')")
        name, encoding, upper = cursor.fetchone()
    assert name.startswith("test_bourse")
    assert (encoding, upper) == ("UTF8", "É")


@pytest.mark.django_db
def test_postgresql_logs_no_statements_because_they_contain_document_numbers() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('log_min_error_statement'), current_setting('log_statement')")
        assert cursor.fetchone() == ("panic", "none")


def test_valkey_requires_its_password() -> None:
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        assert client.ping()
        port = client.connection_pool.connection_kwargs["port"]
    with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as anonymous, pytest.raises(redis.AuthenticationError):
        anonymous.ping()
