"""Speed against size: the same load with few and many resting orders, old orders and trades, and brokers.

Each size of a kind has its own running exchange. Their measurements alternate, because a machine's speed drifts.
"""

import time
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench.history import load_history
from bench.rounds import Measurement, alternate
from bench.run import Run
from config.local.processes import print_line

BASE = {"orders": 1_000, "trades": 1_000, "resting": 100, "brokers": 20, "symbols": 16}
CLIENTS = (64, 1)


def sizes(run: Run) -> dict[str, list[dict[str, int]]]:
    """Return the sizes by kind, smallest first; only one kind for a quick run."""
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
                Measurement(
                    "growth",
                    f"{kind} {size} {clients}",
                    clients,
                    partial(run.mix, *venue, clients=clients, symbols=16),
                )
                for clients in CLIENTS
                for size, venue in running.items()
            ]
            alternate(run, turns)


def _grown(run: Run, name: str, variant: dict[str, int]) -> Any:
    """Return a running exchange on a new database of this size."""
    started_at = time.monotonic()
    load_history(run.servers.create_migrated(name), **(BASE | variant))
    print_line(f"  {name}: loaded in {time.monotonic() - started_at:.0f} s")
    return run.venue(name, processes=run.best_processes(), database=name)
