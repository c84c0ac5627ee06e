"""The command lines of the two servers, the same for `make run` and for the tests."""

import sys

PROCESSES = 2  # of `make run` and of docker-compose.yml: for orders about as good as one on two cores
MAX_PROCESSES = 64
DRAIN_SECONDS = 10  # how long requests in flight may take once the server was told to stop
MAX_CONNECTIONS = 16_384  # of one process; more wait to be accepted,
BACKLOG = 4_096  # up to so many
SILENCE_SECONDS = 20  # that a client may take to begin a request and to send all its headers


def command(port: int, processes: int = 1) -> list[str]:
    """The API: granian with some processes; it stops listening on SIGTERM, finishes what is in flight, and leaves."""
    return [
        *[sys.executable, "-m", "granian", "--interface", "rsgi", "--host", "127.0.0.1", "--port", str(port)],
        *["--workers", str(processes), "--http", "1", "--no-ws"],
        *["--backlog", str(BACKLOG), "--backpressure", str(MAX_CONNECTIONS)],
        *["--http1-header-read-timeout", str(SILENCE_SECONDS * 1000)],
        *["--log-level", "error", "--workers-kill-timeout", str(DRAIN_SECONDS), "config.rsgi:application"],
    ]


def backoffice_command(port: int) -> list[str]:
    """The back office: gunicorn, whose settings are in `config/gunicorn.py`."""
    return [sys.executable, "-m", "gunicorn", "--config", "python:config.gunicorn", "--bind", f"127.0.0.1:{port}"]
