"""The back office: everything there is, to be looked at. Nothing is added, changed or deleted in it.

Each list must open over a million rows as it does over ten. So nothing is ever counted; a list follows its primary key
and a search the index of what it asks for, whose order it keeps; and a filter, which no index serves, looks at the
first `FILTERED_ROWS` of these only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.options import ShowFacets
from django.contrib.admin.views.main import SEARCH_VAR, ChangeList
from django.core.exceptions import ValidationError
from django.core.paginator import EmptyPage, InvalidPage, Page, Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from exchange.models import ApiKey, Broker, Holding, Instrument, Transfer

PAGE_ROWS = 50
MAX_PAGES = 100  # each page costs what the pages before it cost: beyond these one searches or filters
FILTERED_ROWS = 20_000  # few enough to be read from a disk at once

Rows = QuerySet[Any]


@dataclass(frozen=True, slots=True)
class Search:
    """Exact values of `columns`, a word each, in an index that goes on in `ordering`.

    Where a value alone would not tell which column is meant, the word `said` comes before it.
    """

    columns: tuple[str, ...]
    ordering: tuple[str, ...]
    said: tuple[str, ...] = ()
    among: dict[str, Any] = field(default_factory=dict)  # the condition of a partial index

    def rows(self, model: type[Model], words: Sequence[str]) -> Rows:
        """What has these values; nothing if they cannot be values of these columns."""
        everything = model._default_manager.order_by(*self.ordering)
        start = len(self.said)
        if tuple(words[:start]) != self.said or len(words[start:]) != len(self.columns):
            return everything.none()
        columns = {column.name: column for column in model._meta.fields}
        try:
            wanted = {
                name: columns[name].to_python(word) for name, word in zip(self.columns, words[start:], strict=True)
            }
        except ValidationError:
            return everything.none()
        return everything.filter(**wanted, **self.among)


class MoreThan(int):
    """A number of rows that is known to be exceeded by one at least."""

    def __str__(self) -> str:
        return f"more than {self - 1:,}"


class Pages(Paginator):  # type: ignore[type-arg]  # Django's takes no parameters when it runs
    """Pages that nobody counts: each is read with one row more, which tells whether there is another."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.count, self.num_pages = MAX_PAGES * self.per_page, MAX_PAGES  # what may be asked for, until one is read

    def page(self, number: int | str) -> Page[Any]:
        number = self.validate_number(number)
        start = (number - 1) * self.per_page
        rows = list(self.object_list[start : start + self.per_page + 1])
        if not rows and number > 1:
            raise EmptyPage(self.error_messages["no_results"])
        is_last = len(rows) <= self.per_page
        self.count = start + len(rows) if is_last else MoreThan(start + len(rows))
        self.num_pages = number if is_last else min(number + 1, MAX_PAGES)
        return Page(rows[: self.per_page], number, self)

    def get_page(self, number: int | float | str | None) -> Page[Any]:
        try:
            return self.page(number)  # type: ignore[arg-type]  # what is no number is an InvalidPage
        except InvalidPage:
            return self.page(1)


class Changelist(ChangeList):
    """Django's list, with what is known of its length once its page was read."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_count = self.paginator.count
        self.multi_page = self.result_count > self.list_per_page


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # nor does this one
    """Look, search and filter; `searches` are tried in turn, and the first that finds something is what was meant."""

    searches: Sequence[Search]
    ordering = ("-pk",)  # version 7 UUIDs, newest first
    sortable_by = ()
    paginator = Pages
    list_per_page = PAGE_ROWS
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    search_fields = ("pk",)  # shows the box; what is searched for is said in `searches`

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> Any:
        return self.fields or [column.name for column in self.opts.concrete_fields]

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """None also for an id that no row can have."""
        return None if "\0" in object_id else super().get_object(request, object_id, from_field)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return Changelist

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """What the filters ask, and no more: Django would let a URL look into any column, with a regex even."""
        used: Any = self.list_filter
        asked = {f"{each}__exact" if isinstance(each, str) else f"{each[0]}__isempty" for each in used}
        return lookup in asked and "\0" not in value

    def get_search_results(self, request: HttpRequest, queryset: Rows, search_term: str) -> tuple[Rows, bool]:
        term = request.GET.get(SEARCH_VAR, search_term)  # Django shows everything where it refuses a NUL
        if "\0" in term:
            return queryset.none(), False
        words = term.split()
        rows = self._found(words) if words else self.get_queryset(request)
        if queryset.query.where:  # a filter is at work
            rows = self._first(request, rows)
        return queryset & rows, False  # in the order of `rows`, whatever the URL asks for

    def _found(self, words: Sequence[str]) -> Rows:
        """What the first search that finds something finds."""
        for search in self.searches:
            rows = search.rows(self.model, words)
            if rows[:1]:
                break
        return rows

    def _first(self, request: HttpRequest, rows: Rows) -> Rows:
        """The first `FILTERED_ROWS` of `rows`, and those that are the same as the last of them to their ordering."""
        ordering = str(rows.query.order_by[0])
        column = ordering.removeprefix("-")
        edge = list(rows.values_list(column, flat=True)[FILTERED_ROWS - 1 : FILTERED_ROWS + 1])
        if len(edge) < 2:  # there are no more
            return rows
        self.message_user(request, f"Only the first {FILTERED_ROWS:,} rows were filtered.", messages.WARNING)
        return rows.filter(**{f"{column}__{'gt' if ordering.startswith('-') else 'lt'}e": edge[0]})


@admin.register(Broker)
class BrokerAdmin(ReadOnlyAdmin):
    searches = (Search(("id",), ("pk",)),)
    search_help_text = "A broker's id"
    ordering = ("pk",)
    list_display = ("id", "status", "cash", "reserved_cash", "event_sequence", "created_at", "updated_at")
    list_filter = ("status",)


@admin.register(Instrument)
class InstrumentAdmin(ReadOnlyAdmin):
    searches = (Search(("symbol",), ("pk",)),)
    search_help_text = "A symbol"
    ordering = ("pk",)
    list_display = ("symbol", "name", "status", "tick_size", "lot_size", "pricing", "halt_reason", "created_at")
    list_filter = ("status", "pricing")


@admin.register(Holding)
class HoldingAdmin(ReadOnlyAdmin):
    searches = (Search(("broker",), ("instrument_id",)), Search(("broker", "instrument"), ("pk",)))
    search_help_text = "A broker's id, or a broker's id and a symbol"
    list_display = ("id", "broker_id", "instrument_id", "quantity", "reserved")


@admin.register(Transfer)
class TransferAdmin(ReadOnlyAdmin):
    searches = (
        Search(("id",), ("pk",)),
        Search(("reference",), ("pk",)),
        Search(("broker",), ("-created_at", "-pk")),
        Search(("broker",), ("-created_at", "-pk"), said=("broker",)),
    )
    search_help_text = "A transfer's id or reference, or a broker's id (“broker 17”, if 17 is a reference too)"
    list_display = ("id", "reference", "broker_id", "cash", "instrument_id", "quantity", "reason", "created_at")
    list_filter = (("cash", admin.EmptyFieldListFilter),)


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    searches = (Search(("prefix",), ("pk",)), Search(("broker",), ("-created_at", "pk")))
    search_help_text = "A key's prefix, or a broker's id"
    ordering = ("pk",)
    fields = ("prefix", "broker", "name", "scopes", "created_at", "expires_at", "revoked_at")  # never the secret's hash
    list_display = ("prefix", "broker_id", "name", "scopes", "created_at", "expires_at", "revoked_at")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter),)
