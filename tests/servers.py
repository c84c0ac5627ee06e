"""Start PostgreSQL and Valkey for a test process before Django reads its settings.

This is a plugin (`-p tests.servers`), because pytest-django reads the settings before any conftest. Each pytest-xdist
worker starts its own servers, because tests lock, kill and reconfigure them. DATABASE_URL is ignored, because the tests
empty tables. `BOURSE_TEST_SERVERS`, "DATABASE_URL|REDIS_URL", names servers that already run.
"""

import os
import shutil
from collections.abc import Callable, Generator

import pytest

from config.local.servers import Postgres, Valkey, postgres_account, private_short_folder

# A test's data may be lost with the machine, but not with a process, so no fsync is needed.
# Without autovacuum, the plans that tests check do not depend on when tables were analyzed in the background.
POSTGRES_OPTIONS = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "128MB", "autovacuum": "off"}
MEMORY = "/dev/shm"  # noqa: S108 - the folders in it are private. On disk, creating files takes a tenth of the tests' time
MEMORY_BYTES = 4 * 1024**3  # free space without which the servers of all workers might not fit
NO_SERVERS = "postgresql://127.0.0.1:1/none", "redis://127.0.0.1:1/0"


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    database_url, redis_url = _server_urls(early_config)
    os.environ.pop("DATABASE_OWNER_URL", None)  # the tests' account owns its database
    os.environ |= {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": "only for tests",
        "SECURE_COOKIES": "0",
        "TWO_FACTOR_REQUIRED": "0",
        "WEBHOOK_ADDRESSES": "local",
    }
    return (yield)


def _server_urls(config: pytest.Config) -> tuple[str, str]:
    if running := os.environ.get("BOURSE_TEST_SERVERS"):
        database_url, redis_url = running.split("|")
        return database_url, redis_url
    if getattr(config.known_args_namespace, "numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        return NO_SERVERS  # the controller runs no test
    return start(config.add_cleanup)


def start(add_cleanup: Callable[[Callable[[], None]], None]) -> tuple[str, str]:
    """Start both servers without data and return their URLs. `add_cleanup` receives the functions that stop them."""
    folder = private_short_folder(postgres_account(folder=None), _fast_parent())
    add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    postgres = Postgres(folder / "postgres", log=folder / "postgres.log", options=POSTGRES_OPTIONS)
    add_cleanup(postgres.stop)
    postgres.start("bourse")
    valkey = Valkey(folder, log=folder / "valkey.log")
    add_cleanup(valkey.stop)
    valkey.start()
    return postgres.url("bourse"), valkey.url


def _fast_parent() -> str | None:
    """Return a file system in memory, if there is one with enough space."""
    return MEMORY if os.path.isdir(MEMORY) and shutil.disk_usage(MEMORY).free > MEMORY_BYTES else None
