"""A trading day: the average load of a national exchange, open loop, at multiples of its rate.

Each multiple has its own exchange on a new database, in which 100 brokers hold 450 instruments.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from bench import mix, open_loop, profiling, wrk
from bench.generator import percentile, percentiles
from bench.history import load_history
from bench.run import Run
from bench.venue import FOLDER, MID, Venue
from config.local import web
from config.local.processes import print_line, wait_until

LOADS = {"0.5x": 0.5, "1x": 1, "2x": 2, "3x": 3}
QUICK = ["1x"]
BROKERS, SYMBOLS = 100, 450
PAST = {"orders": 1_000, "trades": 1_000, "resting": 9_000}  # ten levels on both sides of each book
EXPIRY_SECONDS = 30.0  # after the load

_RESTING = "SELECT id, broker_id FROM orders_order WHERE orders_is_working(status)"
# From `expires_at` until the event was written, the time of its id; for an order that is still working, until now.
_DELAYS = """
SELECT extract(epoch FROM uuid_extract_timestamp(id) - occurred_at)::float AS delay FROM webhooks_event
WHERE type = 'order.expired' AND occurred_at BETWEEN %(since)s AND %(until)s
UNION ALL
SELECT extract(epoch FROM now() - expires_at)::float FROM orders_order
WHERE orders_is_working(status) AND expires_at BETWEEN %(since)s AND %(until)s AND expires_at <= now()
"""
_OVERDUE = "SELECT count(*) FROM orders_order WHERE orders_is_working(status) AND expires_at <= now()"


def measure(run: Run, loads: Sequence[str] = (), processes: int = web.PROCESSES) -> None:
    """Measure the loads, all by default, and the generator by itself at the highest one."""
    names = loads or (QUICK if run.quick else LOADS)
    for name in names:
        database = f"day-{name}"
        load_history(run.servers.create_migrated(database), **PAST, brokers=BROKERS, symbols=SYMBOLS)
        with run.venue(database, processes=processes, database=database) as (venue, _):
            found = _measure(run, venue, LOADS[name])
            venue.wait_for_deliveries()
        _record(run, name, found)
    brokers = [{"id": f"bench-{number}", "key": "0" * 80} for number in range(BROKERS)]
    _record(run, "generator", _load(run, run.servers.receiver_port, brokers, [], max(LOADS[name] for name in names)))


def _load(run: Run, port: int, brokers: Any, resting: Any, load: float) -> dict[str, Any]:
    """Send the load to a server and return the generator's figures."""
    symbols = [{"name": f"S{number}", "mid": MID} for number in range(1, SYMBOLS + 1)]
    world = FOLDER / "world.json"
    world.write_text(json.dumps({"brokers": brokers, "symbols": symbols, "resting": resting}))
    arguments = {"mix": "day", "port": port, "world": str(world), "rate": sum(mix.kind_rates(load).values())}
    return open_loop.generate(
        arguments | {"seed": wrk.seed(), "seconds": run.lengths.day, "warm_up": run.lengths.day_warm_up}
    )


def _measure(run: Run, venue: Venue, load: float) -> dict[str, Any]:
    """Return the generator's figures, the CPU seconds by process and the delays of the expiries."""
    children = {**venue.children, "postgres": run.servers.postgres.child, "valkey": run.servers.valkey.child}
    pids = {name: child.pid for name, child in children.items() if child.pid}
    with run.servers.connect(venue.database) as connection:
        resting = [{"id": str(order_id), "broker": broker} for order_id, broker in connection.execute(_RESTING)]
        found, used = profiling.cpu_seconds(pids, lambda: _load(run, venue.port, venue.world["brokers"], resting, load))
        until = datetime.now(UTC) - timedelta(seconds=found["drain_seconds"])
        wait_until(lambda: connection.execute(_OVERDUE).fetchone() == (0,), EXPIRY_SECONDS)
        delays = expiry_delays(connection, until - timedelta(seconds=run.lengths.day), until)
    found["kinds"]["expiries"] = {"count": len(delays), **percentiles(delays), "max_ms": percentile(delays, 1)}
    found["faults"] -= found["statuses"].get("503", 0)  # a result, which has a target
    return found | {"cpu_seconds": used}


def expiry_delays(connection: psycopg.Connection, since: datetime, until: datetime) -> list[float]:
    """Return the delays in seconds of the expiries due between these times."""
    return [delay for (delay,) in connection.execute(_DELAYS, {"since": since, "until": until})]


def _record(run: Run, name: str, found: dict[str, Any]) -> None:
    run.record("day", name, found)
    for line in _lines(found):
        print_line(f"    {line}")


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield the figures that `describe` leaves out."""
    for kind, figures in found["kinds"].items():
        times = [f"{name.removesuffix('_ms'):>4} {value:9.1f}" for name, value in figures.items() if name != "count"]
        yield f"{kind:<10} {figures['count']:>7} {' '.join(times)} ms"
    yield (
        f"backlog: at most {found['backlog_max']}, at the end {found['backlog_at_end']}, drained in "
        f"{found['drain_seconds']} s; {found['waited_for_a_connection']} requests waited for a connection"
    )
    yield f"generator: p99 {found['generator_late_p99_ms']} ms late, {found['generator_cores']:.1%} of a core"
    if "cpu_seconds" in found:
        yield "CPU s: " + ", ".join(f"{name} {seconds}" for name, seconds in found["cpu_seconds"].items())
