"""`python -m config.local`: run the whole exchange in the foreground, until Ctrl-C."""

import errno
import fcntl
import http.client
import os
import secrets
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from config.local import child, orphans, web
from config.local.processes import Child, LocalError, print_line
from config.local.servers import Postgres, Valkey, watch_valkey
from config.local.supervisor import StopRequested, StopSignal, Supervisor, run_step, shift_rotated_logs
from exchange import private_file

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = ROOT / ".run"
LOGS = RUN / "logs"
CREDENTIALS = RUN / "credentials.json"
DATABASE = "bourse"
OWNER, RUNTIME = "bourse_owner", "bourse_app"  # PostgreSQL roles
EXPORTED = [
    *["DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL"],
    *["SECRET_KEY", "SECURE_COOKIES", "TWO_FACTOR_REQUIRED", "WEBHOOK_ADDRESSES"],
]
OWNER_VARIABLES = ["DATABASE_OWNER_URL", "DATABASE_ADMIN_URL"]  # for the setup steps only: no server may change tables
STEP_SECONDS = 120.0
SERVER_START_SECONDS = 60.0
HEALTH_CHECK_TIMEOUT_SECONDS = 2.0  # a health check blocks the supervision of the children
WORKERS = {  # command line options by name
    "worker": ["-Q", "celery", "-c", "2"],
    "webhooks": ["-Q", "webhooks", "--pool", "threads", "-c", "2"],  # one dispatches, one receives the wake-ups
}


def main() -> int:
    """Run until a stop signal and return 0; if that is impossible, print the reason and return 1."""
    _fill_standard_streams()
    stop = StopSignal()
    if "MAKELEVEL" in os.environ:  # stop if `make` is killed
        child.die_with_parent(os.getppid(), 15)
    try:
        port = _parse_number("PORT", os.environ.get("PORT") or "8000", 2**16 - 1)
        backoffice_port = _parse_number(
            "BACKOFFICE_PORT", os.environ.get("BACKOFFICE_PORT") or str(port + 1), 2**16 - 1
        )
        processes = _parse_number(
            "WEB_PROCESSES", os.environ.get("WEB_PROCESSES") or str(web.PROCESSES), web.MAX_PROCESSES
        )
        _make_folders()
        with _exclusive_lock(RUN / "lock"):
            orphans.stop(RUN)
            with _reserved_port("PORT", port), _reserved_port("BACKOFFICE_PORT", backoffice_port):
                _rotate_logs()
                _run(port, backoffice_port, processes, stop)
    except StopRequested:
        pass
    except LocalError as error:
        print_line(str(error))
        return 1
    except OSError as error:
        print_line(
            f"{error.strerror}: {error.filename or 'an operation of the system'}. Does {RUN} belong to another user?"
        )
        return 1
    return 0


def _run(port: int, backoffice_port: int, processes: int, stop: StopSignal) -> None:
    """Start and supervise all processes until a stop signal, then stop them."""
    supervisor = Supervisor(stop)
    with ExitStack() as cleanup:
        env = _environment(supervisor, cleanup)
        cleanup.callback(supervisor.stop_all)  # runs before the callbacks that stop the servers
        stopping = threading.Event()
        threading.Thread(target=watch_valkey, args=(env["REDIS_URL"], stopping), daemon=True).start()
        cleanup.callback(stopping.set)
        base_url, backoffice_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{backoffice_port}"
        print_line("Preparing the database ...")
        for name, arguments in _setup_steps(base_url, backoffice_url).items():
            if name != "create_roles" or "DATABASE_ADMIN_URL" in env:
                time_limit = None if name == "migrate" else STEP_SECONDS  # a large index takes as long as it takes
                run_step(_python(name, ["manage.py", *arguments], env), stop, time_limit)
        env = {name: value for name, value in env.items() if name not in OWNER_VARIABLES}
        supervisor.supervise(_celery("beat", ["beat", "--scheduler", "celery.beat.Scheduler", "--pidfile="], env))
        for name, arguments in WORKERS.items():
            supervisor.supervise(_celery(name, ["worker", *arguments, "-n", f"{name}@%h", "--without-mingle"], env))
        backoffice = _server("backoffice", web.backoffice_command(backoffice_port), env)
        api_env = env | {"WEB_PROCESSES": str(processes), "BACKOFFICE_URL": backoffice_url}
        api = _server("web", web.api_command(port, processes), api_env)
        supervisor.supervise(backoffice)
        supervisor.supervise(api)
        _wait_for(supervisor, api, port, "/healthz")
        _wait_for(supervisor, backoffice, backoffice_port, "/admin/login/")
        if not stop.is_requested:
            print_line(_welcome_text(base_url, backoffice_url))
        supervisor.run_until(lambda: False)
        print_line("Stopping ...")


def _setup_steps(base_url: str, backoffice_url: str) -> dict[str, list[str]]:
    return {
        "create_roles": ["create_roles"],  # needs DATABASE_ADMIN_URL, which is set for the embedded server
        "migrate": ["migrate", "--no-input"],
        "demo": [
            *["demo", "--credentials", str(CREDENTIALS), "--base-url", base_url],
            *["--admin-url", f"{backoffice_url}/admin/"],
        ],
    }


