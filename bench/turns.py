"""Measures things in turns, round by round, back and forth: a machine's speed drifts, and what stands side by side
has met the same machine."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.run import Run

Found = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """What is measured in turns with others, and where it is kept."""

    part: str
    name: str
    clients: int
    measure: Callable[[], Found]
    is_compared: bool = True  # by a bar


def side_by_side(contestants: Iterable[Contestant]) -> list[Contestant]:
    """What bars compare stands close together: what has one client, and what has many; between them is all else."""
    return sorted(contestants, key=lambda each: (each.clients > 1, each.is_compared, each.clients))


def take_turns(run: Run, contestants: Sequence[Contestant]) -> None:
    """Several rounds of all; of each the round of the median rate is kept, and the figures of every round beside it."""
    rounds: dict[tuple[str, str], list[Found]] = defaultdict(list)
    for number in range(run.lengths.rounds):
        for each in contestants if number % 2 == 0 else reversed(contestants):
            found = each.measure()
            rounds[each.part, each.name].append(found)
            run.tell(f"{each.part} {each.name}", found)
    for (part, name), every in rounds.items():
        run.keep(part, name, _median(every) | {"rounds": [_figures(found) for found in every]})


def _median(rounds: Sequence[Found]) -> Found:
    """The round of the median rate; what went wrong in any of them stays."""
    rate = statistics.median_low(found["orders_per_second"] for found in rounds)
    median = next(found for found in rounds if found["orders_per_second"] == rate)
    return median | {"faults": sum(found.get("faults", 0) for found in rounds)}


def _figures(found: Found) -> Found:
    """What bars compare."""
    return {name: found[name] for name in ("orders_per_second", "latency_ms", "place_p50_ms") if name in found}
