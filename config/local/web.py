"""Command lines of the two servers, for `make run` and the tests."""

import sys

PROCESSES = 2  # default of `make run` and docker-compose.yml; on two cores, about as fast for orders as one
MAX_PROCESSES = 64
DRAIN_SECONDS = 10  # for requests in progress when the server is stopped
MAX_CONNECTIONS = 16_384  # per process; more wait in the backlog
BACKLOG = 4_096
HEADER_TIMEOUT_SECONDS = 20  # for a client to begin a request and send all its headers


def api_command(port: int, processes: int = 1) -> list[str]:
    """Return granian's command for the API. On SIGTERM it stops listening and finishes the requests in progress."""
    return [
        *[sys.executable, "-m", "granian", "--interface", "rsgi", "--host", "127.0.0.1", "--port", str(port)],
        *["--workers", str(processes), "--http", "1", "--no-ws"],
        *["--backlog", str(BACKLOG), "--backpressure", str(MAX_CONNECTIONS)],
        *["--http1-header-read-timeout", str(HEADER_TIMEOUT_SECONDS * 1000), "--respawn-failed-workers"],
        *["--log-level", "error", "--workers-kill-timeout", str(DRAIN_SECONDS), "config.rsgi:application"],
    ]


def backoffice_command(port: int) -> list[str]:
    """Return the command of gunicorn for the back office, configured by `config/gunicorn.py`."""
    return [sys.executable, "-m", "gunicorn", "--config", "python:config.gunicorn", "--bind", f"127.0.0.1:{port}"]
