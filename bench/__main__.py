"""`python -m bench [PART ...]`: run all parts of the benchmark, or some; see bench/README.md."""

import argparse
import itertools
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from bench import (
    attacks,
    baseline,
    batches,
    closed_loop,
    day,
    floor,
    growth,
    machine,
    open_loop,
    operators,
    overload,
    plots,
    profile,
    single_requests,
    targets,
    wrk,
)
from bench.rounds import Measurement, alternate, order_for_comparison
from bench.run import QUICK, Lengths, Run
from bench.venue import FOLDER, ROOT, servers
from config.local import web
from config.local.processes import LocalError, print_line

# The targets compare these parts with each other, so their measurements alternate.
ALTERNATING: dict[str, Callable[[Run, argparse.Namespace], AbstractContextManager[list[Measurement]]]] = {
    "floor": lambda run, _: floor.measurements(run),
    "naive": lambda run, _: baseline.measurements(run),
    "http": lambda run, options: closed_loop.measurements(run, options.only),
    "batches": lambda run, _: batches.measurements(run),
}
SEQUENTIAL: dict[str, Callable[[Run, argparse.Namespace], None]] = {
    "requests": lambda run, _: single_requests.measure(run),
    "open": lambda run, _: open_loop.measure(run),
    "day": lambda run, options: day.measure(run, options.only, options.processes or web.PROCESSES),
    "growth": lambda run, _: growth.measure(run),
    "overload": lambda run, _: overload.measure(run),
    "attacks": lambda run, _: attacks.measure(run),
    "operators": lambda run, _: operators.measure(run),
    "profile": lambda run, options: profile.measure(run, options.processes or run.best_processes()),
}
PARTS = [*ALTERNATING, *SEQUENTIAL]
RESULTS, IMAGES = Path(__file__).parent / "results.json", ROOT / "docs" / "images"


def main() -> int:
    """Run the parts and return 1 if there were faults, or if the run failed."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    started_at = time.monotonic()
    try:
        wrk.require()
        with servers() as started:
            run = Run(started, QUICK if options.quick else Lengths(), quick=options.quick)
            _measure(run, options)
    except LocalError as error:
        print_line(f"{error}\nLogs: {FOLDER}")
        return 1
    except KeyboardInterrupt:
        return 1
    run.results["minutes"] = round((time.monotonic() - started_at) / 60, 1)
    _report(run.results, keep=options.everything and not options.quick)
    return 1 if targets.faults(run.results) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="CELL", help="http: clients x symbols x processes; day: loads"
    )
    parser.add_argument("--processes", type=int, help="day, profile: number of web processes")
    parser.add_argument("--quick", action="store_true", default=os.environ.get("QUICK") == "1", help="a shortened run")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    options.everything = not options.parts
    options.parts = options.parts or PARTS
    return options


def _measure(run: Run, options: argparse.Namespace) -> None:
    run.results["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "fsync_at_the_beginning": machine.fsync_times(FOLDER),
    }
    with ExitStack() as venues:
        opened = [
            venues.enter_context(ALTERNATING[part](run, options)) for part in options.parts if part in ALTERNATING
        ]
        alternate(run, order_for_comparison(itertools.chain(*opened)))
    for part in options.parts:
        if part in SEQUENTIAL:
            print_line(f"{part} ...")
            SEQUENTIAL[part](run, options)
    run.results["machine"]["fsync_at_the_end"] = machine.fsync_times(FOLDER)


def _report(results: dict[str, Any], *, keep: bool) -> None:
    """Print the table, and with `keep` write the files."""
    print_line("")
    for when in ("beginning", "end"):
        fsync = results["machine"][f"fsync_at_the_{when}"]
        print_line(f"fsync of 8 kB at the {when}: median {fsync['median_ms']} ms, p99 {fsync['p99_ms']} ms")
    print_line(f"5xx responses and lost connections: {targets.faults(results)}\n")
    for line in targets.lines(results):
        if keep or "not measured" not in line:
            print_line(line)
    print_line(f"\n{results['minutes']} minutes")
    if keep:
        RESULTS.write_text(json.dumps(results | {"targets": targets.table(results)}, indent=1) + "\n", encoding="utf-8")
        plots.write(results, IMAGES)
        print_line(f"{RESULTS.relative_to(ROOT)} and {IMAGES.relative_to(ROOT)}/bench-*.svg are written")


if __name__ == "__main__":
    sys.exit(main())
