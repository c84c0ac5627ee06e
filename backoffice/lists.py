"""Lists: their columns, and keyset pagination for tables that grow without limit.

Tables of at most some ten thousand rows (brokers, instruments, keys, subscriptions, reconciliations, users) use
Django's changelist with `list_display`, `list_filter`, `search_fields`, `ordering` and `actions`. Orders, trades,
transfers, events, deliveries and audit entries use the keyset lists of this module, because Django's changelist would
count and skip millions of rows. Both declare their columns in `list_display`.

A keyset list counts nothing, and each page costs the same: it starts at a cursor, in either direction. A list is read
along one index. Conditions without an index are checked on `MAX_SCANNED_ROWS` rows of that index at a time; the page
then says so and offers to continue.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from backoffice.templatetags.formatting import formatted
from exchange.http.paging import MAX_CURSOR_LENGTH, Keyset, PageRequest

PAGE_ROWS = 50
MAX_SCANNED_ROWS = 20_000  # few enough to be read from disk for one page
BATCH_ROWS = 5_000  # rows of an export per statement

Rows = QuerySet[Any]
Position = tuple[Any, ...]  # a row's sort key


Column = Callable[[Any], Any]  # an entry of `list_display`: a function of the row


def column(
    title: str, value: str | Column, *, is_number: bool = False, is_text: bool = False, link: Column | None = None
) -> Column:
    """Return a column of an attribute, which Django can sort by, or of a function of the row; `link` gives the URL."""
    value_of = attrgetter(value) if isinstance(value, str) else value

    @admin.display(description=title, ordering=value if isinstance(value, str) else None)
    def cell(row: Any) -> Any:
        text, url = formatted(value_of(row)), link(row) if link else ""
        return format_html('<a class="o-link" href="{}">{}</a>', url, text) if url else text

    cell.__name__ = "number" if is_number else "text" if is_text else "value"  # part of the cells' CSS class
    return cell


@dataclass(frozen=True, slots=True)
class KeysetQuery:
    """How to read a list: rows that an index returns in the order of `keyset`, filtered by `unindexed`.

    If several indexes each return a part, `merged_with` holds the other parts. They are merged without duplicates.
    """

    rows: Rows
    keyset: Keyset
    unindexed: Q = field(default_factory=Q)
    merged_with: Sequence[Rows] = ()

    def reversed(self) -> "KeysetQuery":
        """Return the same query in the opposite order."""
        return KeysetQuery(self.rows, self.keyset.reversed(), self.unindexed, self.merged_with)


@dataclass(frozen=True, slots=True)
class PageStart:
    """The start of a page: after the cursor's row, or at it."""

    cursor: str
    is_inclusive: bool = False


@dataclass(frozen=True, slots=True)
class ListPage:
    """The rows of a page, and the starts of the pages before and after it."""

    rows: list[Any]
    newer: PageStart | None = None
    older: PageStart | None = None
    scanned_rows: int = 0  # 0 if the scan was not cut off
    is_backwards: bool = False


class PageForm(forms.Form):
    """The page parameters: after a cursor, before a cursor, or the last page; by default the first."""

    after = forms.CharField(max_length=MAX_CURSOR_LENGTH, required=False)
    before = forms.CharField(max_length=MAX_CURSOR_LENGTH, required=False)
    including = forms.BooleanField(required=False)  # the cursor's row
    last = forms.BooleanField(required=False)


def read_page(query: KeysetQuery, parameters: Mapping[str, Any]) -> ListPage:
    """Read the requested page, or the first page if the cursor is not one of this query."""
    form = PageForm(parameters)
    requested = form.cleaned_data if form.is_valid() else {}
    is_inclusive = requested.get("including", False)
    try:
        if requested.get("before"):
            start = PageStart(requested["before"], is_inclusive)
            return _backward_page(query, start) or _forward_page(query, None)
        if requested.get("last"):
            return _backward_page(query, None) or _forward_page(query, None)
        return _forward_page(query, PageStart(requested["after"], is_inclusive) if requested.get("after") else None)
    except ValueError:
        return _forward_page(query, None)


def _forward_page(query: KeysetQuery, start: PageStart | None) -> ListPage:
    found = _read(query, start, PAGE_ROWS)
    return ListPage(found.rows, _opposite_start(query, start, found), found.next_start, found.scanned_rows)


def _backward_page(query: KeysetQuery, start: PageStart | None) -> ListPage | None:
    """Return the page before `start`, or None if fewer rows than a page are left: the first page shows them."""
    found = _read(query.reversed(), start, PAGE_ROWS)
    if start and not found.next_start and len(found.rows) < PAGE_ROWS:
        return None
    older = _opposite_start(query, start, found)
    return ListPage(found.rows[::-1], found.next_start, older, found.scanned_rows, is_backwards=True)


def _opposite_start(query: KeysetQuery, start: PageStart | None, found: "_ScannedRows") -> PageStart | None:
    """Return the start of the page in the opposite direction. If no row was found, it is the complement of `start`."""
    if start is None:
        return None
    if found.rows:
        return PageStart(query.keyset.encode_cursor(found.rows[0]))
    return PageStart(start.cursor, not start.is_inclusive)


@dataclass(frozen=True, slots=True)
class _ScannedRows:
    rows: list[Any]
    next_start: PageStart | None = None
    scanned_rows: int = 0


