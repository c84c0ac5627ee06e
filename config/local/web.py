"""The web server's command line, the same for `make run` and for the tests."""

import sys

THREADS = 64  # waiting for the sequencer costs a thread, not a connection: this is how many orders one batch may gather
DRAIN_SECONDS = 10  # how long requests in flight may take once the server was told to stop


def command(port: int) -> list[str]:
    """granian with one process; it stops listening on SIGTERM, finishes what is in flight, and leaves."""
    return [
        *[sys.executable, "-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port)],
        *["--workers", "1", "--blocking-threads", str(THREADS), "--http", "1", "--no-ws", "--log-level", "warning"],
        *["--workers-kill-timeout", str(DRAIN_SECONDS), "config.wsgi:application"],
    ]
