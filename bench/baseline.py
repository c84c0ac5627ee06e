"""The naive matcher under the same load: also behind granian, with the same tables, without webhooks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from bench.rounds import Measurement
from bench.run import Run
from bench.venue import naive_venue
from bench.wrk import write_lua

CLIENTS, PROCESSES = (4, 8), (1, 2)  # more clients are slower


@contextmanager
def measurements(run: Run) -> Iterator[list[Measurement]]:
    """Yield the measurements of each number of clients and processes, on 16 symbols."""
    with run.venue("naive") as (venue, _):  # creates the brokers
        world = venue.world
    path = write_lua("world", world)
    with ExitStack() as venues:
        running = {
            processes: venues.enter_context(naive_venue(run.servers, "naive", world, processes=processes))
            for processes in PROCESSES
        }
        yield [
            Measurement(
                "naive",
                f"{clients}x16x{processes}",
                clients,
                partial(run.mix, running[processes], path, clients=clients, symbols=16),
            )
            for clients in CLIENTS
            for processes in PROCESSES
        ]
        running[1].reconcile()
