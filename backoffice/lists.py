"""Lists of rows that open over a million of them as over ten.

Nothing is ever counted, and no page costs what the pages before it cost: a page begins at a cursor, from either end. A
list is read along one index, its way; what no index serves is looked for in `FILTERED_ROWS` rows of that way at a time,
and the page says so and offers to look further.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest

from exchange.paging import MAX_CURSOR_LENGTH, Keyset, Page

PAGE_ROWS = 50
FILTERED_ROWS = 20_000  # few enough to be read from a disk at once

Rows = QuerySet[Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a list: its title, and what it shows of a row: an attribute's name, or a function of the row."""

    title: str
    value: str | Callable[[Any], Any]
    is_number: bool = False
    link: Callable[[Any], str] | None = None  # where the value leads
    is_text: bool = False  # of any length: its lines break

    def of(self, row: Any) -> Any:
        return getattr(row, self.value) if isinstance(self.value, str) else self.value(row)


@dataclass(frozen=True, slots=True)
class Way:
    """How a list is read: rows that an index serves in the order of `keyset`, and what to look for among them."""

    rows: Rows
    keyset: Keyset
    among: Q = field(default_factory=Q)  # what no index serves


@dataclass(frozen=True, slots=True)
class RowPage:
    """What a list shows: rows, where it goes on in both directions (None: nowhere), and whether it looked at all."""

    rows: list[Any]
    newer: str | None
    older: str | None
    looked_through: int = 0  # so many rows, and no further


class PageForm(forms.Form):
    """Which page: what comes after a cursor, what comes before one, or the last; else the first."""

    after = forms.CharField(max_length=MAX_CURSOR_LENGTH, required=False)
    before = forms.CharField(max_length=MAX_CURSOR_LENGTH, required=False)
    last = forms.BooleanField(required=False)


class FilterForm(forms.Form):
    """What a list can be asked for: a form that is sent as the page's query, every field optional."""

    q = forms.CharField(max_length=100, required=False, label="Search")


def page_of(way: Way, query: Mapping[str, Any]) -> RowPage:
    """The page that the query asks for; one whose cursor is not ours is the first."""
    form = PageForm(query)
    asked = form.cleaned_data if form.is_valid() else {}
    try:
        if asked.get("before"):
            return _backwards(way, asked["before"])
        if asked.get("last"):
            return _backwards(way, None)
        return _forwards(way, asked.get("after") or None)
    except ValueError:
        return _forwards(way, None)


def _forwards(way: Way, cursor: str | None) -> RowPage:
    rows, older, looked_through = _read(way, way.keyset, cursor)
    newer = way.keyset.write(rows[0]) if cursor and rows else cursor
    return RowPage(rows, newer, older, looked_through)


def _backwards(way: Way, cursor: str | None) -> RowPage:
    rows, newer, looked_through = _read(way, way.keyset.reversed(), cursor)
    older = way.keyset.write(rows[0]) if cursor and rows else cursor
    return RowPage(rows[::-1], newer, older, looked_through)


def _read(way: Way, keyset: Keyset, cursor: str | None) -> tuple[list[Any], str | None, int]:
    """Up to a page of rows, the cursor to go on from, and how many rows were looked through if that was the limit."""
    position = keyset.read(cursor) if cursor else None
    page = Page(PAGE_ROWS, position)
    if not way.among:
        return *keyset.cut(keyset.rows(way.rows, page), page), 0
    edge = _edge(way, keyset, position)
    rows = way.rows if edge is None else keyset.until(way.rows, edge)
    found, further = keyset.cut(keyset.rows(rows.filter(way.among), page), page)
    if further is None and edge is not None:
        return found, keyset.write_position(edge), FILTERED_ROWS
    return found, further, 0


def _edge(way: Way, keyset: Keyset, position: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """The sort key of the last row that is looked at, if there are more rows than that."""
    ahead = keyset.rows(way.rows, Page(FILTERED_ROWS, position)).values_list(*keyset.names)
    found: list[tuple[Any, ...]] = list(ahead[FILTERED_ROWS - 1 : FILTERED_ROWS + 1])
    return found[0] if len(found) == 2 else None


# --- As a page shows it ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listing:
    """A list with all that a template needs of it."""

    columns: Sequence[Column]
    page: RowPage
    form: FilterForm
    query: Mapping[str, str]  # what is asked for, without the page

    @property
    def lines(self) -> list[tuple[Model, list[tuple[Column, Any, str]]]]:
        """Each row with its cells: column, value, and where it leads."""
        return [
            (row, [(each, each.of(row), each.link(row) if each.link else "") for each in self.columns])
            for row in self.page.rows
        ]

    @property
    def first_url(self) -> str:
        return self._url()

    @property
    def newer_url(self) -> str:
        return self._url(before=self.page.newer) if self.page.newer else ""

    @property
    def older_url(self) -> str:
        return self._url(after=self.page.older) if self.page.older else ""

    @property
    def last_url(self) -> str:
        return self._url(last="1")

    @property
    def is_filtered(self) -> bool:
        return bool(self.query)

    def _url(self, **more: str) -> str:
        return f"?{urlencode({**self.query, **more})}"


def listing(
    request: HttpRequest, columns: Sequence[Column], form_class: type[FilterForm], way: Callable[[dict[str, Any]], Way]
) -> Listing:
    """The list that a request asks for; with bad filters it shows nothing, and the form says why."""
    form = form_class(request.GET)
    query = {name: request.GET[name] for name in form.fields if request.GET.get(name)}
    page = page_of(way(form.cleaned_data), request.GET) if form.is_valid() else RowPage([], None, None)
    return Listing(columns, page, form, query)
