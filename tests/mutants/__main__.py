"""Breaks the code in small ways, one patch at a time, and fails if the test that should notice still passes.

Each patch beside this file names the rule it breaks and the test that catches it:

    # breaks: two orders cross when their prices are equal
    # caught by: tests/orders/test_rules.py::test_same_price_fills_both
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests import servers

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 180
PASSED, FAILED = 0, 1  # pytest's exit codes; any other says that the test could not run


@dataclass(frozen=True)
class Mutant:
    """A patch, the rule it breaks, and the test that must fail with it."""

    patch: Path
    rule: str
    test: str

    @classmethod
    def read(cls, patch: Path) -> "Mutant":
        header = dict(re.findall(r"^# (breaks|caught by): (.+)$", patch.read_text(), re.MULTILINE))
        return cls(patch, header["breaks"], header["caught by"])

    @property
    def is_in_the_database(self) -> bool:
        """Whether it only shows in a database of its own, made by the migrations it breaks."""
        return "/migrations/" in self.patch.read_text()


def main(wanted: list[str]) -> int:
    """Try the mutants whose file names contain one of `wanted`, or all."""
    patches = sorted(Path(__file__).parent.glob("*.patch"))
    mutants = [Mutant.read(path) for path in patches if not wanted or any(word in path.name for word in wanted)]
    with contextlib.ExitStack() as stack:
        tree = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bourse-mutants-"))) / "tree"
        copy_tree(tree)
        running = "|".join(servers.start(partial(later, stack)))
        say("without a mutant, all of their tests must pass ...")
        if run_tests(tree, running, sorted({mutant.test for mutant in mutants})) != PASSED:
            say("they do not: see above")
            return 1
        survivors = [mutant for mutant in mutants if not is_caught(mutant, tree, running)]
    say(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants caught")
    return 1 if survivors else 0


def later(stack: contextlib.ExitStack, cleanup: Callable[[], None]) -> None:
    stack.callback(cleanup)


def copy_tree(tree: Path) -> None:
    """The files of this project as they are now, without what it ignores."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")  # noqa: S603
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def is_caught(mutant: Mutant, tree: Path, running: str) -> bool:
    """Whether its test fails with the patch applied."""
    patch(mutant, tree)
    exit_code = run_tests(tree, running, [mutant.test], quiet=True, migrate=mutant.is_in_the_database)
    patch(mutant, tree, "--reverse")
    verdict = {FAILED: "caught", PASSED: "SURVIVED"}.get(exit_code, f"COULD NOT RUN (exit {exit_code})")
    say(f"{verdict:9} {mutant.patch.stem}: {mutant.rule}")
    return exit_code == FAILED


def patch(mutant: Mutant, tree: Path, *options: str) -> None:
    subprocess.run(["git", "apply", *options, str(mutant.patch)], cwd=tree, check=True)  # noqa: S603, S607


def run_tests(tree: Path, running: str, tests: list[str], *, quiet: bool = False, migrate: bool = False) -> int:
    """pytest's exit code for `tests` in `tree`, on the servers that run already.

    The database is kept for the next tests, unless it was made for these: then it is gone afterwards.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    command += [] if migrate else ["--reuse-db"]
    output = subprocess.DEVNULL if quiet else None
    environment = os.environ | {"BOURSE_TEST_SERVERS": running}
    try:
        return subprocess.run(command, cwd=tree, env=environment, stdout=output, timeout=TIMEOUT_SECONDS).returncode  # noqa: S603
    except subprocess.TimeoutExpired:
        return FAILED  # a mutant may make the tests wait for ever: noticed all the same


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 (a command's output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
