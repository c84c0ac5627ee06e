"""What is measured, as it runs in production: servers, web processes, workers, beat, brokers with keys and webhooks."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis

from config.local import web
from config.local.__main__ import WORKERS
from config.local.processes import Child, LocalError, wait_until
from config.local.servers import Postgres, Valkey, free_port

ROOT = Path(web.__file__).resolve().parent.parent.parent
FOLDER = ROOT / ".run" / "bench"
SYMBOLS = [f"SYM{number}" for number in range(16)]
BROKERS, CASH, SHARES, MID = 20, 10**12, 10**10, 100
START_SECONDS, DRAIN_SECONDS = 60.0, 30.0
EVENTS = ["trade.executed", "order.expired", "order.cancelled"]


@dataclass
class Servers:
    """One PostgreSQL (as with `make run`, fsync on), one Valkey, one receiver of webhooks: for the whole run."""

    postgres: Postgres
    valkey: Valkey
    receiver: Child
    receiver_port: int
    _databases: int = 0

    def new_database(self, name: str, template: str = "template0") -> str:
        """A database, new even if there was one of this name; its URL."""
        with self.connect("postgres") as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.postgres.url(name)

    def connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(self.postgres.url(database), autocommit=True)

    def migrated(self, name: str) -> str:
        """A new database with our tables in it, copied from one that is migrated once; its URL."""
        with self.connect("postgres") as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = 'migrated'").fetchone()
        if not known:
            manage(environment(self.new_database("migrated"), self.valkey.url), "migrate", "--no-input")
        return self.new_database(name, template="migrated")

    def valkey_url(self) -> str:
        """A database of Valkey's own for each venue, in turns, empty."""
        self._databases = self._databases % 15 + 1
        url = f"{self.valkey.url.rpartition('/')[0]}/{self._databases}"
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        return url


@contextmanager
def servers() -> Iterator[Servers]:
    """Start what every variant shares, on new data on a real disk; nothing of it stays."""
    _remove(FOLDER / "postgres")
    _remove(FOLDER)
    FOLDER.mkdir(parents=True)
    for folder in [FOLDER.parent, FOLDER]:
        folder.chmod(0o711)  # PostgreSQL's account passes through when we are root
    with ExitStack() as cleanup:
        cleanup.callback(_remove, FOLDER / "postgres")  # the logs stay until the next run
        postgres = Postgres(FOLDER / "postgres", log=FOLDER / "postgres.log")
        cleanup.callback(postgres.stop)
        postgres.start("bourse")
        valkey = Valkey(FOLDER, log=FOLDER / "valkey.log")
        cleanup.callback(valkey.stop)
        valkey.start()
        port = free_port()
        receiver = python("receiver", ["-m", "bench.receiver", str(port)], dict(os.environ))
        cleanup.callback(receiver.stop)
        receiver.start()
        yield Servers(postgres, valkey, receiver, port)


def _remove(folder: Path) -> None:
    if folder.is_symlink():  # root's PostgreSQL could not enter its parent
        shutil.rmtree(folder.resolve(), ignore_errors=True)
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def environment(database_url: str, redis_url: str) -> dict[str, str]:
    """What our processes are told, as by `make run`."""
    return os.environ | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": "only for measuring",
        "SECURE_COOKIES": "0",
        "TWO_FACTOR_REQUIRED": "0",
        "WEBHOOK_ADDRESSES": "local",
    }


