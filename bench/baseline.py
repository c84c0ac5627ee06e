"""The naive matcher under the same load as ours: behind granian too, the same tables, no webhooks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from bench.run import Run
from bench.turns import Contestant
from bench.venue import naive_venue
from bench.wrk import write_lua

CLIENTS, PROCESSES = (4, 8), (1, 2)  # with more clients it gets slower


@contextmanager
def contestants(run: Run) -> Iterator[list[Contestant]]:
    """Each number of clients with each number of processes, on 16 symbols; it is compared by the best."""
    with run.venue("naive") as (venue, _):  # admits the brokers
        world = venue.world
    path = write_lua("world", world)
    with ExitStack() as venues:
        running = {
            processes: venues.enter_context(naive_venue(run.servers, "naive", world, processes=processes))
            for processes in PROCESSES
        }
        yield [
            Contestant(
                "naive",
                f"{clients}x16x{processes}",
                clients,
                partial(run.mix, running[processes], path, clients=clients, symbols=16),
            )
            for clients in CLIENTS
            for processes in PROCESSES
        ]
        running[1].reconcile()
