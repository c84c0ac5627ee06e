"""PostgreSQL and Valkey for one test session, started before Django reads its settings.

A plugin (`-p tests.servers`), because pytest-django reads the settings before any conftest. Whatever DATABASE_URL says
is ignored: the tests empty tables. `BOURSE_TEST_SERVERS`, "DATABASE_URL|REDIS_URL", names servers that run already.
"""

import os
import shutil
from collections.abc import Callable, Generator

import pytest

from config.local.servers import Postgres, Valkey, account_for, private_short_folder

# A test's data may be lost with the machine, never with a process: no waiting for the disk.
POSTGRES_OPTIONS = {"fsync": "off", "full_page_writes": "off"}


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    running = os.environ.get("BOURSE_TEST_SERVERS")
    database_url, redis_url = running.split("|") if running else start(early_config.add_cleanup)
    os.environ |= {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": "only for tests",
        "SECURE_COOKIES": "0",
        "TWO_FACTOR_REQUIRED": "0",
        "WEBHOOK_ADDRESSES": "local",
    }
    return (yield)


def start(add_cleanup: Callable[[Callable[[], None]], None]) -> tuple[str, str]:
    """Start both servers on new, empty data; their URLs. What ends them again goes to `add_cleanup`, last first."""
    folder = private_short_folder(account_for(folder=None))
    add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    postgres = Postgres(folder / "postgres", log=folder / "postgres.log", options=POSTGRES_OPTIONS)
    add_cleanup(postgres.stop)
    postgres.start("bourse")
    valkey = Valkey(folder, log=folder / "valkey.log")
    add_cleanup(valkey.stop)
    valkey.start()
    return postgres.url("bourse"), valkey.url
