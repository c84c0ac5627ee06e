"""CPU seconds of every process under the load of 64 clients, per accepted order."""

import time

from bench import profiling, wrk
from bench.run import Run, describe
from config.local.processes import print_line
from exchange.http.rate_limits import RateLimit

CHECKS = 100_000


def measure(run: Run, processes: int = 1, clients: int = 64, symbols: int = 16) -> None:
    """Measure one load and print a table."""
    with run.venue("profile", processes=processes) as (venue, world):
        wrk.mix(venue.url, world, clients=clients, symbols=symbols, seconds=run.lengths.warm_up)
        children = {
            **venue.children,
            "postgres": run.servers.postgres.child,
            "valkey": run.servers.valkey.child,
            "receiver": run.servers.receiver,
        }
        pids = {name: child.pid for name, child in children.items() if child.pid}
        found, used = profiling.cpu_seconds(
            pids,
            lambda: wrk.mix(venue.url, world, clients=clients, symbols=symbols, seconds=2 * run.lengths.cell),
        )
        venue.wait_for_deliveries()
    run.results["profile"] = found | {"cpu_seconds": used, "limit_share": _limit_share(found, used["web"])}
    print_line(f"\n{describe(found)}\n\n{'process':<10} {'CPU s':>7} {'share':>6} {'ms/order':>9} {'cores':>6}")
    total = sum(used.values())
    for name, seconds in sorted([*used.items(), ("all", total)], key=lambda each: -each[1]):
        per_order = 1_000 * seconds / max(1, found["accepted"])
        share, cores = seconds / total, seconds / found["seconds"]
        print_line(f"{name:<10} {seconds:>7.2f} {share:>6.0%} {per_order:>9.3f} {cores:>6.2f}")
    print_line(f"rate limits: {run.results['profile']['limit_share']:.2%} of the web processes' CPU time")


def _limit_share(found: dict[str, float], web_seconds: float) -> float:
    """Return the CPU time of a rate limit check, as a share of a web process's CPU time per request."""
    limit = RateLimit("requests", per_second=10**6, burst=10**6, max_keys=10_000)
    started = time.process_time()
    for number in range(CHECKS):
        limit.headers(limit.take(f"key-{number % 20}", 1, time.monotonic_ns()))
    check = (time.process_time() - started) / CHECKS
    return check * found["requests_per_second"] * found["seconds"] / web_seconds
