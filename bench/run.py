"""The state that all parts of a run share: servers, durations, results and their output."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import wrk
from bench.venue import Servers, Venue, venue
from config.local.processes import print_line


@dataclass(frozen=True)
class Lengths:
    """Durations in seconds, and sizes."""

    cell: float = 3
    warm_up: float = 1
    open_loop: float = 10
    overload: float = 30
    attack: float = 10
    day: float = 20
    day_warm_up: float = 3
    rounds: int = 5
    history: int = 2_000_000
    resting: int = 200_000


QUICK = Lengths(cell=2, warm_up=1, open_loop=3, overload=5, attack=3, day=5, rounds=1, history=50_000, resting=20_000)


@dataclass
class Run:
    servers: Servers
    lengths: Lengths = field(default_factory=Lengths)
    quick: bool = False
    results: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def venue(
        self, name: str, *, processes: int = 1, database: str | None = None, has_backoffice: bool = False
    ) -> Iterator[tuple[Venue, Path]]:
        """Run the exchange on its own database, and reconcile it at the end."""
        if database is None:
            self.servers.create_migrated(name)
        with venue(self.servers, database or name, processes=processes, has_backoffice=has_backoffice) as running:
            yield running, wrk.write_lua("world", running.world)
            running.wait_for_deliveries()
            seconds = running.reconcile()
        self.results.setdefault("reconcile_seconds", {})[name] = seconds
        print_line(f"  {name}: reconcile clean in {seconds} s")

    def mix(self, venue: Venue, world: Path, *, clients: int, symbols: int) -> dict[str, Any]:
        """Measure the mix after a warm-up, then wait for the pending deliveries."""
        wrk.mix(venue.url, world, clients=clients, symbols=symbols, seconds=self.lengths.warm_up)
        found = wrk.mix(venue.url, world, clients=clients, symbols=symbols, seconds=self.lengths.cell)
        if "beat" in venue.children:
            found["deliveries"] = venue.wait_for_deliveries()
        return found

    def record(self, part: str, name: str, found: dict[str, Any]) -> None:
        """Store the measurement and print it."""
        self.store(part, name, found)
        self.report(f"{part} {name}", found)

    def store(self, part: str, name: str, found: dict[str, Any]) -> None:
        self.results.setdefault(part, {})[name] = found

    @staticmethod
    def report(what: str, found: dict[str, Any]) -> None:
        print_line(f"  {what}: {describe(found)}")

    def best_processes(self) -> int:
        """Return the number of web processes with the best rate at 64 clients and 16 symbols; by default 1."""
        rates = {number: self.rate(f"64x16x{number}") for number in (1, 2)}
        return max(rates, key=lambda number: rates[number] or 0)

    def rate(self, cell: str) -> float | None:
        found = self.results.get("http", {}).get(cell)
        return found["orders_per_second"] if found else None


def describe(found: dict[str, Any]) -> str:
    """Return the figures as one line."""
    plain = {"orders_per_second": "orders/s", "requests_per_second": "requests/s", "resident_mb": "MB"}
    words = [f"{found[name]:.0f} {unit}" for name, unit in plain.items() if found.get(name)]
    for name in ("p50_ms", "place_p50_ms", "p99_ms", "p999_ms", "latency_ms"):
        if found.get(name):
            words.append(f"{name.removesuffix('_ms')} {found[name]:.2f} ms")
    if "statuses" in found:
        words.append(_shares(found["statuses"]))
    if found.get("deliveries", {}).get("due"):
        words.append(
            f"{found['deliveries']['due']} webhooks due at the end, sent in {found['deliveries']['seconds']} s"
        )
    if found.get("faults"):
        words.append(f"{found['faults']} FAULTS")
    return ", ".join(words)


def _shares(statuses: dict[str, int]) -> str:
    total = sum(statuses.values()) or 1
    return " ".join(f"{status}:{number / total:.1%}" for status, number in sorted(statuses.items()))
