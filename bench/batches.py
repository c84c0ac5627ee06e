"""`POST /orders/batch` with 1, 10, 100 and 500 new orders per request, 4 clients on 16 symbols, one web process."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench import wrk
from bench.rounds import Measurement
from bench.run import Run
from bench.venue import Venue

SIZES, CLIENTS, SYMBOLS = (1, 10, 100, 500), 4, 16
COMPARED = 100  # the size in a target


@contextmanager
def measurements(run: Run) -> Iterator[list[Measurement]]:
    """Yield the measurements of each size."""
    sizes = SIZES[::2] if run.quick else SIZES
    with run.venue("batches") as (venue, world):
        yield [
            Measurement("batches", str(size), CLIENTS, partial(_measure, run, venue, world, size), size == COMPARED)
            for size in sizes
        ]


def _measure(run: Run, venue: Venue, world: Path, size: int) -> dict[str, Any]:
    """Measure after a warm-up, then wait for the pending deliveries."""
    for seconds in (run.lengths.warm_up, run.lengths.cell):
        arguments = [world, SYMBOLS, wrk.seed(), size]
        found = wrk.run("batch.lua", venue.url, arguments, clients=CLIENTS, seconds=seconds)
    return found | {"deliveries": venue.wait_for_deliveries()}
