"""The naive matcher under the same load as ours: granian with one process, the same tables, no webhooks."""

from bench.run import Run
from bench.venue import naive_venue
from bench.wrk import write_lua


def measure(run: Run) -> None:
    """4 and 16 clients on 16 symbols (with more it gets slower); it is compared by the better."""
    with run.venue("naive") as (venue, _):  # admits the brokers
        world = venue.world
    with naive_venue(run.servers, "naive", world) as naive:
        for clients in (4, 16) * run.lengths.rounds:
            found = run.mix(naive, write_lua("world", world), clients=clients, symbols=16)
            run.note_better("naive", f"{clients}x16", found)
        naive.reconcile()
