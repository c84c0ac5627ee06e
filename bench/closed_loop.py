"""The whole exchange over HTTP: 1, 16 and 64 clients on 1 and 16 symbols, with 1 and 2 web processes."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

from bench.rounds import Measurement
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
COMPARED = (1, 64)  # clients
QUICK = [Cell.named(name) for name in ("1x16x1", "64x16x1", "64x1x1", "64x16x2")]


@contextmanager
def measurements(run: Run, only: Sequence[str] = ()) -> Iterator[list[Measurement]]:
    """Yield the measurements of every cell, with one exchange for each number of web processes."""
    cells = [Cell.named(name) for name in only] or (QUICK if run.quick else ALL)
    with ExitStack() as venues:
        running = {
            processes: venues.enter_context(run.venue(f"http{processes}", processes=processes))
            for processes in sorted({cell.processes for cell in cells})
        }
        yield [
            Measurement(
                "http",
                str(cell),
                cell.clients,
                partial(run.mix, *running[cell.processes], clients=cell.clients, symbols=cell.symbols),
                is_compared=cell.clients in COMPARED,
            )
            for cell in cells
        ]
