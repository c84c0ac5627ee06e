"""The naive matcher under the same load as ours: behind granian too, the same tables, no webhooks."""

from contextlib import ExitStack

from bench.run import Run
from bench.venue import naive_venue
from bench.wrk import write_lua


def measure(run: Run) -> None:
    """4 and 8 clients on 16 symbols (with more it gets slower), 1 and 2 processes; it is compared by the best."""
    with run.venue("naive") as (venue, _):  # admits the brokers
        world = venue.world
    with ExitStack() as venues:
        running = {
            processes: venues.enter_context(naive_venue(run.servers, "naive", world, processes=processes))
            for processes in (1, 2)
        }
        for clients in (4, 8) * run.lengths.rounds:
            for processes, naive in running.items():
                found = run.mix(naive, write_lua("world", world), clients=clients, symbols=16)
                run.note_better("naive", f"{clients}x16x{processes}", found)
        running[1].reconcile()
