"""Lists as files: CSV of whatever a list's filters ask for, of any length.

It is made while it is sent, a batch of rows at a time, each read by a short statement of its own: no transaction stays
open, and no connection is held, however slow the one who takes it is.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from io import StringIO
from typing import Any

from django.utils import timezone

from backoffice.lists import Way, batches
from exchange.rules import cash_shown
from exchange.streams import Stream

# What a spreadsheet would take for a formula, or for what comes before one.
_FORMULA = tuple(
    "=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)


def csv_answer(name: str, columns: Mapping[str, str], way: Way) -> Stream:
    """The file, named after what it has and when it was asked for."""
    answer = Stream(csv_of(columns, way), content_type="text/csv; charset=utf-8")
    answer["Content-Disposition"] = f'attachment; filename="{name}-{timezone.now():%Y%m%dT%H%M%SZ}.csv"'
    return answer


def csv_of(columns: Mapping[str, str], way: Way) -> Iterator[str]:
    """Its lines, in pieces: the titles at once, then a batch of rows each; a piece may be empty."""
    yield _lines([tuple(columns)])
    for rows in batches(way, *columns.values()):
        yield _lines(map(_cells, rows))


def _lines(rows: Iterable[Iterable[Any]]) -> str:
    written = StringIO()
    csv.writer(written).writerows(rows)
    return written.getvalue()


def _cells(row: tuple[Any, ...]) -> list[Any]:
    """Values as the API writes them; those that `csv` writes so by itself stay as they are."""
    return [write(value) if (write := _WRITERS.get(type(value))) else value for value in row]


def _harmless(text: str) -> str:
    """A text that a spreadsheet would run has an apostrophe before it, which it takes for "this is text"."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_WRITERS: dict[type, Callable[[Any], Any]] = {
    str: _harmless,
    datetime: _moment,
    Decimal: cash_shown,
    dict: _json,
    list: _json,
    bytes: bytes.hex,
}
