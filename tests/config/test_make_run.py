"""`make run`, in a copy of this checkout: it serves, restarts ended processes, keeps its data, leaves no process."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings

from config.local import __main__, orphans
from config.local.processes import LocalError, wait_until
from config.local.servers import Postgres, free_port
from tests.live import ROOT

pytestmark = pytest.mark.processes

START_SECONDS = 90.0
STOP_SECONDS = 45.0
REPAIR_SECONDS = 5.0  # until an ended child is restarted
FROZEN_SECONDS = settings.WATCHDOG_SECONDS + REPAIR_SECONDS
ANSWER_SECONDS = 2.0
PARTS = ["config", "backoffice", "exchange", "gateway", "orders", "webhooks", "manage.py"]


class Copy:
    """A copy of the checkout, in a folder with a space in its name, and the supervisor that runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / ".run"
        self.port, self.backoffice_port = free_port(), free_port()
        self.process: subprocess.Popen[str] | None = None
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)

    def start(self, port: int | None = None, **variables: str) -> subprocess.Popen[str]:
        """Start the supervisor as make does, without the servers of this test session."""
        env = {name: value for name, value in os.environ.items() if name not in ["DATABASE_URL", "REDIS_URL"]}
        with (self.folder / "output").open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "config.local"],
                cwd=self.folder,
                env=env | {"PORT": str(port or self.port), "BACKOFFICE_PORT": str(self.backoffice_port)} | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
            )
        return self.process

    def start_and_wait(self) -> None:
        process = self.start()
        wait_until(lambda: self.status("/readyz") == 200 or process.poll() is not None, START_SECONDS)
        assert self.status("/readyz") == 200, self.output

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def fail_to_start(self, port: int, **variables: str) -> int:
        """Start a supervisor that must not run, and return its exit code."""
        process = self.start(port, **variables)
        try:
            return process.wait(STOP_SECONDS)
        finally:
            process.kill()
            process.wait()

    def end(self, number: signal.Signals) -> int:
        """Send the supervisor a signal and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def clean(self) -> int:
        """Run the script of `make clean` and return its exit code."""
        return subprocess.run(
            [sys.executable, "config/local/clean.py"], cwd=self.folder, check=False, timeout=STOP_SECONDS
        ).returncode

    def status(self, path: str, key: str = "", port: int | None = None) -> int:
        """Return the status of a GET request, to the API by default, or 0 without a response."""
        client = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=ANSWER_SECONDS)
        try:
            client.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
            return client.getresponse().status
        except OSError:
            return 0
        finally:
            client.close()

    def server(self, program: str) -> int:
        """Return the process id of a server, a child of the supervisor, or 0; its worker may end a little later."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next((int(pid) for pid in children if program.encode() in Path("/proc", pid, "cmdline").read_bytes()), 0)

    def web_processes(self) -> set[int]:
        """Return the ids of the processes that serve the API."""
        web = self.server("granian")
        children = map(int, Path(f"/proc/{web}/task/{web}/children").read_text().split())
        return {pid for pid in children if b"granian" in Path("/proc", str(pid), "cmdline").read_bytes()}

    @property
    def logs(self) -> dict[str, int]:
        """Names and inodes of the log files."""
        return {path.name: path.stat().st_ino for path in (self.run / "logs").iterdir()}

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def credentials(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / "credentials.json").read_text())
        return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    copy = Copy(tmp_path_factory.mktemp("a folder"))
    try:
        yield copy
    finally:
        if copy.is_running:
            copy.end(signal.SIGTERM)
        assert copy.clean() == 0


@pytest.fixture
def copy(shared: Copy) -> Copy:
    """A running copy, started again if the previous test stopped it."""
    if not shared.is_running:
        shared.start_and_wait()
    return shared


def test_the_credentials_file_is_readable_by_its_owner_only(copy: Copy) -> None:
    found = copy.credentials
    assert stat.S_IMODE((copy.run / "credentials.json").stat().st_mode) == 0o600
    assert list(found) == ["base_url", "operator_key", "brokers", "admin"]
    assert found["base_url"] == f"http://127.0.0.1:{copy.port}"
    assert list(found["brokers"]) == ["broker-1", "broker-2"]
    assert list(found["admin"]) == ["url", "username", "password"]
    assert found["admin"]["url"] == f"http://127.0.0.1:{copy.backoffice_port}/admin/"
    assert copy.status("/brokers/broker-1/balance", found["brokers"]["broker-1"]) == 200
    assert copy.status("/brokers", found["operator_key"]) == 200


@pytest.mark.parametrize("program", ["granian", "gunicorn"])
def test_a_killed_server_is_restarted_within_five_seconds(copy: Copy, program: str) -> None:
    killed = copy.server(program)
    os.kill(killed, signal.SIGKILL)
    assert wait_until(lambda: copy.server(program) not in (0, killed), REPAIR_SECONDS), copy.output
    path, port = ("/healthz", copy.port) if program == "granian" else ("/admin/login/", copy.backoffice_port)
    assert wait_until(lambda: copy.status(path, port=port) == 200, START_SECONDS), copy.output


