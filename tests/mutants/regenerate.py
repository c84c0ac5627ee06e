"""Rewrite the patches whose code, or whose test, has moved: `python -m tests.mutants.regenerate`.

A patch applied at the commit that last changed it. From there, git merges it with the files as they are now, following
renamed files. Where that fails, the patch's lines are looked for in all files, at any indentation: a function that
moved to another file is found there if its text is unique. Whatever cannot be found is listed, left as it is, and makes
the command fail.
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

MIN_LINES = 2  # fewer lines of a hunk stand in many places
MAX_CONTEXT = 3  # unchanged lines around a change


class Lost(Exception):
    """A patch whose code, or whose test, is no longer found."""


@dataclass(frozen=True)
class Repository:
    """The git repository in `root`, through an index of our own: neither its index nor its files are touched."""

    root: Path
    index: Path

    def git(self, *arguments: str, text: str | None = None, may_find_nothing: bool = False) -> str:
        """Run git and return what it prints. Raise `Lost` if it fails; `may_find_nothing` allows the exit code 1."""
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
        """Make a commit that no branch has."""
        identity = ("-c", "user.name=mutants", "-c", "user.email=mutants@localhost")
        after = [option for parent in parents for option in ("-p", parent)]
        return self.git(*identity, "commit-tree", tree, *after, "-m", "mutants").strip()

    def working_tree(self) -> str:
        """A commit of all files as they are now, on top of HEAD."""
        self.git("read-tree", "HEAD")
        self.git("add", "--all")
        return self.commit(self.git("write-tree").strip(), "HEAD")

    def patched(self, base: str, patch: str) -> str:
        """The tree of `base` with a patch applied."""
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
    """Rewrite one patch if necessary and return what was done."""
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
    """The comment lines at the top of a patch, and the rest."""
    header = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    return header, text.removeprefix(header)


def current_test(root: Path, test: str) -> str:
    """The `path::name` of a test now. Raise `Lost` unless exactly one file defines a test of that name."""
    path, _, name = test.partition("::")
    definition = f"def {name}("
    if (root / path).is_file() and definition in (root / path).read_text():
        return test
    found = [file for file in sorted((root / "tests").rglob("test_*.py")) if definition in file.read_text()]
    if len(found) != 1:
        raise Lost(f"{len(found)} tests are called {name}")
    return f"{found[0].relative_to(root)}::{name}"


def moved_patch(repository: Repository, base: str, now: str, patch: str) -> tuple[str, str]:
    """A patch that applied at `base`, against `now`, and how its place was found. Raise `Lost` if it was not."""
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
    """A diff as the patches are written: no names of blobs, no file modes."""
    return re.sub(r"^(diff --git|index) .*\n", "", diff, flags=re.MULTILINE)


def _replaced(repository: Repository, now: str, patch: str) -> str:
    """The tree of `now` with each hunk applied wherever its lines stand."""
    repository.git("read-tree", now)
    for hunk in re.split(r"^@@.*\n", patch, flags=re.MULTILINE)[1:]:
        lines = [line for line in hunk.splitlines() if line[:1] in " +-" and not line.startswith(("--- ", "+++ "))]
        path, content = _apply_anywhere(repository, lines)
        blob = repository.git("hash-object", "-w", "--stdin", text=content).strip()
        repository.git("update-index", "--cacheinfo", f"100644,{blob},{path}")
    return repository.git("write-tree").strip()


def _apply_anywhere(repository: Repository, hunk: Sequence[str]) -> tuple[str, str]:
    """The only file that has the old lines of a hunk, and its new content; with ever less context around them."""
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
    """Where some lines stand in a file, and how much further they are indented there."""

    path: str
    lines: list[str]  # of the whole file
    start: int
    indent: int  # negative: less

    def replace(self, old: Sequence[str], new: Sequence[str]) -> str:
        """The content of the file with `new` in place of `old`."""
        moved = [_indented(line, self.indent) for line in new]
        return "".join(
            f"{line}\n" for line in [*self.lines[: self.start], *moved, *self.lines[self.start + len(old) :]]
        )


def _places(repository: Repository, old: Sequence[str]) -> list[Place]:
    """Every place of these lines in the files of the index, whatever their indentation."""
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
    """A line moved to the right by so many columns; a blank line stays blank."""
    return " " * (_indent_of(line) + indent) + line.lstrip() if line.strip() else ""


if __name__ == "__main__":
    sys.exit(main())
