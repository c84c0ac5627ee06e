"""Properties of docker-compose.yml and Dockerfile, and a run of their commands.

No Docker is needed: the commands of our services run unchanged, with only the environment from compose, in a copy of
the image's files, with a Python that has only the image's packages. Only ports and addresses of servers differ.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import yaml
from django.conf import settings
from psycopg import sql

from config import gunicorn
from config.local import web
from config.local.processes import Child, wait_until
from config.local.servers import INITDB_LOCALE, Valkey, free_port
from tests.live import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text().splitlines()
RUNNING = ["web", "backoffice", "worker", "webhooks", "beat"]  # our services, except those that end
OURS = ["create_roles", "migrate", *RUNNING]
ENDING = {"create_roles", "migrate"}
SECRETS = {"SECRET_KEY": "s" * 50, "VALKEY_PASSWORD": "aZ09._~-"}
SECRETS |= dict.fromkeys(["POSTGRES_PASSWORD", "DATABASE_OWNER_PASSWORD", "DATABASE_PASSWORD"], "p@s$/w:rd%")
DATABASE = "bourse_in_containers"
UNREACHABLE = "postgresql://127.0.0.1:1/none"  # the database of a service without a network to it
VALKEY_DATABASE = 1  # other tests use database 0
STEP_SECONDS = 60.0
START_SECONDS = 60.0
CONTAINER_PORT, BACKOFFICE_PORT = 8000, 8001


def interpolated(value: str, variables: dict[str, str]) -> str:
    """Replace `${NAME:?message}`, `${NAME:-default}` and `$$` like compose."""

    def replaced(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return variables[found["name"]] if found["operator"] == ":?" else variables.get(found["name"]) or found["text"]

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?P<operator>:[?-])(?P<text>[^}]*)\}", replaced, value)


def words(command: str | list[str]) -> list[str]:
    """Return the words of a command, like compose."""
    split = shlex.split(command) if isinstance(command, str) else command
    return [interpolated(word, {}) for word in split]


def environment(service: str, **variables: str) -> dict[str, str]:
    """Return the environment of a service. A name without a value is included only if it is in `variables`."""
    given = SERVICES[service]["environment"]
    return {
        name: variables[name] if value is None else interpolated(value, SECRETS | variables)
        for name, value in given.items()
        if value is not None or name in variables
    }


def option(command: str | list[str], name: str) -> str:
    """Return the value of a command's option."""
    split = words(command)
    return split[split.index(name) + 1]


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([sm])", duration).groups()  # type: ignore[union-attr]  # fails the test
    return int(number) * {"s": 1.0, "m": 60.0}[unit]


