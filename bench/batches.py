"""`POST /orders/batch` with 1, 10, 100 and 500 new orders per request, 4 clients on 16 symbols."""

from bench import wrk
from bench.run import Run

SIZES, CLIENTS, SYMBOLS = (1, 10, 100, 500), 4, 16


def measure(run: Run) -> None:
    with run.venue("batches", processes=run.best_processes()) as (venue, world):
        for size in SIZES[::2] if run.quick else SIZES:
            for seconds in (run.lengths.warm_up, run.lengths.cell):
                arguments = [world, SYMBOLS, wrk.seed(), size]
                found = wrk.run("batch.lua", venue.url, arguments, clients=CLIENTS, seconds=seconds)
            run.note("batches", str(size), found | {"deliveries": venue.wait_for_deliveries()})
