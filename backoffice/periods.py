"""Filters of lists by a period of time, each along an index."""

from datetime import timedelta
from typing import Any

from django.db.models import Q

from backoffice import form_fields
from backoffice.lists import FilterForm, Rows
from exchange.ids import first_id_at

# Largest difference between an id's time and the row's: two clocks set them, before and after waiting for a lock.
ID_TIME_TOLERANCE = timedelta(minutes=1)


class PeriodFilterForm(FilterForm):
    """Filter form with a period, whose end is exclusive."""

    since = form_fields.utc_datetime(required=False, label="From (UTC)")
    until = form_fields.utc_datetime(required=False, label="To (UTC)")


def in_period(rows: Rows, column: str, filters: dict[str, Any]) -> Rows:
    """Filter rows by the period, for a column with an index."""
    return rows.filter(period_condition(column, filters))


def period_condition(column: str, filters: dict[str, Any]) -> Q:
    """Return the period as a condition on a column."""
    found = Q()
    if filters["since"]:
        found &= Q(**{f"{column}__gte": filters["since"]})
    if filters["until"]:
        found &= Q(**{f"{column}__lt": filters["until"]})
    return found


def in_period_by_id(rows: Rows, column: str, filters: dict[str, Any]) -> Rows:
    """Filter rows by the period where only the ids have an index. Ids (version 7) begin with the time."""
    if filters["since"]:
        rows = rows.filter(pk__gte=first_id_at(filters["since"], shift=-ID_TIME_TOLERANCE))
    if filters["until"]:
        rows = rows.filter(pk__lt=first_id_at(filters["until"], shift=ID_TIME_TOLERANCE))
    return in_period(rows, column, filters)


def id_period_condition(filters: dict[str, Any]) -> Q:
    """Return the period as a condition on the ids, for rows without another time."""
    found = Q()
    if filters["since"]:
        found &= Q(pk__gte=first_id_at(filters["since"]))
    if filters["until"]:
        found &= Q(pk__lt=first_id_at(filters["until"]))
    return found