def test_frozen_processes_are_replaced(copy: Copy) -> None:
    web, others, webhooks = copy.server("granian"), copy.web_processes(), copy.server("webhooks@")
    frozen = others.pop()
    for process in (frozen, webhooks):
        os.kill(process, signal.SIGSTOP)
    assert wait_until(lambda: len(copy.web_processes() - {frozen}) > len(others), FROZEN_SECONDS), copy.output
    assert wait_until(lambda: copy.server("webhooks@") not in (0, webhooks), FROZEN_SECONDS), copy.output
    assert copy.server("granian") == web
    assert copy.web_processes() > others  # the other one was not interrupted
    assert copy.status("/healthz") == 200


def test_the_back_office_serves_the_admin_at_a_low_priority(copy: Copy) -> None:
    assert wait_until(lambda: copy.status("/admin/login/", port=copy.backoffice_port) == 200, START_SECONDS)
    assert copy.status("/admin/") == 307
    server = copy.server("gunicorn")
    worker = int(Path(f"/proc/{server}/task/{server}/children").read_text())
    assert os.getpriority(os.PRIO_PROCESS, worker) - os.getpriority(os.PRIO_PROCESS, copy.server("granian")) >= 10


def test_the_servers_know_only_the_runtime_account_of_the_database(copy: Copy) -> None:
    variables = Path(f"/proc/{copy.server('granian')}/environ").read_bytes().split(b"\0")
    named = [each for each in variables if each.startswith(b"DATABASE_")]
    assert len(named) == 1
    assert named[0].startswith(b"DATABASE_URL=postgresql://bourse_app@")


def test_a_second_supervisor_in_the_same_folder_fails_to_start(copy: Copy) -> None:
    running, logs = copy.process, copy.logs
    try:
        assert copy.fail_to_start(free_port()) == 1
    finally:
        copy.process = running
    assert copy.output.startswith("The exchange is already running from ")
    assert copy.logs == logs


def test_a_port_in_use_is_reported_in_one_sentence(copy: Copy, tmp_path: Path) -> None:
    other = Copy(tmp_path)
    assert other.fail_to_start(copy.port) == 1
    assert other.output.startswith(f"Port {copy.port} is in use by another program;")
    assert other.output.count("\n") == 1
    assert other.fail_to_start(free_port(), BACKOFFICE_PORT=str(copy.port)) == 1
    assert other.output.startswith(f"Port {copy.port} is in use by another program;")
    assert "BACKOFFICE_PORT" in other.output


def test_a_port_is_reserved_before_its_server_listens() -> None:
    port = free_port()
    with __main__._reserved_port("PORT", port):
        with socket.create_server(("127.0.0.1", port)):
            pass
        again = __main__._reserved_port("BACKOFFICE_PORT", port)
        with pytest.raises(LocalError, match=f"Port {port} is in use by another program"), again:
            pytest.fail("the port was reserved twice")
    with __main__._reserved_port("PORT", port):
        pass


def test_the_api_has_two_web_processes_by_default(copy: Copy) -> None:
    command = Path(f"/proc/{copy.server('granian')}/cmdline").read_text().split("\0")
    assert command[command.index("--workers") + 1] == "2"


@pytest.mark.parametrize("count", ["0", "65", "two", "-1"])
def test_an_invalid_number_of_web_processes_is_reported_in_one_sentence(count: str, tmp_path: Path) -> None:
    other = Copy(tmp_path)
    assert other.fail_to_start(other.port, WEB_PROCESSES=count) == 1
    assert other.output == f"WEB_PROCESSES must be a number from 1 to 64, not '{count}'.\n"


def test_make_clean_fails_while_the_exchange_runs(copy: Copy) -> None:
    assert (copy.clean(), copy.run.exists()) == (1, True)


def test_after_a_kill_it_starts_on_a_database_without_accounts_and_keeps_its_keys(copy: Copy) -> None:
    """An older version created the database with its superuser as the owner, and no other account."""
    before = copy.credentials
    copy.end(signal.SIGKILL)
    orphans.stop(copy.run)
    drop_accounts(copy)
    copy.start_and_wait()
    assert copy.credentials == before
    assert copy.status("/brokers/broker-1/balance", before["brokers"]["broker-1"]) == 200
    exports = re.findall(r"^export (\w+)='?(.*?)'?$", (copy.run / "env").read_text(), re.MULTILINE)
    with psycopg.connect(dict(exports)["DATABASE_URL"]) as connection:
        owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'exchange_auditentry'"
        assert connection.execute(owner).fetchone() == ("bourse_owner",)
        assert connection.execute("SELECT current_user").fetchone() == ("bourse_app",)
    assert copy.end(signal.SIGTERM) == 0
    assert orphans.find(copy.run) == []


def drop_accounts(copy: Copy) -> None:
    postgres = Postgres(copy.run / "postgres", log=copy.run / "logs" / "before.log")
    postgres.start("bourse")
    try:
        with psycopg.connect(postgres.url("bourse")) as connection:
            connection.execute("REASSIGN OWNED BY bourse_owner TO CURRENT_USER")
            for account in ("bourse_owner", "bourse_app"):
                connection.execute(f"DROP OWNED BY {account} CASCADE")
                connection.execute(f"DROP ROLE {account}")
    finally:
        postgres.stop()
