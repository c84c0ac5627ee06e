"""Threads for what waits for the database or for its turn, so that the event loop waits for nothing."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, wraps
from threading import Lock
from typing import ParamSpec, TypeVar

from django.conf import settings
from django.db import connection

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_threads = ThreadPoolExecutor(settings.WEB_THREADS, "web")


async def in_thread(
    work: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
) -> _Result:
    """Have it done in a thread, which gives back its connection to the database at the end."""

    def run() -> _Result:
        try:
            return work(*args, **kwargs)
        finally:
            connection.close()

    return await asyncio.get_running_loop().run_in_executor(_threads, copy_context().run, run)


def once(compute: Callable[[], _Result]) -> Callable[[], _Result]:
    """Compute a result on the first call and cache it.

    `functools.cache` alone lets several threads compute it at the same time, and not every library is thread-safe.
    """
    lock, cached = Lock(), cache(compute)

    @wraps(compute)
    def result() -> _Result:
        with lock:
            return cached()

    return result
