"""Count the sentences in comments, docstrings and documents that a reader must translate.

    python -m tests.plain_english                        # the percentage of each area
    python -m tests.plain_english orders tests/api.py    # also the sentences under these paths

A sentence counts if it has no noun as its subject ("Who waits ..."), inverts the usual order ("So are ..."), or has one
of the mannerisms below. The rules are regular expressions, so they miss some sentences. Questions, code and quotations
do not count. Django's sources have 0.6 %, those of REST framework 0.3 %.
"""

import ast
import io
import os
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IGNORED_FOLDERS = re.compile(r"\.(?!ci$)|__pycache__$|node_modules$|locale$")

HASH = re.compile(r"(?:^|\s)##?(?:\s|$)")
COMMENTS = {  # beginning of a comment, by the suffix of the file
    **dict.fromkeys([".sql", ".lua"], re.compile(r"(?:^|\s)--+(?:\s|$)")),
    **dict.fromkeys([".js", ".ts", ".css"], re.compile(r"(?:^|\s)(?://|/?\*+/?)(?:\s|$)")),
    **dict.fromkeys([".sh", ".yml", ".yaml", ".toml", ".example"], HASH),
    ".patch": re.compile(r"^# breaks:"),
}
SCRIPTS = {"Makefile": ".sh", "Dockerfile": ".sh", "run": ".sh"}  # files without a suffix
DIRECTIVE = re.compile(r"#?\s*(?:noqa\b(?::\s*[A-Z0-9, ]+)?|type:\s*ignore\S*|fmt:\s*\w+|pragma\b.*)\s*-?")
TEMPLATE_COMMENT = re.compile(r"\{#(.*?)#\}|\{% comment %\}(.*?)\{% endcomment %\}|<!--(.*?)-->", re.DOTALL)
FENCE = re.compile(r"```|~~~")
LIST_ITEM = re.compile(r"^(?:[-*+]|\d+[.)])\s+")
CODE = re.compile(r"`+[^`]+`+|\"[^\"]*\"|“[^”]*”|\{[{%].*?[%}]\}")
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
ENDING = r"(?<!e\.g)(?<!i\.e)(?<!vs)[.!?][\"')\]*_`]*(?=\s+[A-Z`\"“(*_\[<0-9])"
SENTENCE = re.compile(rf"\S.*?(?:{ENDING}|\Z)", re.DOTALL)

PERSON = (
    r"\w+(?:er|or|ee|ist|ant|man|men)s?|person|people|those|anyone|someone|everyone|ones?|clients?|admins?|staff|he|she"
    r"|they|you|authors?|colleagues?"
)
KNOWING = (
    r"(?:know|s[ae]e|show|record|decid|say|stat|determin|check|find|found|nam|identif|tell|describ|explain|defin|report"
    r"|specif|understand|understood|learn|matter|match|control|depend)\w*(?: out| on)?|about|exactly|is|not"
)
FUNCTION_WORD = (
    r"by|in|at|on|for|from|with|to|of|when|while|after|before|under|as|only|once|again|and|but|that|what|who|if|not"
    r"|never|until|because|so|too|together|about|like|into|over|out|up|down|through|without|within|beside|also|here"
    r"|there|first|last|later|now|then|even|it|them|or|nothing|one|all|each|anew|apart"
)
PARTICIPLE = (
    r"(?:told|asked|said|made|kept|held|found|taken|left|seen|known|meant|begun|gone|done|written|lost|forgotten"
    r"|chosen|drawn|hidden|shown|sent|heard|thought)"
)


