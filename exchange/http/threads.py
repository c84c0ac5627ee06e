"""Thread pool for work that blocks on the database or a lock, so that the event loop never blocks."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial, wraps
from threading import Lock
from typing import ParamSpec, TypeVar

from django.conf import settings
from django.db import connection

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_threads = ThreadPoolExecutor(settings.WEB_THREADS, "web")
_read_threads = ThreadPoolExecutor(settings.WEB_READ_THREADS, "read")


async def run_in_thread(
    work: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
) -> _Result:
    """Run `work` in a thread, then return its database connection to the pool."""
    return await _run_in(_threads, partial(work, *args, **kwargs))


async def read_in_thread(
    work: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
) -> _Result:
    """Run `work`, which only reads, in one of a few threads. More would contend for the interpreter with the orders."""
    return await _run_in(_read_threads, partial(work, *args, **kwargs))


async def _run_in(threads: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result:
    def run() -> _Result:
        try:
            return work()
        finally:
            connection.close()

    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, run)


def compute_once(compute: Callable[[], _Result]) -> Callable[[], _Result]:
    """Compute the result on the first call and cache it.

    Unlike with `functools.cache`, two threads never compute it at the same time: not every library is thread-safe.
    """
    lock, cached = Lock(), cache(compute)

    @wraps(compute)
    def result() -> _Result:
        with lock:
            return cached()

    return result
