"""The embedded servers of the tests have the settings of production."""

import threading
from functools import partial

import pytest
import redis
from django.conf import settings
from django.db import connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.local import servers
from config.local.processes import wait_until
from config.local.servers import Valkey
from tests.trading import TIMEOUT_SECONDS, start_thread


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


def test_make_run_says_when_valkey_does_not_answer(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(servers, "VALKEY_WATCH_SECONDS", 0.01)
    output: list[str] = []

    def is_printed(text: str) -> bool:
        output.append(capsys.readouterr().out)
        return text in output[-1]

    wrong = valkey.url.replace("redis://:", "redis://:wrong")
    stopping = threading.Event()
    watches = [start_thread(partial(servers.watch_valkey, url, stopping)) for url in (valkey.url, wrong)]
    assert wait_until(partial(is_printed, "Valkey does not answer: invalid username-password pair"), TIMEOUT_SECONDS)
    valkey.child.kill()
    assert wait_until(partial(is_printed, "Valkey does not answer: "), TIMEOUT_SECONDS)
    assert valkey.restart()
    assert wait_until(partial(is_printed, "Valkey answers again."), TIMEOUT_SECONDS)
    stopping.set()
    for watch in watches:
        watch.result(TIMEOUT_SECONDS)
    assert "".join(output).count("\n") == 3
