"""`POST /orders/batch` with 1, 10, 100 and 500 new orders per request, 4 clients on 16 symbols, one web process."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench import wrk
from bench.run import Run
from bench.turns import Contestant
from bench.venue import Venue

SIZES, CLIENTS, SYMBOLS = (1, 10, 100, 500), 4, 16
COMPARED = 100  # orders, by a bar


@contextmanager
def contestants(run: Run) -> Iterator[list[Contestant]]:
    """Each size."""
    sizes = SIZES[::2] if run.quick else SIZES
    with run.venue("batches") as (venue, world):
        yield [
            Contestant("batches", str(size), CLIENTS, partial(_measure, run, venue, world, size), size == COMPARED)
            for size in sizes
        ]


def _measure(run: Run, venue: Venue, world: Path, size: int) -> dict[str, Any]:
    """A while of it, warmed up; then the deliveries that it left are waited for."""
    for seconds in (run.lengths.warm_up, run.lengths.cell):
        arguments = [world, SYMBOLS, wrk.seed(), size]
        found = wrk.run("batch.lua", venue.url, arguments, clients=CLIENTS, seconds=seconds)
    return found | {"deliveries": venue.wait_for_deliveries()}
