"""Logging: one JSON object per line on standard error, with the request's id if there is one."""

import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from multiprocessing.util import Finalize, register_after_fork
from typing import Any

import structlog

FLUSH_INTERVAL_SECONDS = 0.05
MAX_BUFFERED_LINES = 10_000  # above it, the oldest are dropped
MAX_WRITE_BYTES = 4_096  # PIPE_BUF: not mixed with the output of other processes

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


class JSONFormatter(structlog.stdlib.ProcessorFormatter):
    """Formatter that leaves the lines of the request log as they are: they are JSON already."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == "exchange.requests":
            return str(record.msg)
        if record.name.startswith("django.security"):  # an invalid request, such as one with a wrong Host
            record.exc_info = record.exc_text = None
        return super().format(record)


class BufferedHandler(logging.StreamHandler[Any]):
    """Handler that buffers INFO lines and writes many together; a warning is written immediately, with the buffer.

    When each line was written separately, the threads of a busy web server waited for each other at every line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffer: deque[str] = deque(maxlen=MAX_BUFFERED_LINES)
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._buffer.clear)  # the parent writes its own lines
        self._flush_at_exit()
        register_after_fork(self, BufferedHandler._flush_at_exit)

    def _flush_at_exit(self) -> None:
        """Flush when a process of multiprocessing ends, such as a web process: `logging` does not flush there."""
        Finalize(None, self.flush, exitpriority=0)

    def handle(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.INFO:
            return bool(super().handle(record))
        self._buffer.append(self.format(record) + self.terminator)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._flush_periodically, name="log", daemon=True)
            self._thread.start()
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.flush()
        except Exception:  # an error of the log must not end the work that is logged
            self.handleError(record)
        else:
            super().emit(record)

    def flush(self) -> None:
        """Write the buffered lines. `logging` calls this when an ordinary process ends."""
        with self.lock or threading.RLock():
            if self.stream.closed:  # a test's stream, after the test
                return
            text = ""
            for _ in range(len(self._buffer)):
                line = self._buffer.popleft()
                if len(text) + len(line) > MAX_WRITE_BYTES:
                    self._write(text)
                    text = ""
                text += line
            self._write(text)

    def _write(self, text: str) -> None:
        """Write ASCII text, in which a character is a byte, and flush the stream."""
        if text:
            self.stream.write(text)
        self.stream.flush()

    def _flush_periodically(self) -> None:
        while True:
            time.sleep(FLUSH_INTERVAL_SECONDS)
            with suppress(OSError, ValueError):
                self.flush()


# Values of a record that no line contains; `logging` would collect them for each line.
logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": JSONFormatter,
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            "foreign_pre_chain": _SHARED,
        },
    },
    "handlers": {"stderr": {"()": BufferedHandler, "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    # Django would log every 4xx a second time: the request log contains all of them.
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
