"""Rewrite the patches whose code, or whose test, has moved: `python -m tests.mutants.regenerate`.

Each patch applied at the commit that last changed it. From there, git merges it with the current files, following
renamed files. If that fails, the patch's lines are searched in all files, at any indentation: a function that moved to
another file is found there if its text is unique. Patches that cannot be repaired are listed and left unchanged, and
the command fails.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from tests.mutants.patches import FOLDER, ROOT, Mutant, mutants

MIN_LINES = 2  # fewer lines of a hunk are rarely unique
MAX_CONTEXT = 3  # unchanged lines around a change


class Lost(Exception):
    """The code or the test of a patch cannot be found."""


@dataclass(frozen=True)
class Repository:
    """The git repository in `root`, with a separate index, so that its index and files are not changed."""

    root: Path
    index: Path

    def git(self, *arguments: str, text: str | None = None, may_find_nothing: bool = False) -> str:
        """Run git and return its output. Raise `Lost` if it fails; `may_find_nothing` allows the exit code 1."""
        done = subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=self.root,
            env=os.environ | {"GIT_INDEX_FILE": str(self.index)},
            input=text,
            capture_output=True,
            text=True,
        )
        if done.returncode > may_find_nothing:
            raise Lost(f"git {arguments[0]}: {done.stderr or done.stdout}".strip())
        return done.stdout

    def commit(self, tree: str, *parents: str) -> str:
        """Create a commit on no branch."""
        identity = ("-c", "user.name=mutants", "-c", "user.email=mutants@localhost")
        after = [option for parent in parents for option in ("-p", parent)]
        return self.git(*identity, "commit-tree", tree, *after, "-m", "mutants").strip()

    def working_tree(self) -> str:
        """Create a commit of all current files, on top of HEAD."""
        self.git("read-tree", "HEAD")
        self.git("add", "--all")
        return self.commit(self.git("write-tree").strip(), "HEAD")

    def patched(self, base: str, patch: str) -> str:
        """Return the tree of `base` with a patch applied."""
        self.git("read-tree", base)
        self.git("apply", "--cached", "-", text=patch)
        return self.git("write-tree").strip()

    def diff(self, old: str, new: str) -> str:
        return self.git("diff", "--no-color", "--no-ext-diff", "--no-renames", old, new, "--", ".", ":!tests")


def main() -> int:
    lost = []
    with tempfile.TemporaryDirectory(prefix="bourse-mutants-") as folder:
        repository = Repository(ROOT, Path(folder) / "index")
        now = repository.working_tree()
        for mutant in mutants():
            try:
                print(f"{_regenerate(repository, now, mutant):12} {mutant.patch.stem}")  # noqa: T201
            except Lost as reason:
                lost.append(mutant)
                print(f"LOST         {mutant.patch.stem}: {reason}")  # noqa: T201
    print(f"{len(lost)} patches must be rewritten by hand" if lost else "All patches apply.")  # noqa: T201
    return 1 if lost else 0


def _regenerate(repository: Repository, now: str, mutant: Mutant) -> str:
    """Rewrite one patch if necessary and return the kind of change."""
    header, body = _split(mutant.patch.read_text())
    test = current_test(ROOT, mutant.test)
    try:
        repository.patched(now, body)
        done = "unchanged"
    except Lost:
        base = repository.git("log", "-1", "--format=%H", "--", str(mutant.patch)).strip()
        body, done = moved_patch(repository, base, now, body)
    if test != mutant.test:
        done = "test moved" if done == "unchanged" else done
        header = header.replace(mutant.test, test)
    if done != "unchanged":
        (FOLDER / mutant.patch.name).write_text(header + body)
    return done


def _split(text: str) -> tuple[str, str]:
    """Return the comment lines at the top of a patch, and the rest."""
    header = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    return header, text.removeprefix(header)


def current_test(root: Path, test: str) -> str:
    """Return the current `path::name` of a test. Raise `Lost` unless exactly one file defines a test of that name."""
    path, _, name = test.partition("::")
    definition = f"def {name}("
    if (root / path).is_file() and definition in (root / path).read_text():
        return test
    found = [file for file in sorted((root / "tests").rglob("test_*.py")) if definition in file.read_text()]
    if len(found) != 1:
        raise Lost(f"{len(found)} tests are called {name}")
    return f"{found[0].relative_to(root)}::{name}"


def moved_patch(repository: Repository, base: str, now: str, patch: str) -> tuple[str, str]:
    """Convert a patch against `base` to one against `now`, and return it with the method. Raise `Lost` if it fails."""
    mutated = repository.commit(repository.patched(base, patch), base)
    try:
        merged = repository.git("merge-tree", "--write-tree", now, mutated).split()[0]
        how = "merged"
    except Lost:
        merged = _replaced(repository, now, patch)
        how = "found"
    body = _without_index_lines(repository.diff(now, merged))
    if not body:
        raise Lost("the code is as broken as the patch would make it")
    return body, how


def _without_index_lines(diff: str) -> str:
    """Return a diff without the names of blobs and the file modes, like the patches."""
    return re.sub(r"^(diff --git|index) .*\n", "", diff, flags=re.MULTILINE)


def _replaced(repository: Repository, now: str, patch: str) -> str:
    """Return the tree of `now` with each hunk applied at the place of its lines."""
    repository.git("read-tree", now)
    for hunk in re.split(r"^@@.*\n", patch, flags=re.MULTILINE)[1:]:
        lines = [line for line in hunk.splitlines() if line[:1] in " +-" and not line.startswith(("--- ", "+++ "))]
        path, content = _apply_anywhere(repository, lines)
        blob = repository.git("hash-object", "-w", "--stdin", text=content).strip()
        repository.git("update-index", "--cacheinfo", f"100644,{blob},{path}")
    return repository.git("write-tree").strip()


def _apply_anywhere(repository: Repository, hunk: Sequence[str]) -> tuple[str, str]:
    """Find the only file with the old lines of a hunk, with decreasing context, and return it with its new content."""
    changed = [number for number, line in enumerate(hunk) if line[0] != " "]
    for context in range(MAX_CONTEXT, -1, -1):
        part = hunk[max(0, changed[0] - context) : changed[-1] + context + 1]
        old, new = ([line[1:] for line in part if line[0] in kinds] for kinds in (" -", " +"))
        places = _places(repository, old) if len(old) >= MIN_LINES else []
        if len(places) == 1:
            return places[0].path, places[0].replace(old, new)
    raise Lost("its lines are in no file, or in several places")


@dataclass(frozen=True)
class Place:
    """A place of some lines in a file, with the additional indentation there."""

    path: str
    lines: list[str]  # the whole file
    start: int
    indent: int  # negative: less

    def replace(self, old: Sequence[str], new: Sequence[str]) -> str:
        """Return the content of the file with `new` in place of `old`."""
        moved = [_indented(line, self.indent) for line in new]
        return "".join(
            f"{line}\n" for line in [*self.lines[: self.start], *moved, *self.lines[self.start + len(old) :]]
        )


def _places(repository: Repository, old: Sequence[str]) -> list[Place]:
    """Return every place of these lines in the files of the index, at any indentation."""
    longest = max(old, key=len).strip()
    search = ("grep", "--cached", "--name-only", "--fixed-strings", "-e", longest, "--", ".", ":!tests")
    listed = repository.git(*search, may_find_nothing=True)
    return [place for path in listed.split() for place in _places_in(path, repository.git("show", f":{path}"), old)]


def _places_in(path: str, content: str, old: Sequence[str]) -> list[Place]:
    lines, first = content.splitlines(), old[0]
    found = []
    for start in range(len(lines) - len(old) + 1):
        if lines[start].strip() == first.strip():
            indent = _indent_of(lines[start]) - _indent_of(first)
            if [_indented(line, indent) for line in old] == lines[start : start + len(old)]:
                found.append(Place(path, lines, start, indent))
    return found


def _indent_of(line: str) -> int:
    return len(line) - len(line.lstrip())


def _indented(line: str, indent: int) -> str:
    """Indent a line by `indent` more columns; a blank line stays blank."""
    return " " * (_indent_of(line) + indent) + line.lstrip() if line.strip() else ""


if __name__ == "__main__":
    sys.exit(main())
