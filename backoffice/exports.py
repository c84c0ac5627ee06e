"""CSV exports of the filtered lists, of any length.

A file is generated while it is sent, one batch of rows per short statement. While the client reads a batch, no
transaction is open and no database connection is held, but a server thread is. The number of concurrent exports is
therefore limited, so that threads remain for pages.
"""

import csv
import json
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from io import StringIO
from threading import BoundedSemaphore
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.db.models import Model
from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone

from backoffice import error_pages
from backoffice.lists import KeysetQuery, batches
from exchange import audit
from exchange.audit import Action, Actor, Entry
from exchange.rules import round_cash

BYTE_ORDER_MARK = "\ufeff"  # without it, Excel reads the file in another encoding

# First characters that make a spreadsheet treat a cell as a formula, or skip to one.
_FORMULA_STARTS = tuple(
    "=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)


_export_slots = BoundedSemaphore(settings.MAX_CONCURRENT_EXPORTS)


class Export:
    """The chunks of a file. It holds one of the export slots until the response is closed."""

    def __init__(self, chunks: Generator[str]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[str]:
        return self._chunks

    def close(self) -> None:
        self._chunks.close()
        _export_slots.release()


def columns_of(model: type[Model], *, without: Collection[str] = (), **titles: str) -> dict[str, str]:
    """Return the title and field of a model's columns. A title is the column's name unless `titles` has another."""
    exported = [field for field in model._meta.concrete_fields if field.name not in without]
    return {titles.get(field.name, str(field.column)): field.attname for field in exported}


def csv_response(
    name: str, columns: Mapping[str, str], query: KeysetQuery, by: Actor, filters: Mapping[str, str]
) -> HttpResponseBase:
    """Record the export and return the file, named after its list and the time, or 503 if too many are running."""
    if not _export_slots.acquire(blocking=False):
        return error_pages.overloaded()
    export = Export(csv_chunks(columns, query))
    try:
        with transaction.atomic(durable=True):
            audit.record(Entry.of(by, Action.LIST_EXPORT, name, after=filters))
    except DatabaseError:
        export.close()
        raise
    response = StreamingHttpResponse(export, content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{name}-{timezone.now():%Y%m%dT%H%M%SZ}.csv"'
    return response


def csv_chunks(columns: Mapping[str, str], query: KeysetQuery) -> Generator[str]:
    """Yield the header immediately, then one chunk per batch of rows. A chunk may be empty."""
    yield BYTE_ORDER_MARK + _lines([tuple(columns)])
    for rows in batches(query, *columns.values()):
        if not connection.in_atomic_block:
            connection.close()  # back to the pool while the client reads
        yield _lines(map(_cells, rows))


def _lines(rows: Iterable[Iterable[Any]]) -> str:
    buffer = StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue()


def _cells(row: tuple[Any, ...]) -> list[Any]:
    """Convert values to the API's formats. Types without a converter are left to `csv`."""
    return [convert(value) if (convert := _CONVERTERS.get(type(value))) else value for value in row]


def _escape_formula(text: str) -> str:
    """Prefix a text that a spreadsheet would run as a formula with an apostrophe, which marks it as text."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _timestamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_CONVERTERS: dict[type, Callable[[Any], Any]] = {
    str: _escape_formula,
    datetime: _timestamp,
    Decimal: round_cash,
    dict: _json,
    list: _json,
    bytes: bytes.hex,
}
