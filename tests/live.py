"""Servers of our own against the test database, for tests that must go through real sockets."""

import http.client
import os
from dataclasses import dataclass
from pathlib import Path

from django.db import connection

from config.local import web
from config.local.processes import Child, wait_until
from config.local.servers import free_port

START_SECONDS = 30.0
ANSWER_SECONDS = 5.0
ROOT = Path(__file__).resolve().parent.parent


@dataclass(slots=True)
class Server:
    """A server on a port of its own; `restart` keeps the port."""

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
        wait_until(lambda: self.answers() or not self.child.is_running(), START_SECONDS)
        assert self.answers(), self.child.log.read_text()[-4_000:]

    def restart(self) -> None:
        """Stop in good order and start again."""
        self.stop()
        self.start()

    def stop(self) -> None:
        self.child.stop()

    def kill(self) -> None:
        """End the server and its worker without a warning."""
        self.child.kill()

    def answers(self) -> bool:
        """Whether anything, a 404 even, is answered over HTTP."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            client.request("GET", "/healthz")
            return client.getresponse().status > 0
        except OSError:
            return False
        finally:
            client.close()


def server(log: Path) -> Server:
    """An API, not started yet, that uses the database of this test session."""
    port = free_port()
    return Server(Child("web", web.api_command(port), log=log, env=_environment(), cwd=ROOT), port)


def backoffice(log: Path) -> Server:
    """A back office, likewise, at the priority of the tests: it must answer them while they keep the machine busy."""
    port = free_port()
    env = _environment() | {"BACKOFFICE_NICENESS": "0"}
    return Server(Child("backoffice", web.backoffice_command(port), log=log, env=env, cwd=ROOT), port)


def _environment() -> dict[str, str]:
    base, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    url = f"{base}/{connection.settings_dict['NAME']}"
    return os.environ | {"DATABASE_URL": url}
