"""Answers of any length, sent piece by piece while they are made.

The web server takes every piece of a stream at once and keeps what its client has not taken yet: a slow client would
have it hold the whole. A file it reads no faster than its client does. So the pieces go through a named pipe, which it
reads as a file: the pipe holds 64 KiB, and whoever fills it waits. Each has a name of its own, never used again: a
server that comes late finds nothing, and never what is somebody else's.
"""

import fcntl
import os
import select
import shutil
import socket
import struct
import tempfile
import termios
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from typing import Any

import structlog
from django.conf import settings
from django.db import connection
from django.http import StreamingHttpResponse

_log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.002  # between two looks whether the server reads already


class Stream(StreamingHttpResponse):
    """An answer that comes in pieces, nobody knows how many; the first is not empty."""


class NobodyReads(Exception):
    """The client has hung up."""


class Pipe:
    """What pieces are written to, and `path`, the file that the web server reads them from."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="bourse-stream-")  # nobody else may look into it
        self.path = f"{self._folder}/pipe"
        os.mkfifo(self.path)
        self._reading = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self._writing = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._writing, select.POLLOUT)

    def write(self, piece: bytes, deadline: float) -> None:
        """Write it all; `NobodyReads` when that is so, `TimeoutError` when it takes too long."""
        left = memoryview(piece)
        while True:
            _, events = next(iter(self._poll.poll(max(0, deadline - time.monotonic()) * 1000)), (0, 0))
            if events & select.POLLERR:
                raise NobodyReads
            if not left:
                return
            if not events:
                raise TimeoutError
            try:
                left = left[os.write(self._writing, left) :]
            except BrokenPipeError as error:  # since we looked
                raise NobodyReads from error

    def hand_over(self, deadline: float) -> None:
        """Leave reading to the server, once it has read all there is: with our own end open, it would never break."""
        while _bytes_in(self._reading):
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(_LOOK_SECONDS)
        self._close_reading()

    def close(self) -> None:
        self._close_reading()
        os.close(self._writing)

    def _close_reading(self) -> None:
        if self._reading >= 0:
            shutil.rmtree(self._folder)
            os.close(self._reading)
            self._reading = -1


def pour(pieces: Iterable[bytes], pipe: Pipe, client: str) -> None:
    """Make the pieces, each when the one before was taken, and hold no connection to the database meanwhile.

    It ends with the last piece, or when the client has hung up. Where it ends before that, the connection to the client
    is cut first: the end of the pipe alone would pass off a part for the whole.
    """
    with closing(pipe):
        try:
            _write_all(pieces, pipe)
        except NobodyReads:
            _log.info("stream_left")
        except Exception as error:
            cut_off(client)
            _log.warning("stream_cut_off", exc_info=None if isinstance(error, TimeoutError) else error)


def _write_all(pieces: Iterable[bytes], pipe: Pipe) -> None:
    is_handed_over = False
    for piece in pieces:
        connection.close()
        deadline = time.monotonic() + settings.WEB_STREAM_PIECE_SECONDS
        pipe.write(piece, deadline)
        if piece and not is_handed_over:
            pipe.hand_over(deadline)
            is_handed_over = True


def cut_off(client: str) -> None:
    """End the connection with this client, "address:port", which the web server has in its hands."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.fromfd(int(name), socket.AF_INET, socket.SOCK_STREAM) as found:
            if _address(found.getpeername()) == client:  # an OSError if it is no socket at all
                found.shutdown(socket.SHUT_RDWR)


def _address(peer: Any) -> str:
    """As the web server writes it; a Unix socket's is none."""
    if not isinstance(peer, tuple):
        return ""
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bytes_in(pipe: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(count)
