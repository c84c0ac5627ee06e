"""Targets: ratios of two figures of the same run; for alternating measurements, the median of the rounds' ratios.

The targets of a trading day are absolute, because its rates are.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.attacks import ATTACKS

Results = dict[str, Any]
Rounds = Callable[[Results], list[float]]  # a figure in each round


def _one(_: Results) -> list[float]:
    return [1.0]


@dataclass(frozen=True)
class Target:
    """A ratio with a lower or an upper limit; `aim` is the desired value beyond the limit."""

    name: str
    above: Rounds
    below: Rounds = _one
    at_least: float | None = None
    at_most: float | None = None
    aim: float | None = None

    def figure(self, results: Results) -> float | None:
        """Return the ratio, or None if a part of it was not measured."""
        try:
            rounds = zip(self.above(results), self.below(results), strict=True)
            return statistics.median(above / below for above, below in rounds)
        except (KeyError, ValueError, ZeroDivisionError):
            return None

    def is_met(self, figure: float) -> bool:
        return (self.at_least is None or figure >= self.at_least) and (self.at_most is None or figure <= self.at_most)

    @property
    def limit(self) -> str:
        sign, number = ("≥", self.at_least) if self.at_most is None else ("≤", self.at_most)
        return f"{sign} {number:g}" + (f" (aim {self.aim:g})" if self.aim else "")


def rounds(part: str, name: str, figure: str = "orders_per_second") -> Rounds:
    """Return a figure of one measurement."""

    def value(results: Results) -> list[float]:
        found = results[part][name]
        return [float(each[figure]) for each in found.get("rounds", [found])]

    return value


def best(part: str, start: str = "") -> Rounds:
    """Return the rate of a part's best measurement whose name begins with `start`."""
    return lambda results: max(_starting(results, part, start, "orders_per_second"), key=statistics.median)


def lowest(part: str, start: str, figure: str) -> Rounds:
    return lambda results: min(_starting(results, part, start, figure), key=statistics.median)


def _starting(results: Results, part: str, start: str, figure: str) -> list[list[float]]:
    return [rounds(part, name, figure)(results) for name in results[part] if name.startswith(start)]


def _growth(kind: str, clients: int, pick: Callable[..., str]) -> Rounds:
    """Return the rate with the smallest (`min`) or largest (`max`) size of a kind."""

    def value(results: Results) -> list[float]:
        names = [name for name in results["growth"] if name.startswith(f"{kind} ") and name.endswith(f" {clients}")]
        return rounds("growth", pick(names, key=lambda name: int(name.split()[1])))(results)

    return value


def _day(load: str, kind: str, figure: str = "p99_ms") -> Rounds:
    return lambda results: [float(results["day"][load]["kinds"][kind][figure])]


def _all() -> Iterator[Target]:
    yield Target("64 clients, 16 symbols ÷ naive", best("http", "64x16x"), best("naive"), at_least=15)
    yield Target("64 clients, 16 symbols ÷ floor", best("http", "64x16x"), best("floor"), at_least=0.4, aim=0.5)
    yield Target("1 symbol ÷ 16 symbols, 64 clients", best("http", "64x1x"), best("http", "64x16x"), at_least=0.9)
    yield Target("two web processes ÷ one", rounds("http", "64x16x2"), rounds("http", "64x16x1"), at_least=1)
    yield Target("batches of 100 ÷ floor", rounds("batches", "100"), best("floor"), at_least=1.2, aim=2)
    one_client, latency = lowest("http", "1x16x", "place_p50_ms"), rounds("floor", "1", "latency_ms")
    yield Target("one client's p50 ÷ floor's latency", one_client, latency, at_most=3.5, aim=2.5)
    p99, p50 = rounds("open", "50", "p99_ms"), rounds("open", "50", "p50_ms")
    yield Target("p99 ÷ p50 at 50 % load", p99, p50, at_most=6)
    for load, most, aim in [("1x", 60, 30), ("2x", 200, 60), ("3x", 500, None)]:
        yield Target(f"day {load}: orders' p99, ms", _day(load, "order"), at_most=most, aim=aim)
    for load in ("1x", "2x"):
        yield Target(f"day {load}: rejected requests", _day(load, "rejected", "count"), at_most=0)
        yield Target(f"day {load}: drain of the backlog, s", rounds("day", load, "drain_seconds"), at_most=0.5)
    yield Target("day 1x: latest expiry, ms", _day("1x", "expiries", "max_ms"), at_most=2_000)
    yield Target("day 3x: rejections' p99, ms", _day("3x", "rejected"), at_most=500)
    yield Target("day, trivial server: p99, ms", _day("generator", "order"), at_most=5)
    for name, attack in ATTACKS.items():
        victim = rounds("attacks", name, "p99_ms"), rounds("attacks", "no attack", "p99_ms")
        yield Target(f"others' p99 beside {name}", *victim, at_most=attack.p99_at_most)
    operators = rounds("operators", "logins and exports", "p99_ms"), rounds("operators", "no operators", "p99_ms")
    yield Target("orders' p99 beside logins and exports", *operators, at_most=1.5)
    for kind, what in [("resting", "resting orders"), ("history", "old orders and trades"), ("brokers", "brokers")]:
        for clients, who in [(64, "64 clients"), (1, "1 client")]:
            name = f"most ÷ fewest {what}, {who}"
            yield Target(name, _growth(kind, clients, max), _growth(kind, clients, min), at_least=0.8)


ALL = list(_all())


def table(results: Results) -> list[dict[str, Any]]:
    """Return each target with its figure and verdict."""
    rows = []
    for target in ALL:
        figure = target.figure(results)
        verdict = "not measured" if figure is None else "ok" if target.is_met(figure) else "MISSED"
        rows.append({"target": target.name, "figure": figure, "limit": target.limit, "verdict": verdict})
    return rows


def lines(results: Results) -> Iterator[str]:
    """Yield the lines of the table."""
    for row in table(results):
        figure = "" if row["figure"] is None else f"{row['figure']:.2f}"
        yield f"{row['target']:<48} {figure:>8}   {row['limit']:<18} {row['verdict']}"


def faults(results: Any) -> int:
    """Return the sum of all counts of 5xx responses and lost connections."""
    if isinstance(results, dict):
        return int(results.get("faults", 0)) + sum(map(faults, results.values()))
    return sum(map(faults, results)) if isinstance(results, list) else 0