def manage(env: Mapping[str, str], *arguments: str) -> str:
    """Run a management command to its end; what it printed."""
    command = [sys.executable, "manage.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise LocalError(f"manage.py {arguments[0]} failed: {done.stdout.strip()} {done.stderr.strip()}"[-2_000:])
    return done.stdout.strip()


def python(name: str, arguments: Sequence[str], env: Mapping[str, str]) -> Child:
    return Child(name, [sys.executable, *arguments], log=FOLDER / f"{name}.log", env=env, cwd=ROOT, grace_seconds=15.0)


@dataclass
class Venue:
    """A running exchange on one database, ours or the naive one."""

    servers: Servers
    database: str
    env: Mapping[str, str]
    port: int
    children: dict[str, Child]
    world: dict[str, Any] = field(default_factory=dict)  # symbols with their mid prices, brokers with their keys
    backoffice_port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def backoffice_url(self) -> str:
        return f"http://127.0.0.1:{self.backoffice_port}"

    def answers(self) -> bool:
        try:
            return Api(self.port).call("GET", "/healthz")[0] > 0
        except OSError:
            return False

    def is_at_work(self) -> bool:
        """Whether the workers and beat have started too, as far as `/readyz` knows them."""
        _, ages = Api(self.port).call("GET", "/readyz")
        return None not in (ages["beat_age_seconds"], ages["worker_age_seconds"])

    def operator(self) -> "Api":
        """A client with an operator's key, new each time."""
        return Api(self.port, manage(self.env, "create_operator_key"))

    def admit(self) -> None:
        """Admit brokers over REST, or issue keys to those there are; half of them subscribe to webhooks."""
        operator = self.operator()
        found = [str(broker["broker_id"]) for broker in operator.listed("/brokers", "brokers")]
        keys: dict[str, str] = {
            each: operator.made(f"/brokers/{each}/keys", {})["api_key"] for each in found
        } or self._create(operator)
        for broker_id in list(keys)[::2]:
            url = f"http://127.0.0.1:{self.servers.receiver_port}/{broker_id}"
            Api(self.port, keys[broker_id]).made("/webhooks", {"broker_id": broker_id, "url": url, "events": EVENTS})
        self.world = {
            "symbols": [{"name": symbol, "mid": self._mid(operator, symbol)} for symbol in self._symbols(operator)],
            "brokers": [{"id": broker_id, "key": key} for broker_id, key in keys.items()],
        }

    @staticmethod
    def _create(operator: "Api") -> dict[str, str]:
        holdings = [{"symbol": symbol, "quantity": SHARES} for symbol in SYMBOLS]
        bodies: list[dict[str, Any]] = [
            {"broker_id": f"broker-{number}", "initial_cash": CASH, "initial_holdings": holdings}
            for number in range(BROKERS)
        ]
        return {body["broker_id"]: operator.made("/brokers", body)["api_key"] for body in bodies}

    @staticmethod
    def _symbols(operator: "Api") -> list[str]:
        return [stock["symbol"] for stock in operator.listed("/stocks", "stocks")][: len(SYMBOLS)]

    @staticmethod
    def _mid(operator: "Api", symbol: str) -> float:
        """The price around which orders are placed: the middle of the book there is."""
        _, book = operator.call("GET", f"/stocks/{symbol}/book?depth=1")
        best = [float(side[0]["price"]) for side in (book["bids"], book["asks"]) if side]
        return round(sum(best) / len(best), 2) if best else MID

    def wait_for_deliveries(self) -> dict[str, float]:
        """How many deliveries were still due when the load ended, and how long they took."""
        started = time.monotonic()
        with self.servers.connect(self.database) as connection:

            def due() -> int:
                row = connection.execute("SELECT count(*) FROM webhooks_delivery WHERE claimed_at IS NULL").fetchone()
                return int(row[0]) if row else 0

            at_the_end = due()
            wait_until(lambda: due() == 0, DRAIN_SECONDS)
        return {"due": at_the_end, "seconds": round(time.monotonic() - started, 2)}

    def reconcile(self) -> float:
        """Audit all invariants; how many seconds that took. `LocalError` when anything differs."""
        started = time.monotonic()
        manage({**self.env, "DJANGO_SETTINGS_MODULE": "config.settings.backoffice"}, "reconcile")
        return round(time.monotonic() - started, 2)


@contextmanager
def venue(
    on: Servers, database: str, *, processes: int = 1, has_members: bool = True, has_backoffice: bool = False
) -> Iterator[Venue]:
    """Ours, whole: web, both workers and beat on `database`, which is migrated; it ends reconciled by the caller."""
    env = environment(on.postgres.url(database), on.valkey_url()) | {"WEB_PROCESSES": str(processes)}
    port, backoffice_port = free_port(), free_port()
    children = {"web": _server("web", web.api_command(port, processes), database, env)}
    if has_backoffice:
        command = web.backoffice_command(backoffice_port)
        behind_a_proxy = {"TRUSTED_PROXIES": "1"}  # so that clients of the bench have addresses of their own
        children["backoffice"] = _server("backoffice", command, database, env | behind_a_proxy)
    for name, arguments in WORKERS.items():
        children[name] = _celery(name, ["worker", *arguments, "-n", f"{name}-{database}@%h", "--without-mingle"], env)
    children["beat"] = _celery("beat", ["beat", "--scheduler", "celery.beat.Scheduler", "--pidfile="], env)
    with _running(Venue(on, database, env, port, children, backoffice_port=backoffice_port)) as running:
        if has_members:
            running.admit()
        if not wait_until(running.is_at_work, START_SECONDS):
            raise LocalError(f"The workers do not start; see {FOLDER}")
        yield running


@contextmanager
def naive_venue(on: Servers, database: str, world: dict[str, Any], *, processes: int) -> Iterator[Venue]:
    """The naive matcher behind the same server, on a database that already has brokers with keys: those of `world`."""
    env = environment(on.postgres.url(database), on.valkey_url())
    env |= {"DJANGO_SETTINGS_MODULE": "bench.naive.settings"}
    port = free_port()
    command = [*web.api_command(port, processes)[:-1], "bench.naive.rsgi:application"]
    child = Child("naive", command, FOLDER / f"naive-{processes}.log", env, ROOT)
    with _running(Venue(on, database, env, port, {"web": child}, world)) as running:
        yield running


@contextmanager
def _running(venue: Venue) -> Iterator[Venue]:
    try:
        for child in venue.children.values():
            child.start()
        if not wait_until(venue.answers, START_SECONDS):
            raise LocalError(f"The web server does not answer: {venue.children['web'].last_log_line()}")
        yield venue
    finally:
        with ThreadPoolExecutor() as pool:  # side by side: each takes a second or two
            list(pool.map(Child.stop, venue.children.values()))


def _server(name: str, command: list[str], database: str, env: Mapping[str, str]) -> Child:
    return Child(name, command, FOLDER / f"{name}-{database}.log", env, ROOT)


def _celery(name: str, arguments: list[str], env: Mapping[str, str]) -> Child:
    return python(name, ["-m", "celery", "-A", "config", *arguments, "-l", "WARNING"], env)


@dataclass
class Api:
    """A plain client for setting up, one connection."""

    port: int
    key: str = ""
    _client: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the decoded answer."""
        if self._client is None:
            self._client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        self._client.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self._client.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content else None

    def made(self, path: str, body: Any) -> Any:
        """The answer to a POST that must succeed."""
        status, answer = self.call("POST", path, body)
        if status >= http.client.BAD_REQUEST:
            raise LocalError(f"POST {path} answered {status}: {answer}")
        return answer

    def listed(self, path: str, plural: str) -> Iterator[dict[str, Any]]:
        """Everything of a paged list."""
        cursor: str | None = ""
        while cursor is not None:
            _, page = self.call("GET", f"{path}?limit=500{cursor}")
            yield from page[plural]
            cursor = f"&cursor={page['next_cursor']}" if page["next_cursor"] else None
