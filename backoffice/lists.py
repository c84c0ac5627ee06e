"""Lists of rows: their columns, and the pages of tables that grow without end.

The rule: a table of at most some ten thousand rows (brokers, instruments, keys, subscriptions, reconciliations, users)
has Django's changelist with `list_display`, `list_filter`, `search_fields`, `ordering` and `actions`. Orders, trades,
transfers, events, deliveries and audit entries have the keyset lists of this module, because Django's would count and
skip millions of rows. Both declare their columns in `list_display`.

A keyset list counts nothing, and no page costs what the pages before it cost: a page begins at a cursor, from either
end. A list is read along one index, its way; what no index serves is looked for in `FILTERED_ROWS` rows of that way at
a time, and the page says so and offers to look further.
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

from backoffice.templatetags.formatting import shown
from exchange.http.paging import MAX_CURSOR_LENGTH, Keyset, Page

PAGE_ROWS = 50
FILTERED_ROWS = 20_000  # few enough to be read from a disk at once
BATCH_ROWS = 5_000  # of an export, in one statement

Rows = QuerySet[Any]
Position = tuple[Any, ...]  # a row's sort key


Column = Callable[[Any], Any]  # of `list_display`: what it shows of a row


def column(
    title: str, value: str | Column, *, is_number: bool = False, is_text: bool = False, link: Column | None = None
) -> Column:
    """A column of an attribute, by which Django can sort, or of a function of the row; `link` gives its URL."""
    value_of = attrgetter(value) if isinstance(value, str) else value

    @admin.display(description=title, ordering=value if isinstance(value, str) else None)
    def cell(row: Any) -> Any:
        text, url = shown(value_of(row)), link(row) if link else ""
        return format_html('<a class="o-link" href="{}">{}</a>', url, text) if url else text

    cell.__name__ = "number" if is_number else "text" if is_text else "value"  # in the CSS class of the cells
    return cell


@dataclass(frozen=True, slots=True)
class Way:
    """How a list is read: rows that an index serves in the order of `keyset`, and what to look for among them.

    Where several indexes serve a part each, `also` has the others': they are merged, and what several have shows once.
    """

    rows: Rows
    keyset: Keyset
    among: Q = field(default_factory=Q)  # what no index serves
    also: Sequence[Rows] = ()

    def reversed(self) -> "Way":
        """The same from the other end."""
        return Way(self.rows, self.keyset.reversed(), self.among, self.also)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a page begins: past a row, or with it."""

    cursor: str
    is_with: bool = False


@dataclass(frozen=True, slots=True)
class RowPage:
    """What a list shows: its rows, and where it goes on in both directions, if it does."""

    rows: list[Any]
    newer: Start | None = None
    older: Start | None = None
    looked_through: int = 0  # so many rows, and no further
    is_backwards: bool = False


class PageForm(forms.Form):
    """Which page: what comes after a cursor, what comes before one, or the last; else the first."""

    after = forms.CharField(max_length=MAX_CURSOR_LENGTH, required=False)
    before = forms.CharField(max_length=MAX_CURSOR_LENGTH, required=False)
    including = forms.BooleanField(required=False)  # the row of the cursor
    last = forms.BooleanField(required=False)


def page_of(way: Way, query: Mapping[str, Any]) -> RowPage:
    """The page that the query asks for; one whose cursor is none of this way's is the first."""
    form = PageForm(query)
    asked = form.cleaned_data if form.is_valid() else {}
    is_with = asked.get("including", False)
    try:
        if asked.get("before"):
            return _backwards(way, Start(asked["before"], is_with)) or _forwards(way, None)
        if asked.get("last"):
            return _backwards(way, None) or _forwards(way, None)
        return _forwards(way, Start(asked["after"], is_with) if asked.get("after") else None)
    except ValueError:
        return _forwards(way, None)


def _forwards(way: Way, start: Start | None) -> RowPage:
    found = _read(way, start, PAGE_ROWS)
    return RowPage(found.rows, _back(way, start, found), found.further, found.looked_through)


def _backwards(way: Way, start: Start | None) -> RowPage | None:
    """None for a page that would show the first rows and no full page of them: that is the first page's."""
    found = _read(way.reversed(), start, PAGE_ROWS)
    if start and not found.further and len(found.rows) < PAGE_ROWS:
        return None
    older = _back(way, start, found)
    return RowPage(found.rows[::-1], found.further, older, found.looked_through, is_backwards=True)


def _back(way: Way, start: Start | None, found: "_Found") -> Start | None:
    """What comes before all that was looked at; without a row to name, it is whatever this page did not begin with."""
    if start is None:
        return None
    if found.rows:
        return Start(way.keyset.write(found.rows[0]))
    return Start(start.cursor, not start.is_with)


@dataclass(frozen=True, slots=True)
class _Found:
    rows: list[Any]
    further: Start | None = None
    looked_through: int = 0


