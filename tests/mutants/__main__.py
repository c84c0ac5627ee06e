"""Break the code in small ways, one patch at a time, and fail if the test that should notice still passes.

Each patch beside this file names the rule it breaks and the test that catches it:

    # breaks: two orders cross when their prices are equal
    # caught by: tests/orders/test_rules.py::test_orders_at_one_price_fill_each_other

Patches are tried in parallel, each in one of several copies of the project with servers and a database of its own.
`tests.mutants.regenerate` follows code that has moved.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from tests import servers
from tests.mutants.patches import ROOT, Mutant, mutants

JOBS = os.cpu_count() or 1
TIMEOUT_SECONDS = 90
PASSED, FAILED = 0, 1  # pytest's exit codes; with any other, the test could not run
PLUGINS = [
    "-p",
    "pytest_django.plugin",
    "-p",
    "_hypothesis_pytestplugin",
]  # without other plugins, pytest starts faster


@dataclass(frozen=True)
class Workspace:
    """A copy of the project and the servers that its tests use."""

    tree: Path
    servers: str

    def verdict(self, mutant: Mutant) -> str:
        """Run the mutant's test with the patch applied."""
        self._patch(mutant)
        try:
            exit_code = self._run(mutant)
        finally:
            self._patch(mutant, "--reverse")
        return {FAILED: "caught", PASSED: "SURVIVED"}.get(exit_code, f"COULD NOT RUN (exit {exit_code})")

    def _patch(self, mutant: Mutant, *options: str) -> None:
        subprocess.run(["git", "apply", *options, str(mutant.patch)], cwd=self.tree, check=True)  # noqa: S603, S607

    def _run(self, mutant: Mutant) -> int:
        """Return pytest's exit code. A mutant that changes the migrations gets a new database, the others share one."""
        running, new = self.servers, []
        if mutant.changes_migrations:
            running, new = self.servers.replace("/bourse|", "/mutant|"), ["--create-db"]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *PLUGINS, *new, mutant.test]
        environment = os.environ | {"BOURSE_TEST_SERVERS": running, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        try:
            return subprocess.run(  # noqa: S603 - our own tests
                command, cwd=self.tree, env=environment, stdout=subprocess.DEVNULL, timeout=TIMEOUT_SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            return FAILED  # a mutant that blocks its test counts as caught


def main() -> int:
    options = _options()
    chosen = [mutant for mutant in mutants() if _matches(mutant, options.words)]
    print(f"{len(chosen)} mutants; without them, all of their tests must pass ...", flush=True)  # noqa: T201
    if not _pass_without_mutants(chosen, options.jobs):
        return 1
    with _workspaces(options.jobs) as free, ThreadPoolExecutor(options.jobs) as threads:
        caught = list(threads.map(partial(_is_caught, free), chosen))
    print(f"{sum(caught)} of {len(chosen)} mutants caught", flush=True)  # noqa: T201
    return 0 if all(caught) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="try only the mutants whose file name contains one of these")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"mutants at a time (default: {JOBS})")
    return parser.parse_args()


def _matches(mutant: Mutant, words: list[str]) -> bool:
    return not words or any(word in mutant.patch.name for word in words)


def _pass_without_mutants(chosen: list[Mutant], jobs: int) -> bool:
    tests = sorted({mutant.test for mutant in chosen})
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(jobs), "--dist", "loadfile", *tests]
    return subprocess.run(command, cwd=ROOT).returncode == PASSED  # noqa: S603 - our own tests


@contextmanager
def _workspaces(count: int) -> "Iterator[SimpleQueue[Workspace]]":
    """A queue of workspaces that no mutant uses at the moment."""
    free: SimpleQueue[Workspace] = SimpleQueue()
    with ExitStack() as stack:
        for _ in range(count):
            tree = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bourse-mutants-"))) / "tree"
            _copy_project(tree)
            free.put(Workspace(tree, "|".join(servers.start(partial(_call_at_exit, stack)))))
        yield free


def _call_at_exit(stack: ExitStack, cleanup: Callable[[], None]) -> None:
    stack.callback(cleanup)


def _copy_project(tree: Path) -> None:
    """Copy the current files of the project, except those that git ignores."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")  # noqa: S603
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def _is_caught(free: "SimpleQueue[Workspace]", mutant: Mutant) -> bool:
    workspace = free.get()
    try:
        verdict = workspace.verdict(mutant)
    finally:
        free.put(workspace)
    print(f"{verdict:9} {mutant.patch.stem}: {mutant.rule}", flush=True)  # noqa: T201 - a command's output
    return verdict == "caught"


if __name__ == "__main__":
    sys.exit(main())
