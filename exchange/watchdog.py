"""Watchdog of this process, which is replaced by its supervisor if it stops responding: see `watchdog_child.py`."""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import suppress

from exchange import watchdog_child
from exchange.watchdog_child import INTERVAL_SECONDS


class Watchdog:
    """The pipe to the child process that watches this one."""

    def __init__(self, timeout_seconds: int) -> None:
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        command = [sys.executable, "-IS", watchdog_child.__file__, str(os.getpid()), str(timeout_seconds)]
        subprocess.Popen(command, stdin=read, start_new_session=True)  # noqa: S603 - a file of this project
        os.close(read)

    def run(self) -> None:
        """Report for as long as the threads of this process run. For a thread of its own."""
        while True:
            self._report()
            time.sleep(INTERVAL_SECONDS)

    async def run_on_loop(self) -> None:
        """Report for as long as the event loop runs."""
        while True:
            self._report()
            await asyncio.sleep(INTERVAL_SECONDS)

    def _report(self) -> None:
        with suppress(OSError):  # the child was killed or does not read
            os.write(self._write, b".")
