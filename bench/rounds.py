"""Alternating measurements, in rounds forwards and backwards: a machine's speed drifts, so measurements that are
compared are taken close together."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.run import Run

Figures = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """A measurement that alternates with others, and the name of its result."""

    part: str
    name: str
    clients: int
    measure: Callable[[], Figures]
    is_compared: bool = True  # in a target


def order_for_comparison(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Sort measurements so that those compared in targets are adjacent: one client first, many clients last."""
    return sorted(measurements, key=lambda each: (each.clients > 1, each.is_compared, each.clients))


def alternate(run: Run, measurements: Sequence[Measurement]) -> None:
    """Run several rounds, and store each measurement's round with the median rate, with the figures of all rounds."""
    rounds: dict[tuple[str, str], list[Figures]] = defaultdict(list)
    for number in range(run.lengths.rounds):
        for each in measurements if number % 2 == 0 else reversed(measurements):
            found = each.measure()
            rounds[each.part, each.name].append(found)
            run.report(f"{each.part} {each.name}", found)
    for (part, name), every in rounds.items():
        run.store(part, name, _median(every) | {"rounds": [_figures(found) for found in every]})


def _median(rounds: Sequence[Figures]) -> Figures:
    """Return the round with the median rate, with the faults of all rounds."""
    rate = statistics.median_low(found["orders_per_second"] for found in rounds)
    median = next(found for found in rounds if found["orders_per_second"] == rate)
    return median | {"faults": sum(found.get("faults", 0) for found in rounds)}


def _figures(found: Figures) -> Figures:
    """Return the figures that targets compare."""
    return {name: found[name] for name in ("orders_per_second", "latency_ms", "place_p50_ms") if name in found}
