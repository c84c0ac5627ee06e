"""Lists as files: CSV of whatever a list's filters ask for, of any length.

A file is made while it is sent, a batch of rows at a time, each read by a short statement of its own. While the client
reads a batch, no transaction is open and no database connection is held. The server's thread is, so the number of
exports at a time is limited, which leaves threads for pages.
"""

import csv
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from io import StringIO
from threading import BoundedSemaphore
from typing import Any

from django.conf import settings
from django.db import connection
from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone

from backoffice import error_pages
from backoffice.lists import Way, batches
from exchange.rules import cash_shown

# What a spreadsheet would take for a formula, or for what comes before one.
_FORMULA = tuple(
    "=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)


_places = BoundedSemaphore(settings.EXPORTS_AT_ONCE)


class Export:
    """The pieces of a file; one of the places is taken until the response is closed."""

    def __init__(self, pieces: Generator[str]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        self._pieces.close()
        _places.release()


def csv_answer(name: str, columns: Mapping[str, str], way: Way) -> HttpResponseBase:
    """The file, named after what it has and when it was asked for; 503 if there are too many exports."""
    if not _places.acquire(blocking=False):
        return error_pages.overloaded()
    answer = StreamingHttpResponse(Export(csv_of(columns, way)), content_type="text/csv; charset=utf-8")
    answer["Content-Disposition"] = f'attachment; filename="{name}-{timezone.now():%Y%m%dT%H%M%SZ}.csv"'
    return answer


def csv_of(columns: Mapping[str, str], way: Way) -> Generator[str]:
    """Its lines, in pieces: the titles at once, then a batch of rows each; a piece may be empty."""
    yield _lines([tuple(columns)])
    for rows in batches(way, *columns.values()):
        if not connection.in_atomic_block:
            connection.close()  # back to the pool while the client reads
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
