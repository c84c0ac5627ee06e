"""Configuration of gunicorn, the server of the back office: one process, whose threads send pages and exports.

A thread sends a response no faster than its client reads it, so a long export needs little memory. The process has a
low priority and few database connections, so that password hashing and exports do not slow orders.
"""

import os
import socket
import struct
from typing import Any

NICENESS = int(os.environ.get("BACKOFFICE_NICENESS", "10"))
CLIENT_SECONDS = 20  # an idle connection is closed after it, which frees its thread
POOL_SIZE = 8  # database connections; the API has DATABASE_POOL_SIZE in each process

wsgi_app = "config.wsgi:application"
worker_class = "gthread"
workers = 1  # limits such as MAX_CONCURRENT_EXPORTS hold for the whole site
threads = 24  # exports take up to MAX_CONCURRENT_EXPORTS of them
timeout = 60  # seconds without a heartbeat of the worker before it is replaced
graceful_timeout = 10
keepalive = 5
loglevel = "warning"
control_socket_disable = True
raw_env = [f"DATABASE_POOL_SIZE={POOL_SIZE}"]


def post_worker_init(worker: Any) -> None:
    """Lower the priority once the site is loaded, so that a busy machine does not delay the start."""
    os.nice(NICENESS)


def when_ready(server: Any) -> None:
    """Limit how long a thread waits for a client: accepted sockets inherit the timeouts of the listening one."""
    for listener in server.LISTENERS:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            listener.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", CLIENT_SECONDS, 0))
