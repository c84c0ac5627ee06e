"""The mutants themselves: a patch that no longer applies breaks nothing, and proves nothing."""

import subprocess
from pathlib import Path

import pytest

from tests.mutants.__main__ import ROOT, Mutant

PATCHES = sorted((ROOT / "tests" / "mutants").glob("*.patch"))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_mutant_applies_and_names_a_test_that_is_there(patch: Path) -> None:
    mutant = Mutant.read(patch)
    path, _, name = mutant.test.partition("::")

    subprocess.run(["git", "apply", "--check", str(patch)], cwd=ROOT, check=True)  # noqa: S603, S607
    assert f"def {name}(" in (ROOT / path).read_text()
