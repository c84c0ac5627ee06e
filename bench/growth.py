"""Does it get slower as it grows? The same load with few and many resting orders, old orders and trades, brokers.

The sizes of one kind run side by side, each on an exchange of its own, and take turns, since a machine's speed drifts.
"""

import time
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench.history import load_history
from bench.run import Run
from bench.turns import Contestant, take_turns
from config.local.supervisor import print_line

BASE = {"orders": 1_000, "trades": 1_000, "resting": 100, "brokers": 20, "symbols": 16}
CLIENTS = (64, 1)


def sizes(run: Run) -> dict[str, list[dict[str, int]]]:
    """By kind, smallest first, largest last; a quick run tries the code with one kind."""
    past, resting = run.lengths.history, run.lengths.resting
    kinds = {
        "resting": [{"resting": number} for number in sorted({100, min(10_000, resting), resting})],
        "history": [{"orders": number, "trades": number} for number in (10_000, past)],
        "brokers": [{"brokers": number} for number in (10, 1_000)],
    }
    return {"history": kinds["history"]} if run.quick else kinds


def measure(run: Run) -> None:
    for kind, variants in sizes(run).items():
        with ExitStack() as venues:
            running = {}
            for variant in variants:
                size = str(next(iter(variant.values())))
                running[size] = venues.enter_context(_grown(run, f"{kind}-{size}", variant))
            for venue, world in running.values():  # until every broker's key is known
                run.mix(venue, world, clients=CLIENTS[0], symbols=16)
            turns = [
                Contestant(
                    "growth",
                    f"{kind} {size} {clients}",
                    clients,
                    partial(run.mix, *venue, clients=clients, symbols=16),
                )
                for clients in CLIENTS
                for size, venue in running.items()
            ]
            take_turns(run, turns)


def _grown(run: Run, name: str, variant: dict[str, int]) -> Any:
    """An exchange with so much in it."""
    started_at = time.monotonic()
    load_history(run.servers.migrated(name), **(BASE | variant))
    print_line(f"  {name}: loaded in {time.monotonic() - started_at:.0f} s")
    return run.venue(name, processes=run.best_processes(), database=name)
