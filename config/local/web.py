"""The web server's command line, the same for `make run` and for the tests."""

import sys

PROCESSES = 2  # of `make run` and of docker-compose.yml: for orders about as good as one on two cores
MAX_PROCESSES = 64
DRAIN_SECONDS = 10  # how long requests in flight may take once the server was told to stop


def command(port: int, processes: int = 1) -> list[str]:
    """granian with so many processes; it stops listening on SIGTERM, finishes what is in flight, and leaves."""
    return [
        *[sys.executable, "-m", "granian", "--interface", "rsgi", "--host", "127.0.0.1", "--port", str(port)],
        *["--workers", str(processes), "--http", "1", "--no-ws"],
        *["--log-level", "error", "--workers-kill-timeout", str(DRAIN_SECONDS), "config.rsgi:application"],
    ]
