"""Lists of what has a time: from when to when, by an index."""

from datetime import timedelta
from typing import Any

from django.db.models import Q

from backoffice import form_fields
from backoffice.lists import FilterForm, Rows
from exchange.ids import first_id_at

SLACK = timedelta(minutes=1)  # how far an id's time may be from the row's: they are by two clocks, and a lock apart


class PeriodForm(FilterForm):
    """Beside what else can be asked: what happened in a period, its end not in it."""

    since = form_fields.moment(required=False, label="From (UTC)")
    until = form_fields.moment(required=False, label="To (UTC)")


def within(rows: Rows, column: str, asked: dict[str, Any]) -> Rows:
    """Those of the period asked for, where an index has this column."""
    return rows.filter(period(column, asked))


def period(column: str, asked: dict[str, Any]) -> Q:
    """The period as a condition."""
    found = Q()
    if asked["since"]:
        found &= Q(**{f"{column}__gte": asked["since"]})
    if asked["until"]:
        found &= Q(**{f"{column}__lt": asked["until"]})
    return found


def within_by_id(rows: Rows, column: str, asked: dict[str, Any]) -> Rows:
    """The same where only the ids have an index: version 7, they begin with the time."""
    if asked["since"]:
        rows = rows.filter(pk__gte=first_id_at(asked["since"], shift=-SLACK))
    if asked["until"]:
        rows = rows.filter(pk__lt=first_id_at(asked["until"], shift=SLACK))
    return within(rows, column, asked)


def id_period(asked: dict[str, Any]) -> Q:
    """The same of what has no other time than that of its id."""
    found = Q()
    if asked["since"]:
        found &= Q(pk__gte=first_id_at(asked["since"]))
    if asked["until"]:
        found &= Q(pk__lt=first_id_at(asked["until"]))
    return found