def _compiled(rules: dict[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(pattern, re.IGNORECASE | re.DOTALL) for name, pattern in rules.items()}


# The first words of any sentence.
OPENERS = _compiled(
    {
        "Who ...": r"(?:who|whom|whose|whoever|whatever|whichever|nobody|somebody|anybody|everybody)\b",
        "What ...": r"what\b",
        "Whether ...": r"whether\b",
        "So many ...": r"(?:up to |for )?so (?:many|much|long|few|often|is|are|was|do|does|did|has|have|can|will)\b",
        "As many ...": r"as (?:many|much|few|often)\b",
        "How many ...": r"how (?:many|much|long|often|far|old|large|deep|late|few|soon)\b",
        "Of which ...": r"(?:of|in|by|from|to|for|on|with|at|after|under|than) (?:which|whom|whose|what|who|whoever)\b",
        "participle without a subject": rf"{PARTICIPLE}\b(?=\s(?:{FUNCTION_WORD})\b)",
        "The same for ...": r"(?:and |also )?the same (?:for|of|in|on|with|at|by|from|to|when|if)\b|likewise\b",
        "Those that ...": r"(?:those|he|she|they|such|none|that|all) (?:that|who|which|whose|what)\b|such as\b",
        "Where ... is no": r"where\b.*\b(?:is|are) no\b",
        "Also of ...": r"also (?:of|for|in|when|if|after|with|on|at|by|to|from|what|who|as|while|where|that|those)\b",
        "There is nothing": r"there (?:is|are|was|were) (?:nothing|nobody|none)\b",
        "Leave it": r"leave it\W*$",
        "Then who ...": r"(?:and )?then (?:who|what|nobody|no|whoever|so|those|that)\b",
        "inversion": r"nor\b|neither (?:is|are|do|does|did|has|have|can)\b|never (?:is|are|was|do|does|did|has|have)\b"
        r"|only (?:then|so|thus)\b|not so\b|no sooner\b",
    }
)
TITLE_OPENERS = ["What ...", "How many ..."]  # allowed in headings

# The first words of a comment, a docstring or a paragraph, which follow nothing.
FIRST_OPENERS = _compiled(
    {
        "Of ...": r"(?:of|than)\b|as (?:it|they|is|are)\b",
        "That is ...": r"(?:that|which) (?:is|are|was|were|has|have|may|can|must|does|[a-z]+s)\b(?! why)",
        "Then ...": r"then\b(?!,? (?:run|open|call|add|set|use|see)\b)",
        "Where ...": r"where\b[^,:;]*$",
    }
)
FIRST_OF_TRAILING = re.compile(r"(?:that|which|whose|who) ")

# Anywhere in a sentence.
MANNERISMS = _compiled(
    {
        "told, asked": r"\b(?:told|asked|lest|meanwhile|whence|hitherto|thereof|therein)\b",
        "nobody, whoever": r"\b(?:nobody|somebody|anybody|everybody|whoever|whomever|whosoever)\b",
        "who without a noun": rf"(?<!\w)(?!(?:{PERSON}|{KNOWING})\W)[\w'-]+ who\b",
        "what for a noun": rf"(?<!\w)(?!(?:{KNOWING})\W)[\w'-]+ what (?!to\b|happens\b|happened\b)|\w[,;:] what\b",
        "so many": r"\bso (?:many|few)\b(?!.*\bthat\b)|\bfor so long\b",
        "set phrase": r"\bjust now\b|\ba moment ago\b|\bfor certain\b(?! \w)|\ball the same\b|\bat a glance\b|"
        r"\blong since\b|\banew\b|\bof (?:its|their|his) own accord\b|\bin good order\b"
        r"|\bthe very (?!first|last|same|end|beginning|least)\w",
    }
)


class Kind(Enum):
    PROSE = "prose"
    TRAILING = "a comment behind code"
    TITLE = "a heading or a cell of a table"
    TEST_NAME = "the name of a test"


@dataclass(frozen=True)
class Block:
    """A comment, a docstring, a paragraph, or the like."""

    line: int
    text: str
    kind: Kind = Kind.PROSE


@dataclass(frozen=True)
class Sentence:
    """A sentence with its place, and the name of the rule that it breaks, if any."""

    area: str
    path: Path
    line: int
    text: str
    problem: str | None


def problem_of(sentence: str, kind: Kind = Kind.PROSE, *, is_first: bool = True) -> str | None:
    """Return the name of the rule that a sentence breaks; `is_first` says that it begins a block."""
    plain = LINK.sub(r"\1", CODE.sub("Code", sentence)).strip(" .…*_>-\n\t")
    if sentence.rstrip("*_) ").endswith("?") or not plain:
        return None
    for name, pattern in OPENERS.items():
        if pattern.match(plain) and not (kind is Kind.TITLE and name in TITLE_OPENERS):
            return name
    if is_first and kind in (Kind.PROSE, Kind.TRAILING):
        for name, pattern in FIRST_OPENERS.items():
            if pattern.match(plain):
                return name
    if kind is Kind.TRAILING and (sentence.endswith(",") or (is_first and FIRST_OF_TRAILING.match(plain))):
        return "sentence over code and comments"
    return next((name for name, pattern in MANNERISMS.items() if pattern.search(plain)), None)


def sentences_of(path: Path, root: Path = ROOT) -> Iterator[Sentence]:
    """Yield the sentences of a file below `root`."""
    for block in _blocks(path):
        area = "test names" if block.kind is Kind.TEST_NAME else area_of(path.relative_to(root))
        is_first = True
        for match in SENTENCE.finditer(block.text):
            text, line = " ".join(match[0].split()), block.line + block.text.count("\n", 0, match.start())
            yield Sentence(area, path, line, text, problem_of(text, block.kind, is_first=is_first))
            is_first = False


def area_of(path: Path) -> str:
    """Return the package of a file, "docs" for documents, or "project" for the files beside the packages."""
    if path.suffix == ".md":
        return "docs"
    return path.parts[0] if len(path.parts) > 1 and not path.parts[0].startswith(".") else "project"


def files(root: Path = ROOT) -> Iterator[Path]:
    """Yield all files with prose."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not IGNORED_FOLDERS.match(name))
        for name in sorted(names):
            path = Path(folder, name)
            if (_suffix(path) in COMMENTS or path.suffix in (".py", ".md", ".html")) and not path.is_symlink():
                yield path


def _suffix(path: Path) -> str:
    return SCRIPTS.get(path.name, path.suffix)


def _blocks(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from _paragraphs(text, 1)
    elif path.suffix == ".py":
        yield from _python_comments(text)
        yield from _docstrings(ast.parse(text))
    elif path.suffix == ".html":
        for comment in TEMPLATE_COMMENT.finditer(text):
            yield from _paragraphs(next(filter(None, comment.groups()), ""), text.count("\n", 0, comment.start()) + 1)
    else:
        yield from _line_comments(text, COMMENTS[_suffix(path)])


def _paragraphs(text: str, first_line: int) -> Iterator[Block]:
    """Yield the paragraphs, list items, headings and cells of a text, without code and quotations."""
    lines: list[str] = []
    start, is_code, is_example, before = first_line, False, False, ""
    for number, line in enumerate([*text.splitlines(), ""], first_line):
        stripped = line.strip()
        is_example = (line.startswith("    ") and (is_example or not before)) or stripped.startswith((">", ".. "))
        if lines and (not stripped or FENCE.match(stripped) or LIST_ITEM.match(stripped) or stripped[0] in "#|>"):
            yield Block(start, "\n".join(lines))
            lines = []
        if FENCE.match(stripped):
            is_code = not is_code
        elif stripped and not is_code and not is_example:
            if stripped[0] == "#":
                yield Block(number, stripped.lstrip("# "), Kind.TITLE)
            elif stripped[0] == "|":
                yield from (Block(number, cell.strip(), Kind.TITLE) for cell in stripped.strip("|").split("|"))
            else:
                start = start if lines else number
                lines.append(LIST_ITEM.sub("", stripped))
        before = stripped


def _python_comments(source: str) -> Iterator[Block]:
    found = [
        token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT
    ]
    whole_lines = []
    for token in found:
        line, column = token.start
        text = _without_directives(token.string)
        if not text or token.string.startswith("# ---"):
            continue
        if token.line[:column].strip():
            yield Block(line, text, Kind.TRAILING)
        else:
            whole_lines.append((line, text))
    yield from _joined(whole_lines)


def _without_directives(comment: str) -> str:
    """Return a comment without its directives for ruff and mypy."""
    return DIRECTIVE.sub("", comment).strip("#!:- ")


def _joined(lines: Sequence[tuple[int, str]]) -> Iterator[Block]:
    """Yield one block for comments on consecutive lines."""
    group: list[str] = []
    for number, (line, text) in enumerate(lines):
        group.append(text)
        if number + 1 == len(lines) or lines[number + 1][0] != line + 1:
            yield from _paragraphs("\n".join(group), line - len(group) + 1)
            group = []


def _line_comments(text: str, comment: re.Pattern[str]) -> Iterator[Block]:
    whole_lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if match := comment.search(line):
            content = line[match.end() :].strip(" -*/")
            if line[: match.start()].strip():
                yield Block(number, content, Kind.TRAILING)
            else:
                whole_lines.append((number, content))
    yield from _joined(whole_lines)


def _docstrings(tree: ast.Module) -> Iterator[Block]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield Block(node.lineno, node.name.removeprefix("test_").replace("_", " "), Kind.TEST_NAME)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=True)
            if text:
                yield from _paragraphs(text, node.body[0].lineno)


def main(arguments: Sequence[str]) -> int:
    chosen = [Path(argument).resolve() for argument in arguments]
    outside = next((path for path in chosen if ROOT not in [path, *path.parents]), None)
    found = [sentence for path in files(outside or ROOT) for sentence in sentences_of(path, outside or ROOT)]
    for sentence in found:
        if sentence.problem and any(path in [sentence.path, *sentence.path.parents] for path in chosen):
            print(f"{os.path.relpath(sentence.path)}:{sentence.line}: [{sentence.problem}] {sentence.text}")  # noqa: T201
    for area, percentage in percentages(found).items():
        print(f"{area:12} {percentage:5.1f} %")  # noqa: T201
    return 0


def percentages(found: Sequence[Sentence]) -> dict[str, float]:
    """Return the percentage of flagged sentences in each area."""
    total = Counter(sentence.area for sentence in found)
    flagged = Counter(sentence.area for sentence in found if sentence.problem)
    return {area: 100 * flagged[area] / total[area] for area in sorted(total)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
