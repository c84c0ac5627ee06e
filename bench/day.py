"""A trading day: the average load of a national exchange, open loop, at multiples of its rate.

Each multiple has its own exchange on a new database, in which 100 brokers hold 450 instruments.
"""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from bench import mix, open_loop, profiling, wrk
from bench.history import load_history
from bench.run import Run
from bench.venue import FOLDER, MID, Venue
from config.local import web
from config.local.processes import print_line, wait_until

LOADS = {"0.5x": 0.5, "1x": 1, "2x": 2, "3x": 3}
REJECTING = ("3x",)  # the load at which 503 is expected
BROKERS, SYMBOLS, RESTING = 100, 450, 9_000  # ten levels on both sides of each book
PAST = {"orders": 1_000, "trades": 1_000, "resting": RESTING, "brokers": BROKERS, "symbols": SYMBOLS}
EXPIRY_SECONDS = 30.0  # after the load

_RESTING = "SELECT id, broker_id FROM orders_order WHERE orders_is_working(status)"
_OVERDUE = "SELECT count(*) FROM orders_order WHERE orders_is_working(status) AND expires_at <= now()"
# The id of an event has the time at which it was written.
_EXPIRIES = """
SELECT count(*), coalesce(percentile_cont(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (ORDER BY late), '{0,0,0}')
FROM (SELECT extract(epoch FROM uuid_extract_timestamp(id) - occurred_at)::float AS late FROM webhooks_event
      WHERE type = 'order.expired' AND occurred_at BETWEEN %s AND %s) AS expiry
"""


def measure(run: Run, loads: Sequence[str] = (), processes: int = web.PROCESSES) -> None:
    """Measure the loads, all by default."""
    for name in loads or LOADS:
        database = f"day-{name}"
        load_history(run.servers.create_migrated(database), **PAST)
        with run.venue(database, processes=processes, database=database) as (venue, _):
            found = _measure(run, venue, LOADS[name])
            if name in REJECTING:
                found["faults"] -= found["statuses"].get("503", 0)
            venue.wait_for_deliveries()
        run.record("day", name, found)
        for line in _lines(found):
            print_line(f"    {line}")


def _measure(run: Run, venue: Venue, load: float) -> dict[str, Any]:
    """Run the load and return the generator's figures, the CPU time by process and the delays of the expiries."""
    with venue.servers.connect(venue.database) as connection:
        resting = [{"id": str(id_), "broker": broker} for id_, broker in connection.execute(_RESTING)]
        symbols = [{"name": f"S{number}", "mid": MID} for number in range(1, SYMBOLS + 1)]
        path = FOLDER / "world.json"
        path.write_text(json.dumps({"brokers": venue.world["brokers"], "symbols": symbols, "resting": resting}))
        rate, seconds = sum(mix.kind_rates(load).values()), run.lengths.day
        arguments = {"mix": "day", "port": venue.port, "world": str(path), "rate": rate, "seed": wrk.seed()}
        arguments |= {"seconds": seconds, "warm_up": run.lengths.day_warm_up}
        servers = run.servers
        children = {**venue.children, "postgres": servers.postgres.child, "valkey": servers.valkey.child}
        pids = {name: child.pid for name, child in children.items() if child.pid}
        found, used = profiling.cpu_seconds(pids, lambda: open_loop.generate(arguments))
        ended = time.monotonic()

        def overdue() -> int:
            row = connection.execute(_OVERDUE).fetchone()
            return int(row[0]) if row else 0

        found["overdue_at_end"] = overdue()
        wait_until(lambda: overdue() == 0, EXPIRY_SECONDS)
        found["overdue_seconds"] = round(time.monotonic() - ended, 2)
        since, until = (datetime.fromtimestamp(found.pop(name), UTC) for name in ("started_at", "ended_at"))
        row = connection.execute(_EXPIRIES, [since, until]).fetchone()
        assert row is not None
        p50, p99, most = row[1]
    expiries = {"count": row[0], "p50_s": round(p50, 3), "p99_s": round(p99, 3), "max_s": round(most, 3)}
    return found | {"expiries": expiries, "expiry_max_s": most, "cpu_seconds": used}


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{kind:<10} {figures.get('count', ''):>7}  "
        + "  ".join(f"{name.removesuffix('_ms')} {figures[name]:8.1f} ms" for name in ("p50_ms", "p99_ms", "p999_ms"))
        for kind, figures in found["kinds"].items()
    ]
    lines.append(
        f"backlog: at most {found['backlog_max']}, at the end {found['backlog_at_end']}, drained in "
        f"{found['drain_seconds']} s; waited for a connection: {found['waited_for_a_connection']}"
    )
    lines.append(f"expiries: {found['expiries']}, overdue at the end {found['overdue_at_end']}")
    lines.append(f"generator: p99 {found['generator_late_p99_ms']} ms late, {found['generator_cores']:.0%} of a core")
    lines.append("CPU s: " + "  ".join(f"{name} {seconds}" for name, seconds in found["cpu_seconds"].items()))
    return lines
