"""The measured exchange, as in production: servers, web processes, workers, beat, brokers with keys and webhooks."""

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
    """PostgreSQL (as in `make run`, with fsync on), Valkey and a webhook receiver for the whole run."""

    postgres: Postgres
    valkey: Valkey
    receiver: Child
    receiver_port: int
    _databases: int = 0

    def new_database(self, name: str, template: str = "template0") -> str:
        """Create a database, replacing one of the same name, and return its URL."""
        with self.connect("postgres") as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.postgres.url(name)

    def connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(self.postgres.url(database), autocommit=True)

    def create_migrated(self, name: str) -> str:
        """Create a database with all migrations, copied from one that is migrated once, and return its URL."""
        with self.connect("postgres") as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = 'migrated'").fetchone()
        if not known:
            manage(environment(self.new_database("migrated"), self.valkey.url), "migrate", "--no-input")
        return self.new_database(name, template="migrated")

    def valkey_url(self) -> str:
        """Return the URL of an empty Valkey database, another one at each call."""
        self._databases = self._databases % 15 + 1
        url = f"{self.valkey.url.rpartition('/')[0]}/{self._databases}"
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        return url


@contextmanager
def servers() -> Iterator[Servers]:
    """Start the servers that all parts share, with a new data folder on disk that is removed at the end."""
    _remove(FOLDER / "postgres")
    _remove(FOLDER)
    FOLDER.mkdir(parents=True)
    for folder in [FOLDER.parent, FOLDER]:
        folder.chmod(0o711)  # lets PostgreSQL's account through if we are root
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
    if folder.is_symlink():  # if PostgreSQL's account cannot enter the parent
        shutil.rmtree(folder.resolve(), ignore_errors=True)
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def environment(database_url: str, redis_url: str) -> dict[str, str]:
    """Return the environment of our processes, as in `make run`."""
    return os.environ | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": "only for measuring",
        "SECURE_COOKIES": "0",
        "TWO_FACTOR_REQUIRED": "0",
        "WEBHOOK_ADDRESSES": "local",
    }


