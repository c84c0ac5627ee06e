"""Closed-loop load by `wrk`: each client sends its next request when it has received the previous response."""

import itertools
import json
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.venue import FOLDER
from config.local.processes import LocalError

SCRIPTS = Path(__file__).parent / "load"
TIMEOUT_SECONDS = 10
CLIENTS_PER_THREAD = 32
_numbers = itertools.count()


def require() -> None:
    if shutil.which("wrk") is None:
        raise LocalError("wrk is missing: on Debian and Ubuntu, `apt install wrk`.")


def run(script: str, url: str, arguments: Sequence[object], *, clients: int, seconds: float) -> dict[str, Any]:
    """Run a script of `load/` and return its counts, with rates."""
    threads = 1 if clients <= CLIENTS_PER_THREAD else 2
    command = ["wrk", "-t", threads, "-c", clients, "-d", f"{round(seconds)}s", "--timeout", f"{TIMEOUT_SECONDS}s"]
    command += ["-s", script, url, "--", *arguments]
    done = subprocess.run(  # noqa: S603 - a program of the system, our own arguments
        [str(each) for each in command], cwd=SCRIPTS, capture_output=True, text=True, check=False
    )
    _, found, line = done.stdout.partition("RESULT ")
    if done.returncode or not found:
        raise LocalError(f"wrk failed: {done.stdout} {done.stderr}")
    return _with_rates(json.loads(line))


def _with_rates(counts: dict[str, Any]) -> dict[str, Any]:
    answers = sum(counts["statuses"].values())
    faults = sum(number for status, number in counts["statuses"].items() if int(status) >= 500)
    return counts | {
        "orders_per_second": counts["accepted"] / counts["seconds"],
        "requests_per_second": answers / counts["seconds"],
        "faults": faults + counts["lost"],
    }


def mix(url: str, world: Path, *, clients: int, symbols: int, seconds: float) -> dict[str, Any]:
    """Run `load/mix.lua`."""
    return run("mix.lua", url, [world, symbols, seed(), clients], clients=clients, seconds=seconds)


def seed() -> int:
    """Return a seed that differs between runs; threads add their number to it."""
    return secrets.randbelow(2**29) * 4


def write_lua(name: str, value: Any) -> Path:
    """Write a Lua file that returns `value`."""
    path = FOLDER / f"{name}-{next(_numbers)}.lua"
    path.write_text(f"return {_lua(value)}\n")
    return path


def _lua(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}={_lua(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ",\n".join(map(_lua, value)) + "}"
    return json.dumps(value)