def _environment(supervisor: Supervisor, cleanup: ExitStack) -> dict[str, str]:
    """Return the environment of the processes, and start PostgreSQL and Valkey unless their URLs are set."""
    os.environ[orphans.RUN_VARIABLE] = str(RUN)
    env = {
        "SECURE_COOKIES": "0",
        "TWO_FACTOR_REQUIRED": "0",
        "WEBHOOK_ADDRESSES": "local",
        "SECRET_KEY": _secret_key(),
    } | os.environ
    if not env.get("DATABASE_URL"):
        print_line("Starting PostgreSQL ...")
        postgres = Postgres(RUN / "postgres", log=LOGS / "postgres.log")
        cleanup.callback(postgres.stop)
        postgres.start(DATABASE)
        supervisor.supervise(postgres.child, running=True)
        env |= {
            "DATABASE_URL": postgres.url(DATABASE, RUNTIME),
            "DATABASE_OWNER_URL": postgres.url(DATABASE, OWNER),
            "DATABASE_ADMIN_URL": postgres.url(DATABASE),
        }
    supervisor.stop.raise_if_requested()
    if not env.get("REDIS_URL"):
        print_line("Starting Valkey ...")
        valkey = Valkey(RUN, log=LOGS / "valkey.log")
        cleanup.callback(valkey.stop)
        valkey.start()
        supervisor.supervise(valkey.child, running=True)
        env["REDIS_URL"] = valkey.url
    exports = (f"export {name}={shlex.quote(env[name])}\n" for name in EXPORTED if name in env)
    private_file.write(RUN / "env", "".join(exports))
    return env


def _python(name: str, arguments: list[str], env: dict[str, str]) -> Child:
    return Child(name, [sys.executable, *arguments], log=LOGS / f"{name}.log", env=env, cwd=ROOT)


def _celery(name: str, arguments: list[str], env: dict[str, str]) -> Child:
    return _python(name, ["-m", "celery", "-A", "config", *arguments, "-l", "WARNING"], env)


def _server(name: str, command: list[str], env: dict[str, str]) -> Child:
    return Child(name, command, log=LOGS / f"{name}.log", env=env, cwd=ROOT, grace_seconds=15.0)


def _wait_for(supervisor: Supervisor, server: Child, port: int, path: str) -> None:
    """Wait until the server is healthy or a stop is requested."""
    is_healthy = supervisor.run_until(lambda: _is_healthy(port, path), SERVER_START_SECONDS)
    if not is_healthy and not supervisor.stop.is_requested:
        raise LocalError(f"The server `{server.name}` does not answer: {server.last_log_line()}")


def _fill_standard_streams() -> None:
    """Open closed standard streams, so that no other file gets the number of one and receives its output."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def _parse_number(name: str, text: str, most: int) -> int:
    """Return the value of the environment variable `name`, which must be from 1 to `most`."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= most):
        raise LocalError(f"{name} must be a number from 1 to {most}, not {text!r}.")
    return int(text)


def _make_folders() -> None:
    RUN.mkdir(exist_ok=True)
    RUN.chmod(0o711)  # lets PostgreSQL's account through if we are root; each file below has private permissions
    LOGS.mkdir(exist_ok=True, mode=0o700)


def _rotate_logs() -> None:
    for log in LOGS.glob("*.log"):
        with suppress(OSError):  # in a read-only folder, for example: the children warn
            if log.stat().st_size:
                log.replace(shift_rotated_logs(log))


@contextmanager
def _exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which Linux releases even if this process is killed."""
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalError(
                f"The exchange is already running from {ROOT}: stop it first (Ctrl-C in its terminal)."
            ) from None
        yield


@contextmanager
def _reserved_port(name: str, port: int) -> Iterator[None]:
    """Check that the port is free, and reserve it against another `make run`.

    The servers listen later, and granian shares its port with any process. The reservation is an abstract Unix socket
    of this name, which Linux closes even if this process is killed.
    """
    with socket.socket(socket.AF_UNIX) as reservation, socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            reservation.bind(f"\0bourse-port-{port}")
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason = "is in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
            raise LocalError(f"Port {port} {reason}; choose another one, e.g. `make run {name}=9000`.") from None
        probe.close()
        yield


def _secret_key() -> str:
    path = RUN / "secret_key"
    if not path.exists():
        private_file.write(path, secrets.token_urlsafe(48))
    return path.read_text(encoding="utf-8")


def _is_healthy(port: int, path: str) -> bool:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=HEALTH_CHECK_TIMEOUT_SECONDS)
    try:
        client.request("GET", path)
        return client.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        client.close()


def _welcome_text(base_url: str, backoffice_url: str) -> str:
    return f"""
The exchange runs at {base_url}

  API documentation   {base_url}/docs
  Back office         {backoffice_url}/admin/
  Keys and passwords  {CREDENTIALS}
  Logs                {LOGS}/
  manage.py           . .run/env && .venv/bin/python manage.py help

Ctrl-C stops all processes. The data stays in {RUN} until `make clean`.
"""


if __name__ == "__main__":
    sys.exit(main())