def _read(query: KeysetQuery, start: PageStart | None, limit: int) -> _ScannedRows:
    """Read up to `limit` rows, and scan at most `MAX_SCANNED_ROWS` for an unindexed condition."""
    keyset, position = query.keyset, query.keyset.decode_cursor(start.cursor) if start else None
    sources = [query.rows, *query.merged_with]
    if start and start.is_inclusive and position:
        sources, position = [keyset.reversed().up_to(rows, position) for rows in sources], None
    page = PageRequest(limit, position)
    scan_end = _scan_end(sources, keyset, position) if query.unindexed else None
    if scan_end:
        sources = [keyset.up_to(rows, scan_end) for rows in sources]
    rows, cursor = keyset.split(_merge([rows.filter(query.unindexed) for rows in sources], keyset, page), page)
    if cursor is None and scan_end:
        return _ScannedRows(rows, PageStart(keyset.encode_position(scan_end)), MAX_SCANNED_ROWS)
    return _ScannedRows(rows, PageStart(cursor) if cursor else None)


def _merge(sources: Sequence[Rows], keyset: Keyset, page: PageRequest) -> list[Any]:
    """Return the page's rows of all sources in order, plus one more if there is one."""
    if len(sources) == 1:
        return list(keyset.page_queryset(sources[0], page))
    key_of = attrgetter(*keyset.names)
    found = {key_of(row): row for rows in sources for row in keyset.page_queryset(rows, page)}
    return [found[key] for key in sorted(found, reverse=_is_descending(keyset))]


def _scan_end(sources: Sequence[Rows], keyset: Keyset, position: Position | None) -> Position | None:
    """Return the sort key of the last row to scan, if any source has more than `MAX_SCANNED_ROWS` rows."""
    page, ends = PageRequest(MAX_SCANNED_ROWS, position), []
    for rows in sources:
        last_two = list(
            keyset.page_queryset(rows, page).values_list(*keyset.names)[MAX_SCANNED_ROWS - 1 : MAX_SCANNED_ROWS + 1]
        )
        ends += last_two[:1] if len(last_two) == 2 else []
    nearest = max if _is_descending(keyset) else min
    return nearest(ends) if ends else None


def _is_descending(keyset: Keyset) -> bool:
    return keyset.ordering[0].startswith("-")


def batches(query: KeysetQuery, *fields: str) -> Iterator[list[tuple[Any, ...]]]:
    """Yield these fields of all rows of the query, one short statement per batch. A batch may be empty."""
    names = tuple(dict.fromkeys([*fields, *query.keyset.names]))
    parts = [rows.values_list(*names, named=True) for rows in (query.rows, *query.merged_with)]
    values_query, start = KeysetQuery(parts[0], query.keyset, query.unindexed, parts[1:]), None
    while True:
        found = _read(values_query, start, BATCH_ROWS)
        yield [row[: len(fields)] for row in found.rows]
        if found.next_start is None:
            return
        start = found.next_start


# --- Filters --------------------------------------------------------------------------------------------------------


class FilterForm(forms.Form):
    """The filters of a list: a form sent as the page's query. Every field is optional."""

    q = forms.CharField(max_length=100, required=False, label="Search")


def sent_filters(form: FilterForm) -> dict[str, str]:
    """Return the filters as they were sent, without empty ones."""
    return {name: form.data[name] for name in form.fields if form.data.get(name)}


# --- Template data --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listing:
    """A list with everything that its template needs."""

    columns: Sequence[Any]
    page: ListPage
    form: FilterForm
    query: Mapping[str, str]  # the filters, without the page parameters

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Each column's kind and title."""
        return [(each.__name__, each.short_description) for each in self.columns]

    @property
    def lines(self) -> list[tuple[Model, list[tuple[str, Any]]]]:
        """Each row with the kind and value of its cells."""
        return [(row, [(each.__name__, each(row)) for each in self.columns]) for row in self.page.rows]

    @property
    def first_url(self) -> str:
        return self._url()

    @property
    def newer_url(self) -> str:
        return self._url(**_page_parameters("before", self.page.newer)) if self.page.newer else ""

    @property
    def older_url(self) -> str:
        return self._url(**_page_parameters("after", self.page.older)) if self.page.older else ""

    @property
    def scan_url(self) -> str:
        """URL that continues a scan that was cut off."""
        return self.newer_url if self.page.is_backwards else self.older_url

    @property
    def last_url(self) -> str:
        return self._url(last="1")

    @property
    def is_filtered(self) -> bool:
        return bool(self.query)

    @property
    def active_filters(self) -> list[tuple[str, str, str]]:
        """Each filter's label and value, and the URL of the list without it."""
        return [
            (str(self.form[name].label), _value_label(self.form, name, value), self._url(**{name: ""}))
            for name, value in self.query.items()
        ]

    @property
    def query_string(self) -> str:
        """The filters as a query string, for another page."""
        return urlencode(self.query)

    def _url(self, **more: str) -> str:
        return f"?{urlencode({name: value for name, value in {**self.query, **more}.items() if value})}"


def _page_parameters(direction: str, start: PageStart) -> dict[str, str]:
    return {direction: start.cursor, **({"including": "1"} if start.is_inclusive else {})}


def _value_label(form: FilterForm, name: str, value: str) -> str:
    """Return a filter's value as its field displays it."""
    choices: Any = getattr(form.fields[name], "choices", ())
    return str(dict(choices).get(value, value))


def build_listing(
    request: HttpRequest,
    columns: Sequence[Column],
    form_class: type[FilterForm],
    keyset_query: Callable[[dict[str, Any]], KeysetQuery],
) -> Listing:
    """Build the requested list. With invalid filters it has no rows, and the form shows the errors."""
    form = form_class(request.GET)
    query = sent_filters(form)
    page = read_page(keyset_query(form.cleaned_data), request.GET) if form.is_valid() else ListPage([])
    return Listing(columns, page, form, query)
