"""Latency at 25, 50 and 80 % of the best closed-loop rate, counted from the time each request was due."""

import json
import subprocess
import sys
from typing import Any

from bench import wrk
from bench.run import Run
from bench.venue import FOLDER, ROOT
from config.local.processes import LocalError

LOADS = (25, 50, 80)


def measure(run: Run) -> None:
    """Measure each load with a generator in a separate process."""
    processes = run.best_processes()
    with run.venue("open", processes=processes) as (venue, world):
        capacity = run.results.get("http", {}).get(f"64x16x{processes}") or run.mix(
            venue, world, clients=64, symbols=16
        )
        path = FOLDER / "world.json"
        path.write_text(json.dumps(venue.world))
        for load in LOADS[1:2] if run.quick else LOADS:
            arguments = {"mix": "mix", "port": venue.port, "world": str(path)}
            arguments |= {"rate": capacity["requests_per_second"] * load / 100}
            arguments |= {"seed": wrk.seed(), "seconds": run.lengths.open_loop, "warm_up": run.lengths.warm_up}
            run.record("open", str(load), generate(arguments))
            venue.wait_for_deliveries()


def generate(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the generator and return its summary."""
    command = [sys.executable, "-m", "bench.generator", json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise LocalError(f"The generator failed: {done.stderr[-2_000:]}")
    return {"offered_per_second": round(arguments["rate"]), **json.loads(done.stdout)}
