"""What must be reached: each figure is a ratio of two that were measured in the same run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """A ratio that must be at least, or at most, so much; `aim` is what we would like."""

    name: str
    above: Callable[[Results], float]
    below: Callable[[Results], float]
    at_least: float | None = None
    at_most: float | None = None
    aim: float | None = None

    def figure(self, results: Results) -> float | None:
        """None where a part of it was not measured."""
        try:
            return self.above(results) / self.below(results)
        except (KeyError, ValueError, ZeroDivisionError):
            return None

    def is_met(self, figure: float) -> bool:
        return (self.at_least is None or figure >= self.at_least) and (self.at_most is None or figure <= self.at_most)

    @property
    def limit(self) -> str:
        sign, number = ("≥", self.at_least) if self.at_most is None else ("≤", self.at_most)
        return f"{sign} {number:g}" + (f" (aim {self.aim:g})" if self.aim else "")


def rate(*path: str) -> Callable[[Results], float]:
    """Orders per second of one measurement."""
    return _value(*path, "orders_per_second")


def _value(*path: str) -> Callable[[Results], float]:
    def value(results: Results) -> float:
        found: Any = results
        for name in path:
            found = found[name]
        return float(found)

    return value


def best(part: str) -> Callable[[Results], float]:
    """The best rate of a part."""
    return lambda results: max(float(each["orders_per_second"]) for each in results[part].values())


def ours(cell: str) -> Callable[[Results], float]:
    """Ours with the better number of web processes; `cell` is clients x symbols."""
    return lambda results: max(
        float(found["orders_per_second"]) for name, found in results["http"].items() if name.startswith(f"{cell}x")
    )


def _one_client(results: Results) -> float:
    return min(float(found["place_p50_ms"]) for name, found in results["http"].items() if name.startswith("1x16x"))


def _growth(kind: str, clients: int, pick: Callable[..., str]) -> Callable[[Results], float]:
    """The rate with the smallest (min) or largest (max) of a kind."""

    def value(results: Results) -> float:
        names = [name for name in results["growth"] if name.startswith(f"{kind} ") and name.endswith(f" {clients}")]
        return float(results["growth"][pick(names, key=lambda name: int(name.split()[1]))]["orders_per_second"])

    return value


def _all() -> Iterator[Bar]:
    yield Bar("64 clients, 16 symbols ÷ naive", ours("64x16"), best("naive"), at_least=15)
    yield Bar("64 clients, 16 symbols ÷ floor", ours("64x16"), best("floor"), at_least=0.4, aim=0.5)
    yield Bar("1 symbol ÷ 16 symbols, 64 clients", ours("64x1"), ours("64x16"), at_least=0.9)
    yield Bar("two web processes ÷ one", rate("http", "64x16x2"), rate("http", "64x16x1"), at_least=1)
    yield Bar("batches of 100 ÷ floor", rate("batches", "100"), best("floor"), at_least=1.2, aim=2)
    latency = _value("floor", "1", "latency_ms")
    yield Bar("one client's p50 ÷ floor's latency", _one_client, latency, at_most=3.5, aim=2.5)
    p99, p50 = _value("open", "50", "p99_ms"), _value("open", "50", "p50_ms")
    yield Bar("p99 ÷ p50 at 50 % load", p99, p50, at_most=6)
    for kind, what in [("resting", "resting orders"), ("history", "old orders and trades"), ("brokers", "brokers")]:
        for clients, who in [(64, "64 clients"), (1, "1 client")]:
            name = f"most ÷ fewest {what}, {who}"
            yield Bar(name, _growth(kind, clients, max), _growth(kind, clients, min), at_least=0.8)


ALL = list(_all())


def table(results: Results) -> list[dict[str, Any]]:
    """Each bar with its figure and whether it is met; what was not measured has neither."""
    rows = []
    for bar in ALL:
        figure = bar.figure(results)
        verdict = "not measured" if figure is None else "ok" if bar.is_met(figure) else "BELOW"
        rows.append({"bar": bar.name, "figure": figure, "limit": bar.limit, "verdict": verdict})
    return rows


def lines(results: Results) -> Iterator[str]:
    """The table as text."""
    for row in table(results):
        figure = "" if row["figure"] is None else f"{row['figure']:.2f}"
        yield f"{row['bar']:<48} {figure:>8}   {row['limit']:<18} {row['verdict']}"


def faults(results: Any) -> int:
    """Answers of 5xx and lost connections, wherever they were counted."""
    if isinstance(results, dict):
        return int(results.get("faults", 0)) + sum(map(faults, results.values()))
    return sum(map(faults, results)) if isinstance(results, list) else 0
