"""Servers on the test database, for tests over real sockets."""

import http.client
import os
from dataclasses import dataclass
from pathlib import Path

from django.db import connection

from config.local import web
from config.local.processes import Child, wait_until
from config.local.servers import free_port

START_SECONDS = 30.0
RESPONSE_TIMEOUT_SECONDS = 5.0
ROOT = Path(__file__).resolve().parent.parent


@dataclass(slots=True)
class Server:
    """A server with its own port, which `restart` keeps."""

    child: Child
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.child.pid is not None
        return self.child.pid

    def start(self) -> None:
        self.child.start()
        wait_until(lambda: self.is_up() or not self.child.is_running(), START_SECONDS)
        assert self.is_up(), self.child.log.read_text()[-4_000:]

    def restart(self) -> None:
        """Stop the server normally and start it again."""
        self.stop()
        self.start()

    def stop(self) -> None:
        self.child.stop()

    def kill(self) -> None:
        """Kill the server and its worker."""
        self.child.kill()

    def is_up(self) -> bool:
        """True if the server responds over HTTP, with any status."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=RESPONSE_TIMEOUT_SECONDS)
        try:
            client.request("GET", "/healthz")
            return client.getresponse().status > 0
        except OSError:
            return False
        finally:
            client.close()


def server(log: Path) -> Server:
    """Return a server of the API on the test database, not started yet."""
    port = free_port()
    return Server(Child("web", web.api_command(port), log=log, env=_environment(), cwd=ROOT), port)


def backoffice(log: Path) -> Server:
    """Return a back office on the test database, at normal priority, so that it responds on a busy machine."""
    port = free_port()
    env = _environment() | {"BACKOFFICE_NICENESS": "0"}
    return Server(Child("backoffice", web.backoffice_command(port), log=log, env=env, cwd=ROOT), port)


def _environment() -> dict[str, str]:
    base, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    url = f"{base}/{connection.settings_dict['NAME']}"
    return os.environ | {"DATABASE_URL": url}