def _read(way: Way, start: Start | None, limit: int) -> _Found:
    """Up to so many rows, and where to go on: also where only so many rows were looked through, and no further."""
    keyset, position = way.keyset, way.keyset.read(start.cursor) if start else None
    sources = [way.rows, *way.also]
    if start and start.is_with and position:
        sources, position = [keyset.reversed().until(rows, position) for rows in sources], None
    page = Page(limit, position)
    edge = _edge(sources, keyset, position) if way.among else None
    if edge:
        sources = [keyset.until(rows, edge) for rows in sources]
    rows, cursor = keyset.cut(_merged([rows.filter(way.among) for rows in sources], keyset, page), page)
    if cursor is None and edge:
        return _Found(rows, Start(keyset.write_position(edge)), FILTERED_ROWS)
    return _Found(rows, Start(cursor) if cursor else None)


def _merged(sources: Sequence[Rows], keyset: Keyset, page: Page) -> list[Any]:
    """The page's rows of all sources in their order, and one more if there is one."""
    if len(sources) == 1:
        return list(keyset.rows(sources[0], page))
    key_of = attrgetter(*keyset.names)
    found = {key_of(row): row for rows in sources for row in keyset.rows(rows, page)}
    return [found[key] for key in sorted(found, reverse=_descends(keyset))]


def _edge(sources: Sequence[Rows], keyset: Keyset, position: Position | None) -> Position | None:
    """The sort key of the last row that is looked at, if any source has more rows than are looked through."""
    page, edges = Page(FILTERED_ROWS, position), []
    for rows in sources:
        ahead = list(keyset.rows(rows, page).values_list(*keyset.names)[FILTERED_ROWS - 1 : FILTERED_ROWS + 1])
        edges += ahead[:1] if len(ahead) == 2 else []
    nearest = max if _descends(keyset) else min
    return nearest(edges) if edges else None


def _descends(keyset: Keyset) -> bool:
    return keyset.ordering[0].startswith("-")


def batches(way: Way, *fields: str) -> Iterator[list[tuple[Any, ...]]]:
    """These fields of all rows of the way, as many at a time as one short statement reads; a batch may be empty."""
    names = tuple(dict.fromkeys([*fields, *way.keyset.names]))
    parts = [rows.values_list(*names, named=True) for rows in (way.rows, *way.also)]
    lean, start = Way(parts[0], way.keyset, way.among, parts[1:]), None
    while True:
        found = _read(lean, start, BATCH_ROWS)
        yield [row[: len(fields)] for row in found.rows]
        if found.further is None:
            return
        start = found.further


# --- What is asked for ----------------------------------------------------------------------------------------------


class FilterForm(forms.Form):
    """What a list can be asked for: a form that is sent as the page's query, every field optional."""

    q = forms.CharField(max_length=100, required=False, label="Search")


# --- As a page shows it ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listing:
    """A list with all that a template needs of it."""

    columns: Sequence[Any]
    page: RowPage
    form: FilterForm
    query: Mapping[str, str]  # what is asked for, without the page

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Each column's kind and title."""
        return [(each.__name__, each.short_description) for each in self.columns]

    @property
    def lines(self) -> list[tuple[Model, list[tuple[str, Any]]]]:
        """Each row with its cells: kind and value."""
        return [(row, [(each.__name__, each(row)) for each in self.columns]) for row in self.page.rows]

    @property
    def first_url(self) -> str:
        return self._url()

    @property
    def newer_url(self) -> str:
        return self._url(**_asking("before", self.page.newer)) if self.page.newer else ""

    @property
    def older_url(self) -> str:
        return self._url(**_asking("after", self.page.older)) if self.page.older else ""

    @property
    def further_url(self) -> str:
        """Where there is more to look through."""
        return self.newer_url if self.page.is_backwards else self.older_url

    @property
    def last_url(self) -> str:
        return self._url(last="1")

    @property
    def is_filtered(self) -> bool:
        return bool(self.query)

    @property
    def in_force(self) -> list[tuple[str, str, str]]:
        """Each filter: what it is about, what it asks for, and the list without it."""
        return [
            (str(self.form[name].label), _asked(self.form, name, value), self._url(**{name: ""}))
            for name, value in self.query.items()
        ]

    @property
    def query_string(self) -> str:
        """What is asked for, for another page."""
        return urlencode(self.query)

    def _url(self, **more: str) -> str:
        return f"?{urlencode({name: value for name, value in {**self.query, **more}.items() if value})}"


def _asking(direction: str, start: Start) -> dict[str, str]:
    return {direction: start.cursor, **({"including": "1"} if start.is_with else {})}


def _asked(form: FilterForm, name: str, value: str) -> str:
    """A value as its field shows it."""
    choices: Any = getattr(form.fields[name], "choices", ())
    return str(dict(choices).get(value, value))


def listing(
    request: HttpRequest, columns: Sequence[Column], form_class: type[FilterForm], way: Callable[[dict[str, Any]], Way]
) -> Listing:
    """The list that a request asks for; with bad filters it shows nothing, and the form says why."""
    form = form_class(request.GET)
    query = {name: request.GET[name] for name in form.fields if request.GET.get(name)}
    page = page_of(way(form.cleaned_data), request.GET) if form.is_valid() else RowPage([])
    return Listing(columns, page, form, query)
