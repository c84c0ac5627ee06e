"""Keyset pagination: a cursor is the sort key of the last row of a page, so inserted or deleted rows shift nothing."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from operator import attrgetter
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from django.conf import settings
from django.db.models import Model, Q, QuerySet
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response

from exchange.errors import FieldError
from exchange.http.fields import QueryInteger, StrictSerializer, Text, validate
from exchange.json_codec import Instant

Row = TypeVar("Row", bound=Model)
MAX_CURSOR_LENGTH = 200


class PageQuerySerializer(StrictSerializer):
    """The query parameters of every list."""

    limit = QueryInteger(1, settings.PAGE_SIZE_MAX, default=settings.PAGE_SIZE_DEFAULT)
    cursor = Text(max_length=MAX_CURSOR_LENGTH, required=False)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The requested rows: at most `limit`, after the sort key `position` (None: from the start)."""

    limit: int
    position: tuple[Any, ...] | None


class Keyset:
    """A sort order: columns with the types of their values. Together they are unique, and all have the same direction.

    `Keyset(("-created_at", Instant), ("-id", UUID))` is newest first.
    """

    def __init__(self, *columns: tuple[str, Any]) -> None:
        self._columns = columns
        self.ordering = tuple(name for name, _ in columns)
        self.names = tuple(name.lstrip("-") for name in self.ordering)
        self._beyond = "lt" if self.ordering[0].startswith("-") else "gt"
        kinds: Any = tuple(kind for _, kind in columns)
        self._decoder: msgspec.json.Decoder[tuple[Any, ...]] = msgspec.json.Decoder(tuple[kinds])

    def reversed(self) -> "Keyset":
        """Return the opposite order."""
        return Keyset(*((name[1:] if name.startswith("-") else f"-{name}", kind) for name, kind in self._columns))

    def decode_cursor(self, cursor: str) -> tuple[Any, ...]:
        """Return the sort key in a cursor, or raise `ValueError` if the cursor is not one of this keyset."""
        try:
            position = self._decoder.decode(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
            return tuple(map(_to_database_value, position))
        except (ValueError, OverflowError) as error:  # the errors of msgspec and base64 are ValueErrors
            raise ValueError("not a cursor of this list") from error

    def encode_cursor(self, row: object) -> str:
        """Return the cursor of the page after `row`."""
        return self.encode_position([attrgetter(name)(row) for name in self.names])

    def encode_position(self, position: Iterable[Any]) -> str:
        """Return the cursor of the page after the row with this sort key."""
        return base64.urlsafe_b64encode(msgspec.json.encode(list(position))).decode().rstrip("=")

    def page_queryset(self, queryset: QuerySet[Row], page: PageRequest) -> QuerySet[Row]:
        """Return the rows of the page and the next row, if any, which tells `split` that there is another page."""
        if page.position is not None:
            queryset = queryset.filter(self._after(page.position))
        return queryset.order_by(*self.ordering)[: page.limit + 1]

    def split(self, rows: Iterable[Row], page: PageRequest) -> tuple[list[Row], str | None]:
        """Return the rows of this page, and the cursor of the next page if there is one."""
        found = list(islice(rows, page.limit + 1))
        if len(found) <= page.limit:
            return found, None
        return found[:-1], self.encode_cursor(found[-2])

    def up_to(self, queryset: QuerySet[Row], position: tuple[Any, ...]) -> QuerySet[Row]:
        """Return the rows up to and including this sort key."""
        return queryset.filter(self.reversed()._after(position, or_at="e"))

    def _after(self, position: tuple[Any, ...], *, or_at: str = "") -> Q:
        """Condition of the rows after `position`: a <= x AND (a < x OR b < y) … The first part selects by index."""
        *outer, (last, value) = zip(self.names, position, strict=True)
        condition = Q((f"{last}__{self._beyond}{or_at}", value))
        for name, value in reversed(outer):
            condition = Q((f"{name}__{self._beyond}e", value)) & (Q((f"{name}__{self._beyond}", value)) | condition)
        return condition


class KeysetPagination(BasePagination):
    """DRF pagination in the order of a view set's `keyset`; the response is its `page_class`."""

    def paginate_queryset(  # type: ignore[override]  # a queryset only, no list
        self, queryset: QuerySet[Row], request: Request, view: Any = None
    ) -> list[Row]:
        keyset: Keyset = view.keyset
        rows, self._next_cursor = keyset.split(keyset.page_queryset(queryset, view.page), view.page)
        self._page_class = view.page_class
        return rows

    def get_paginated_response(self, data: Any) -> Response:
        return Response(self._page_class(data, self._next_cursor))


def parse_page(keyset: Keyset, parameters: dict[str, str], errors: list[FieldError]) -> PageRequest:
    """Parse the page parameters of a query, adding their errors to `errors`."""
    query = validate(PageQuerySerializer, parameters, errors)
    position = None
    if "cursor" in parameters and all(error.field != "cursor" for error in errors):
        try:
            position = keyset.decode_cursor(parameters["cursor"])
        except ValueError:
            errors.append(FieldError("cursor", "invalid", "Must be the next_cursor of a page of this list."))
    return PageRequest(query.get("limit", 0), position)


def _to_database_value(value: Any) -> Any:
    """Return `value` as PostgreSQL accepts it, or raise `ValueError`: a client may have made up the cursor."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError("NUL")
    if isinstance(value, Decimal) and not (value.is_finite() and abs(value) < _DECIMAL_LIMIT):
        raise ValueError("no amount")
    return value.astimezone(UTC) if isinstance(value, datetime) else value


_DECIMAL_LIMIT = 10**16  # above any price

NEWEST_FIRST = Keyset(("-created_at", Instant), ("-id", UUID))
