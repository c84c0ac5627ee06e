"""One JSON object per log line, on standard error, each with the request's id when there is one."""

import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from multiprocessing.util import Finalize, register_after_fork
from typing import Any

import structlog

PAUSE_SECONDS = 0.05
WAITING_MAX = 10_000  # lines; more are not kept
PIECE_BYTES = 4_096  # what the system writes in one piece, though several processes write to the same place

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


class JSONLines(structlog.stdlib.ProcessorFormatter):
    """What the request log says is a line already."""

    def format(self, record: logging.LogRecord) -> str:
        return str(record.msg) if record.name == "exchange.requests" else super().format(record)


class Lines(logging.StreamHandler[Any]):
    """Writes what is only told (INFO) every now and then, many lines at once; a warning at once, and what came before.

    Writing line by line, the threads of a busy web server waited for each other and for the interpreter at every line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[str] = deque(maxlen=WAITING_MAX)
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._waiting.clear)  # they are the parent's to write
        self._flush_at_the_end()
        register_after_fork(self, Lines._flush_at_the_end)

    def _flush_at_the_end(self) -> None:
        """Also of a process of multiprocessing, such as the web server's: those end without what `logging` would do."""
        Finalize(None, self.flush, exitpriority=0)

    def handle(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.INFO:
            return bool(super().handle(record))
        self._waiting.append(self.format(record) + self.terminator)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._flush_for_ever, name="log", daemon=True)
            self._thread.start()
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.flush()
        except Exception:  # whatever is wrong with the log, what is logged goes on
            self.handleError(record)
        else:
            super().emit(record)

    def flush(self) -> None:
        """Write what waits; `logging` asks for it when an ordinary process ends."""
        with self.lock or threading.RLock():
            if self.stream.closed:  # as a test's is after it
                return
            piece = ""
            for _ in range(len(self._waiting)):
                line = self._waiting.popleft()
                if len(piece) + len(line) > PIECE_BYTES:
                    self._write(piece)
                    piece = ""
                piece += line
            self._write(piece)

    def _write(self, piece: str) -> None:
        """Lines are ASCII: a character is a byte."""
        if piece:
            self.stream.write(piece)
        self.stream.flush()

    def _flush_for_ever(self) -> None:
        while True:
            time.sleep(PAUSE_SECONDS)
            with suppress(OSError, ValueError):
                self.flush()


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": JSONLines,
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            "foreign_pre_chain": _SHARED,
        },
    },
    "handlers": {"stderr": {"()": Lines, "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    # Django would log every 4xx a second time: the request log has them all.
    "loggers": {
        "django.request": {"level": "CRITICAL"},
        "django.server": {"level": "CRITICAL"},
        "axes": {"level": "WARNING"},
    },
}

structlog.configure(
    processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=True,
)
