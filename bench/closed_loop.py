"""Ours over HTTP, everything on: 1, 16 and 64 clients on 1 and 16 symbols, with 1 and 2 web processes."""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from bench.run import Run


@dataclass(frozen=True)
class Cell:
    """Clients, symbols and web processes, written 64x16x1."""

    clients: int
    symbols: int
    processes: int

    @classmethod
    def named(cls, name: str) -> Self:
        return cls(*map(int, name.split("x")))

    def __str__(self) -> str:
        return f"{self.clients}x{self.symbols}x{self.processes}"


ALL = [Cell(*each) for each in itertools.product((1, 16, 64), (16, 1), (1, 2))]
QUICK = [Cell.named(name) for name in ("1x16x1", "64x16x1", "64x1x1", "64x16x2")]


def measure(run: Run, only: Sequence[str] = ()) -> None:
    """Every cell in several rounds; an exchange for each number of web processes, side by side, that take turns."""
    cells = [Cell.named(name) for name in only] or (QUICK if run.quick else ALL)
    with ExitStack() as venues:
        running = {
            processes: venues.enter_context(run.venue(f"http{processes}", processes=processes))
            for processes in sorted({cell.processes for cell in cells})
        }
        for cell in cells * run.lengths.rounds:
            venue, world = running[cell.processes]
            run.note_better("http", str(cell), run.mix(venue, world, clients=cell.clients, symbols=cell.symbols))