def megabytes(size: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([mg])b?", interpolated(size, {})).groups()  # type: ignore[union-attr]
    return int(number) * {"m": 1, "g": 1024}[unit]


def neighbours(name: str) -> set[str]:
    """Return the other services that share a network with a service."""
    networks = set(SERVICES[name]["networks"])
    return {other for other, service in SERVICES.items() if other != name and networks & set(service["networks"])}


def strings(value: Any) -> Iterator[str]:
    """Yield all strings of a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)


# --- The document ---------------------------------------------------------------------------------------------------


def test_each_service_has_its_image() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    tags = {name: image.partition("@sha256:")[0] for name, image in images.items()}  # an operator may pin digests
    assert tags == {"db": "postgres:18", "valkey": "valkey/valkey:9"} | dict.fromkeys(OURS, "bourse")
    assert [name for name, service in SERVICES.items() if "build" in service] == ["create_roles"]  # once, for all
    assert {SERVICES[name]["pull_policy"] for name in OURS} == {"never"}


def test_services_start_after_the_migrations_and_these_after_the_database() -> None:
    assert SERVICES["create_roles"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    assert SERVICES["migrate"]["depends_on"] == {"create_roles": {"condition": "service_completed_successfully"}}
    for name in RUNNING:
        assert SERVICES[name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "valkey": {"condition": "service_healthy"},
        }


@pytest.mark.parametrize("name", SERVICES)
def test_containers_have_no_unneeded_privileges(name: str) -> None:
    service = SERVICES[name]
    assert (service["read_only"], service["init"]) == (True, True)
    assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert "/tmp" in {mount.partition(":")[0] for mount in service["tmpfs"]}  # noqa: S108 - the container's
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & service.keys()
    assert service.get("user") == {"db": "postgres", "valkey": "valkey"}.get(name)  # ours: set in the Dockerfile


def test_a_service_shares_networks_only_with_the_servers_it_needs() -> None:
    servers = {"db", "valkey"}
    assert {name: neighbours(name) & servers for name in OURS} == {
        "create_roles": {"db"},
        "migrate": {"db"},
        "web": servers,
        "backoffice": servers,
        "worker": servers,
        "webhooks": servers,
        "beat": {"valkey"},
    }
    assert neighbours("webhooks") == servers  # brokers choose the addresses that it connects to
    assert neighbours("backoffice") == servers


def test_only_the_published_and_webhook_networks_lead_outside() -> None:
    outside = {name for name, network in COMPOSE["networks"].items() if not network.get("internal")}
    attached = {name: set(service["networks"]) & outside for name, service in SERVICES.items()}
    assert {name: networks for name, networks in attached.items() if networks} == {
        "web": {"front"},
        "backoffice": {"office"},
        "webhooks": {"outside"},
    }
    assert set().union(*(service["networks"] for service in SERVICES.values())) == COMPOSE["networks"].keys()


@pytest.mark.parametrize("name", SERVICES)
def test_memory_processes_and_temporary_files_are_limited(name: str) -> None:
    service = SERVICES[name]
    assert 256 <= megabytes(service["mem_limit"]) <= 4096
    assert 64 <= service["pids_limit"] <= 4096
    sizes = [re.fullmatch(r"/[\w/]+:size=(\w+)", mount) for mount in service["tmpfs"]]
    assert all(size and megabytes(size[1]) <= 64 for size in sizes)


def test_the_limits_of_containers_suffice_for_the_settings() -> None:
    web = SERVICES["web"]
    assert web["pids_limit"] >= 2 * settings.WEB_PROCESSES * settings.WEB_THREADS
    assert web["ulimits"] == {"nofile": 65536}  # more than 10,000 connections
    db = SERVICES["db"]
    assert db["pids_limit"] >= 2 * int(re.findall(r"max_connections=(\d+)", db["command"])[0])
    hash_memory = 2 * 3 * megabytes(settings.RECONCILE_WORK_MEM.lower())  # hash_mem_multiplier; a leader, two workers
    assert hash_memory < megabytes(db["shm_size"]) < megabytes(db["mem_limit"])
    (maxmemory,) = re.findall(r"^maxmemory (\w+)$", SERVICES["valkey"]["command"][-1], re.MULTILINE)
    assert megabytes(maxmemory) * 2 <= megabytes(SERVICES["valkey"]["mem_limit"])


@pytest.mark.parametrize("name", SERVICES)
def test_running_services_have_a_health_check_restart_and_rotate_their_logs(name: str) -> None:
    service = SERVICES[name]
    assert service["logging"] == {"driver": "local"}
    if name in ENDING:
        assert (service["restart"], "healthcheck" in service) == ("no", False)
        return
    assert service["restart"] == "unless-stopped"
    check = service["healthcheck"]
    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert 0 < seconds(check["timeout"]) <= 10
    assert 0 < seconds(check["interval"]) <= 30
    assert check["retries"] == 3


def test_there_is_one_beat_and_a_worker_for_each_queue() -> None:
    celery = {name: words(SERVICES[name]["command"]) for name in OURS if "celery" in words(SERVICES[name]["command"])}
    assert [name for name, command in celery.items() if "beat" in command] == ["beat"]
    assert not {"deploy", "scale"} & SERVICES["beat"].keys()
    queues = {name: option(command, "-Q") for name, command in celery.items() if "worker" in command}
    assert queues == {"worker": "celery", "webhooks": "webhooks"}


def test_the_web_server_runs_as_in_the_tests_and_is_published_locally_only() -> None:
    command = [sys.executable if word == "python" else word for word in words(SERVICES["web"]["command"])]
    assert option(command, "--host") == "0.0.0.0"  # noqa: S104 - inside the container
    assert option(command, "--workers") == str(web.PROCESSES)
    here = ["127.0.0.1" if word == "0.0.0.0" else word for word in command]  # noqa: S104
    assert here == web.api_command(CONTAINER_PORT, web.PROCESSES)
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert {name: [interpolated(port, {}) for port in ports] for name, ports in published.items()} == {
        "web": [f"127.0.0.1:8000:{CONTAINER_PORT}"],
        "backoffice": [f"127.0.0.1:8001:{BACKOFFICE_PORT}"],
    }


def test_the_back_office_runs_as_in_the_tests_at_a_low_priority() -> None:
    service = SERVICES["backoffice"]
    here = [word.replace("0.0.0.0", "127.0.0.1") for word in words(service["command"])]  # noqa: S104
    assert [sys.executable, *here[1:]] == web.backoffice_command(BACKOFFICE_PORT)
    assert service["cpu_shares"] * 8 == 1024  # the default of the others
    assert service["pids_limit"] >= 2 * gunicorn.threads
    assert gunicorn.threads >= 2 * settings.MAX_CONCURRENT_EXPORTS


def test_the_grace_periods_suffice_for_requests_in_progress() -> None:
    assert {name: seconds(SERVICES[name].get("stop_grace_period", "10s")) for name in ["db", *RUNNING]} == {
        "db": 60,
        "web": 15,
        "backoffice": 15,
        "worker": 35,
        "webhooks": 15,
        "beat": 10,
    }


def test_secrets_are_required_and_not_in_the_file() -> None:
    for name in SECRETS:
        uses = re.findall(rf"\$\{{?{name}\b[^}}]*\}}?", (ROOT / "docker-compose.yml").read_text())
        assert set(uses) == {f"${{{name}:?Set {name}, see .env.example}}"}
    given = [pair for service in SERVICES.values() for pair in service.get("environment", {}).items()]
    for name, value in given:
        if re.search("PASS|SECRET|KEY|TOKEN|AUTH", name) and value is not None:
            assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
    (start,) = re.findall(r"^exec .*$", SERVICES["valkey"]["command"][-1], re.MULTILINE)
    assert "$" not in start  # command lines are visible to all users
    for text in strings(COMPOSE):
        assert not re.search(r"://[^/$]*:[^/$]+@", text), text  # a password in a URL
    example = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert example == dict.fromkeys(SECRETS, "")


def test_our_services_receive_the_variables_that_the_settings_read() -> None:
    source = (ROOT / "config" / "settings" / "base.py").read_text()
    required = set(re.findall(r'os\.environ\["(\w+)"\]', source))
    optional = set(re.findall(r'os\.environ\.get\("(\w+)"', source)) - {"DEBUG"}  # never in production
    environments = [SERVICES[name]["environment"] for name in RUNNING]
    assert all(each == environments[0] for each in environments)
    given = {name for name, value in environments[0].items() if value is not None}
    assert given == required | {"PGPASSWORD"}  # read by libpq
    optional -= {"DATABASE_OWNER_URL"}  # tested below
    assert environments[0].keys() - given == optional
    offered = set(re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert offered == optional | {"PORT", "BIND_ADDRESS", "BACKOFFICE_PORT", "BACKOFFICE_BIND_ADDRESS", "WEB_MEMORY"}


def test_only_the_setup_services_know_the_owner_and_the_superuser() -> None:
    known = {}
    for name in OURS:
        variables = SERVICES[name]["environment"]
        accounts = re.findall(r"//(\w+)@db/bourse", " ".join(strings(variables)))
        known[name] = (set(accounts), {password for password in SECRETS if f"${{{password}:" in str(variables)})
    secrets = {"SECRET_KEY", "VALKEY_PASSWORD"}
    running = ({"bourse_app"}, secrets | {"DATABASE_PASSWORD"})
    assert known == {
        "create_roles": ({"bourse", "bourse_owner", "bourse_app"}, SECRETS.keys()),
        "migrate": ({"bourse_owner", "bourse_app"}, secrets | {"DATABASE_OWNER_PASSWORD"}),
    } | dict.fromkeys(RUNNING, running)


def test_only_the_database_has_a_volume() -> None:
    volumes = {name: service["volumes"] for name, service in SERVICES.items() if "volumes" in service}
    assert volumes == {"db": ["database:/var/lib/postgresql"]}
    assert COMPOSE["volumes"] == {"database": None}


def test_the_database_uses_fsync_and_has_enough_connections() -> None:
    command = words(SERVICES["db"]["command"])
    options = dict(pair.split("=") for flag, pair in zip(command[1::2], command[2::2], strict=True) if flag == "-c")
    assert command[0] == "postgres"
    assert (options["fsync"], options["synchronous_commit"]) == ("on", "on")
    processes = int(option(SERVICES["web"]["command"], "--workers")) + int(option(SERVICES["worker"]["command"], "-c"))
    processes += 2  # the webhook worker, which uses threads, and a command of an operator
    pools = processes * 20 + gunicorn.POOL_SIZE
    assert pools + 10 <= int(options["max_connections"])  # a few for administrators
    arguments = SERVICES["db"]["environment"]["POSTGRES_INITDB_ARGS"]
    assert set(arguments.split()) == {"--encoding=UTF8", *INITDB_LOCALE}  # the same sort order as in the tests


# --- The image ------------------------------------------------------------------------------------------------------


def instructions(name: str) -> list[str]:
    """Return the arguments of all instructions of this name."""
    return [line.removeprefix(name).strip() for line in DOCKERFILE if line.startswith(f"{name} ")]


def copied() -> list[str]:
    """Return our files and folders in the image."""
    sources = [line.split()[0] for line in instructions("COPY")]
    return [source for source in sources if source != "requirements.txt"]


def test_the_image_has_our_code_the_locked_packages_and_the_oldest_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [
        f">={image.partition('@')[0].removeprefix('python:').removesuffix('-slim')}" for image in instructions("FROM")
    ] == [project["requires-python"]]
    assert copied() == ["manage.py", "config", "backoffice", "exchange", "gateway", "orders", "webhooks", "docs"]
    install = [line for line in "\n".join(DOCKERFILE).replace("\\\n", "").splitlines() if "pip install" in line]
    assert len(install) == 1
    assert "--require-hashes -r requirements.txt" in install[0].replace("  ", " ")
    ignore = (ROOT / ".dockerignore").read_text().splitlines()[1:]
    assert ignore == ["*", *(f"!{name}" for name in ["requirements.txt", *copied()]), "config/local", "**/__pycache__"]


def test_the_image_runs_as_a_fixed_account_that_is_not_root() -> None:
    assert instructions("USER") == ["10001"]
    assert DOCKERFILE[-1] == "USER 10001"
    assert any("useradd --uid 10001 " in line for line in instructions("RUN"))
    assert {"PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1"} <= set(instructions("ENV")[0].split())


# --- The commands ---------------------------------------------------------------------------------------------------


def only_the_locked_packages(folder: Path) -> Path:
    """Create a virtual environment with only the packages of requirements.txt, and return its folder of programs."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE):
        with suppress(PackageNotFoundError):  # for another system or an older Python
            package = distribution(name)
            for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
                (site / top).symlink_to(Path(str(package.locate_file(top))))
    return folder / "bin"


@dataclass(frozen=True, slots=True)
class Containers:
    """Replacement of the container engine, which runs commands and health checks of services in the image's files."""

    app: Path
    logs: Path
    programs: Path
    database_url: str
    redis_url: str
    port: int
    backoffice_port: int

    def env(self, service: str) -> dict[str, str]:
        image = dict(pair.split("=") for pair in instructions("ENV")[0].split())
        engine = {"PATH": f"{self.programs}:{os.defpath}", "HOSTNAME": os.uname().nodename}
        given = environment(service, ALLOWED_HOSTS="exchange.example")
        urls = {name: self._here(service, url) for name, url in given.items() if name.endswith("_URL")}
        return engine | image | given | urls

    def _here(self, service: str, url: str) -> str:
        """Return the local URL of a server of compose, or an unreachable one without a common network."""
        if "@valkey/" in url:
            return self.redis_url
        account = re.fullmatch(r"postgresql://(\w+)@db/bourse", url)
        assert account, url
        if "db" not in neighbours(service):
            return UNREACHABLE
        return self.database_url if account[1] == "bourse" else self.database_url.replace("postgres@", f"{account[1]}@")

    def here(self, command: Sequence[str]) -> list[str]:
        """Return the command with a free port of 127.0.0.1."""
        changes = {"0.0.0.0": "127.0.0.1", str(CONTAINER_PORT): self.port, str(BACKOFFICE_PORT): self.backoffice_port}  # noqa: S104
        moved = [reduce(lambda word, old: word.replace(old, str(changes[old])), changes, word) for word in command]
        return [str(shutil.which(moved[0], path=self.env("web")["PATH"])), *moved[1:]]

    def child(self, service: str) -> Child:
        command = self.here(words(SERVICES[service]["command"]))
        return Child(service, command, log=self.logs / f"{service}.log", env=self.env(service), cwd=self.app)

    def is_healthy(self, service: str) -> bool:
        """Run the service's health check and return True if it passes within its timeout."""
        check = SERVICES[service]["healthcheck"]
        kind, *command = [interpolated(word, {}) for word in check["test"]]
        argv = self.here(["/bin/sh", "-c", *command] if kind == "CMD-SHELL" else command)
        with suppress(subprocess.TimeoutExpired):
            return not subprocess.run(  # noqa: S603 - our own programs
                argv, cwd=self.app, env=self.env(service), capture_output=True, timeout=seconds(check["timeout"])
            ).returncode
        return False

    def ends_of_logs(self) -> dict[str, str]:
        """Return the end of each service's log."""
        return {log.stem: log.read_text()[-4_000:] for log in self.logs.iterdir()}

    def run(self, service: str) -> None:
        """Run a service that ends by itself."""
        step = self.child(service)
        step.start()
        try:
            assert wait_until(lambda: not step.is_running(), STEP_SECONDS), step.log.read_text()
            assert step.exit_code == 0, step.log.read_text()
        finally:
            step.stop()


@pytest.fixture(scope="module")
def urls() -> Iterator[tuple[str, str]]:
    """The URLs of two empty databases of the test session's servers."""
    base, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    valkey_base, _, _ = os.environ["REDIS_URL"].rpartition("/")
    redis_url = f"{valkey_base}/{VALKEY_DATABASE}"
    name = sql.Identifier(DATABASE)
    with (
        psycopg.connect(f"{base}/postgres", autocommit=True) as connection,
        redis.Redis.from_url(redis_url) as valkey,
    ):
        valkey.flushdb()
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        yield f"{base}/{DATABASE}", redis_url
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        connection.execute("DROP ROLE IF EXISTS bourse_owner, bourse_app")
        valkey.flushdb()


@pytest.fixture(scope="module")
def containers(urls: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Containers:
    app, logs, python = (tmp_path_factory.mktemp(name) for name in ["app", "logs", "python"])
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, app / name)
    shutil.rmtree(app / "config" / "local")
    return Containers(app, logs, only_the_locked_packages(python), *urls, free_port(), free_port())


def of_each(function: Callable[[str], Any]) -> dict[str, Any]:
    """Call a function for all services concurrently, because each call takes seconds."""
    with ThreadPoolExecutor() as threads:
        return dict(zip(RUNNING, threads.map(function, RUNNING), strict=True))


def stop(child: Child, grace_seconds: float) -> int | None:
    """Stop a process like the engine, and return its exit code, or None if it exceeds its grace period."""
    assert child.pid is not None
    os.kill(child.pid, signal.SIGTERM)
    wait_until(lambda: not child.is_running(), grace_seconds)
    return child.exit_code


@pytest.mark.processes
def test_the_commands_start_become_healthy_and_stop_normally(containers: Containers) -> None:
    files = sorted(containers.app.rglob("*"))
    with ThreadPoolExecutor() as threads:
        before = threads.submit(of_each, containers.is_healthy)
        containers.run("create_roles")
        containers.run("migrate")
    assert before.result() == dict.fromkeys(RUNNING, False)
    with ExitStack() as cleanup:
        children = {name: containers.child(name) for name in RUNNING}
        for child in children.values():
            cleanup.callback(child.stop)
            child.start()

        def becomes_healthy(name: str) -> bool:
            child = children[name]
            done = wait_until(lambda: not child.is_running() or containers.is_healthy(name), START_SECONDS)
            return done and child.is_running()

        def stop_code(name: str) -> int | None:
            return stop(children[name], seconds(SERVICES[name].get("stop_grace_period", "10s")))

        assert of_each(becomes_healthy) == dict.fromkeys(RUNNING, True), containers.ends_of_logs()
        assert of_each(stop_code) == dict.fromkeys(RUNNING, 0), containers.ends_of_logs()
        assert [name for name, text in containers.ends_of_logs().items() if "Traceback" in text] == []
    assert not containers.is_healthy("web")
    assert (
        sorted(containers.app.rglob("*")) == files
    )  # no process has written to files that are read-only in a container


# --- Valkey ---------------------------------------------------------------------------------------------------------


@contextmanager
def valkey(folder: Path, password: str) -> Iterator[tuple[Child, str]]:
    """Run Valkey with compose's script on a free port, with the URL of our services."""
    program = Path(Valkey(folder, log=folder / "unused.log").child.argv[0])
    port = free_port()
    shell, flag, script = words(SERVICES["valkey"]["command"])
    here = script.replace("appendonly", f"port {port}\nbind 127.0.0.1\nappendonly")
    env = {"PATH": f"{program.parent}:{os.defpath}", "REDISCLI_AUTH": password}
    child = Child("valkey", [f"/bin/{shell}", flag, here], log=folder / "valkey.log", env=env, cwd=folder)
    child.start()
    try:
        url = interpolated(SERVICES["web"]["environment"]["REDIS_URL"], {"VALKEY_PASSWORD": password})
        yield child, url.replace("@valkey/", f"@127.0.0.1:{port}/")
    finally:
        child.stop()


@pytest.mark.processes
def test_valkey_persists_nothing_evicts_nothing_and_requires_its_password(tmp_path: Path) -> None:
    with valkey(tmp_path, SECRETS["VALKEY_PASSWORD"]) as (child, url), redis.Redis.from_url(url, retry=None) as client:
        assert wait_until(lambda: is_up(client), START_SECONDS), child.log.read_text()
        found = {name: client.config_get(name)[name] for name in ["save", "appendonly", "maxmemory-policy"]}
        assert found == {"save": "", "appendonly": "no", "maxmemory-policy": "noeviction"}
        address = url.partition("@")[2]
        with (
            redis.Redis.from_url(f"redis://{address}", retry=None) as anonymous,
            pytest.raises(redis.AuthenticationError),
        ):
            anonymous.ping()
        assert stop(child, 10.0) == 0


@pytest.mark.processes
@pytest.mark.parametrize("password", ["a/b", "a%41", "a@b", "a:b", "a#b", "a?b", "a b", 'a"b', "a$b", "ä", "a\nport 1"])
def test_a_valkey_password_that_would_break_the_url_is_rejected(tmp_path: Path, password: str) -> None:
    with valkey(tmp_path, password) as (child, _):
        assert wait_until(lambda: not child.is_running(), START_SECONDS)
        assert child.exit_code == 1
        assert child.log.read_text() == "VALKEY_PASSWORD becomes part of a URL: letters, digits and -._~ only.\n"


def is_up(client: redis.Redis) -> bool:
    with suppress(redis.ConnectionError):
        return bool(client.ping())
    return False