def manage(env: Mapping[str, str], *arguments: str) -> str:
    """Run a management command and return its output."""
    command = [sys.executable, "manage.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise LocalError(f"manage.py {arguments[0]} failed: {done.stdout.strip()} {done.stderr.strip()}"[-2_000:])
    return done.stdout.strip()


def python(name: str, arguments: Sequence[str], env: Mapping[str, str]) -> Child:
    return Child(name, [sys.executable, *arguments], log=FOLDER / f"{name}.log", env=env, cwd=ROOT, grace_seconds=15.0)


@dataclass
class Venue:
    """A running exchange on one database, the product or the naive one."""

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

    def is_up(self) -> bool:
        try:
            return Api(self.port).call("GET", "/healthz")[0] > 0
        except OSError:
            return False

    def is_ready(self) -> bool:
        """True if `/readyz` reports beat and the workers."""
        _, ages = Api(self.port).call("GET", "/readyz")
        return None not in (ages["beat_age_seconds"], ages["worker_age_seconds"])

    def operator(self) -> "Api":
        """Return a client with a new operator key."""
        return Api(self.port, manage(self.env, "create_operator_key"))

    def create_brokers(self) -> None:
        """Admit brokers over REST, or issue keys to those there are; half of them subscribe to webhooks."""
        operator = self.operator()
        found = [str(broker["broker_id"]) for broker in operator.list_all("/brokers", "brokers")]
        keys: dict[str, str] = {
            each: operator.create(f"/brokers/{each}/keys", {})["api_key"] for each in found
        } or self._create_brokers(operator)
        for broker_id in list(keys)[::2]:
            url = f"http://127.0.0.1:{self.servers.receiver_port}/{broker_id}"
            Api(self.port, keys[broker_id]).create("/webhooks", {"broker_id": broker_id, "url": url, "events": EVENTS})
        self.world = {
            "symbols": [{"name": symbol, "mid": self._mid(operator, symbol)} for symbol in self._symbols(operator)],
            "brokers": [{"id": broker_id, "key": key} for broker_id, key in keys.items()],
        }

    @staticmethod
    def _create_brokers(operator: "Api") -> dict[str, str]:
        holdings = [{"symbol": symbol, "quantity": SHARES} for symbol in SYMBOLS]
        bodies: list[dict[str, Any]] = [
            {"broker_id": f"broker-{number}", "initial_cash": CASH, "initial_holdings": holdings}
            for number in range(BROKERS)
        ]
        return {body["broker_id"]: operator.create("/brokers", body)["api_key"] for body in bodies}

    @staticmethod
    def _symbols(operator: "Api") -> list[str]:
        return [stock["symbol"] for stock in operator.list_all("/stocks", "stocks")][: len(SYMBOLS)]

    @staticmethod
    def _mid(operator: "Api", symbol: str) -> float:
        """Return the price around which orders are placed: the middle of the current book."""
        _, book = operator.call("GET", f"/stocks/{symbol}/book?depth=1")
        best = [float(side[0]["price"]) for side in (book["bids"], book["asks"]) if side]
        return round(sum(best) / len(best), 2) if best else MID

    def wait_for_deliveries(self) -> dict[str, float]:
        """Wait for the deliveries pending at the end of the load; return their number and the time they took."""
        started = time.monotonic()
        with self.servers.connect(self.database) as connection:

            def due() -> int:
                row = connection.execute("SELECT count(*) FROM webhooks_delivery WHERE claimed_at IS NULL").fetchone()
                return int(row[0]) if row else 0

            at_the_end = due()
            wait_until(lambda: due() == 0, DRAIN_SECONDS)
        return {"due": at_the_end, "seconds": round(time.monotonic() - started, 2)}

    def reconcile(self) -> float:
        """Reconcile and return the seconds that took. Raise `LocalError` for any difference."""
        started = time.monotonic()
        manage({**self.env, "DJANGO_SETTINGS_MODULE": "config.settings.backoffice"}, "reconcile")
        return round(time.monotonic() - started, 2)


@contextmanager
def venue(
    on: Servers, database: str, *, processes: int = 1, has_brokers: bool = True, has_backoffice: bool = False
) -> Iterator[Venue]:
    """Run the whole exchange on a migrated database: web processes, both workers and beat."""
    env = environment(on.postgres.url(database), on.valkey_url()) | {"WEB_PROCESSES": str(processes)}
    port, backoffice_port = free_port(), free_port()
    children = {"web": _server("web", web.api_command(port, processes), database, env)}
    if has_backoffice:
        command = web.backoffice_command(backoffice_port)
        behind_a_proxy = {"TRUSTED_PROXIES": "1"}  # gives each client of the bench its own address
        children["backoffice"] = _server("backoffice", command, database, env | behind_a_proxy)
    for name, arguments in WORKERS.items():
        children[name] = _celery(name, ["worker", *arguments, "-n", f"{name}-{database}@%h", "--without-mingle"], env)
    children["beat"] = _celery("beat", ["beat", "--scheduler", "celery.beat.Scheduler", "--pidfile="], env)
    with _running(Venue(on, database, env, port, children, backoffice_port=backoffice_port)) as running:
        if has_brokers:
            running.create_brokers()
        if not wait_until(running.is_ready, START_SECONDS):
            raise LocalError(f"The workers do not start; see {FOLDER}")
        yield running


@contextmanager
def naive_venue(on: Servers, database: str, world: dict[str, Any], *, processes: int) -> Iterator[Venue]:
    """Run the naive matcher behind the same server, on a database with the brokers and keys of `world`."""
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
        if not wait_until(venue.is_up, START_SECONDS):
            raise LocalError(f"The web server does not respond: {venue.children['web'].last_log_line()}")
        yield venue
    finally:
        with ThreadPoolExecutor() as pool:  # in parallel: each takes a second or two
            list(pool.map(Child.stop, venue.children.values()))


def _server(name: str, command: list[str], database: str, env: Mapping[str, str]) -> Child:
    return Child(name, command, FOLDER / f"{name}-{database}.log", env, ROOT)


def _celery(name: str, arguments: list[str], env: Mapping[str, str]) -> Child:
    return python(name, ["-m", "celery", "-A", "config", *arguments, "-l", "WARNING"], env)


@dataclass
class Api:
    """A client with one connection, for preparations."""

    port: int
    key: str = ""
    _client: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request and return the status and the decoded body of the response."""
        if self._client is None:
            self._client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        self._client.request(method, path, None if body is None else json.dumps(body), headers)
        response = self._client.getresponse()
        content = response.read()
        return response.status, json.loads(content) if content else None

    def create(self, path: str, body: Any) -> Any:
        """Send a POST request that must succeed, and return the body of the response."""
        status, response = self.call("POST", path, body)
        if status >= http.client.BAD_REQUEST:
            raise LocalError(f"POST {path} answered {status}: {response}")
        return response

    def list_all(self, path: str, plural: str) -> Iterator[dict[str, Any]]:
        """Yield all items of a paged list."""
        cursor: str | None = ""
        while cursor is not None:
            _, page = self.call("GET", f"{path}?limit=500{cursor}")
            yield from page[plural]
            cursor = f"&cursor={page['next_cursor']}" if page["next_cursor"] else None
