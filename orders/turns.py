"""Web processes of one server execute their lists in turns.

It is the database's locks that keep every book right. But lists that wait for each other there were taken when they
began to wait: half as long, and a quarter dearer for PostgreSQL. Who waits here takes what has come when it may begin.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def turn() -> Iterator[None]:
    """Wait until no other process of this server executes a list; who is killed gives its turn up."""
    server = _server()
    if server is None:
        yield
        return
    fcntl.flock(server, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(server, fcntl.LOCK_UN)


@cache
def _server() -> int | None:
    """What all processes of the server see, and nobody has to make or remove: the entry of their parent in /proc.

    None where it may not be seen: then there are no turns.
    """
    try:
        return os.open(f"/proc/{os.getppid()}", os.O_RDONLY)
    except OSError:
        return None
