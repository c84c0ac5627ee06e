"""The mutants apply, name existing tests, and can be regenerated."""

import subprocess
from pathlib import Path

import pytest

from tests.mutants.patches import ROOT, Mutant, mutants
from tests.mutants.regenerate import Lost, Repository, current_test, moved_patch

pytestmark = pytest.mark.processes

BEFORE = """\
def first():
    return 1


def total(prices):
    \"\"\"Add them up.\"\"\"
    found = sum(prices)
    return found
"""
PATCH = """\
--- a/old.py
+++ b/old.py
@@ -5,4 +5,4 @@
 def total(prices):
     \"\"\"Add them up.\"\"\"
-    found = sum(prices)
+    found = max(prices)
     return found
"""
METHOD = """\
class Basket:
    def total(prices):
        \"\"\"Add them up.\"\"\"
        found = sum(prices)
        return found
"""


def test_every_mutant_applies_and_names_a_test_that_exists() -> None:
    names = [name for name, definition in map(_definition, mutants()) if not definition]
    broken = [mutant.patch.stem for mutant in mutants() if not _applies(mutant.patch)]
    assert (broken, names) == ([], [])


def _definition(mutant: Mutant) -> tuple[str, bool]:
    return mutant.patch.stem, current_test(ROOT, mutant.test) == mutant.test


def _applies(patch: Path) -> bool:
    done = subprocess.run(["git", "apply", "--check", str(patch)], cwd=ROOT, capture_output=True)  # noqa: S603, S607
    return done.returncode == 0


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository whose only commit has the file that `PATCH` changes."""
    root = tmp_path / "project"
    root.mkdir()
    repository = Repository(root, tmp_path / "index")
    repository.git("init", "--quiet")
    (root / "old.py").write_text(BEFORE)
    repository.git("add", "--all")
    repository.git("update-ref", "HEAD", repository.commit(repository.git("write-tree").strip()))
    return repository


def moved(repository: Repository, **files: str) -> tuple[str, str]:
    """Regenerate `PATCH` after its file was replaced by these files."""
    (repository.root / "old.py").unlink()
    for name, content in files.items():
        (repository.root / f"{name}.py").write_text(content)
    return moved_patch(repository, "HEAD", repository.working_tree(), PATCH)


def test_a_patch_follows_a_renamed_file(repository: Repository) -> None:
    patch, how = moved(repository, new=BEFORE.replace("return 1", "return 2"))

    assert how == "merged"
    assert patch.startswith("--- a/new.py\n+++ b/new.py\n")
    assert "-    found = sum(prices)\n+    found = max(prices)\n" in patch


def test_a_patch_follows_a_function_to_another_file_at_another_indentation(repository: Repository) -> None:
    patch, how = moved(repository, one="def first():\n    return 1\n", two=METHOD)

    assert how == "found"
    assert patch.startswith("--- a/two.py\n+++ b/two.py\n")
    assert "-        found = sum(prices)\n+        found = max(prices)\n" in patch


@pytest.mark.parametrize("content", ["", METHOD + METHOD.replace("Basket", "Box")], ids=["nowhere", "in two places"])
def test_a_patch_whose_code_is_not_found_is_lost(repository: Repository, content: str) -> None:
    with pytest.raises(Lost, match="its lines are in no file, or in several places"):
        moved(repository, two=content)


def test_a_test_is_found_in_the_file_it_moved_to(tmp_path: Path) -> None:
    (tmp_path / "tests" / "orders").mkdir(parents=True)
    (tmp_path / "tests" / "orders" / "test_new.py").write_text("def test_it() -> None: ...\n")

    assert current_test(tmp_path, "tests/test_old.py::test_it") == "tests/orders/test_new.py::test_it"
    with pytest.raises(Lost, match="0 tests are called test_another"):
        current_test(tmp_path, "tests/test_old.py::test_another")
