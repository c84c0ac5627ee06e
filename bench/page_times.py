"""How long each page of the back office takes, and how many queries: every page and every filter, from both ends.

Run by `bench.backoffice` in the environment of a database that holds a past. Pages are asked for through Django's test
client, signed in: no sockets, and everything else.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from time import perf_counter
from typing import Any

import django

django.setup()

from django import forms  # noqa: E402 (models can be had only now)
from django.contrib.auth.models import User  # noqa: E402
from django.db import connection  # noqa: E402
from django.db.models import Model  # noqa: E402
from django.test import Client  # noqa: E402
from django.test.utils import CaptureQueriesContext  # noqa: E402
from django.urls import reverse  # noqa: E402
from django.utils.http import urlencode  # noqa: E402

from backoffice.pages import Pages  # noqa: E402
from bench import pages  # noqa: E402
from config.local.supervisor import say  # noqa: E402
from exchange.database import database_now  # noqa: E402

QUERIES_MAX, MILLISECONDS_MAX = 20, 500
TIMES = 5  # each page, of which the median counts
ENDS = ("", "?last=1")
# What filters are asked for that choose from no list: of each name what the past has.
WORDS = {"broker": "bench-1", "symbol": "S1", "actor": "bench", "subject": "bench-1", "url": "bench-1"}


@dataclass(frozen=True, slots=True)
class Measured:
    """A page, the queries of its first time and the median of all its times."""

    path: str
    queries: int
    milliseconds: float

    @property
    def is_within(self) -> bool:
        return self.queries < QUERIES_MAX and self.milliseconds < MILLISECONDS_MAX


def measure(client: Client, path: str) -> Measured:
    """Ask for a page several times; it must be answered with 200."""
    queries, times = 0, []
    for n in range(TIMES):
        with CaptureQueriesContext(connection) as statements:
            began = perf_counter()
            status = client.get(path, follow=True).status_code
            times.append((perf_counter() - began) * 1000)
        assert status == 200, f"{path}: {status}"
        queries = len(statements) if n == 0 else queries
    return Measured(path, queries, median(times))


def paths() -> list[str]:
    """Every page, every list's ends, and every list by each of its filters."""
    found = [page.path for page in pages.pages()]
    for model, owner in pages.registry().items():
        if isinstance(owner, Pages):
            url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
            found += [f"{url}{end}" for end in ENDS]
            found += [f"{url}?{urlencode([asked])}" for asked in _asked(model, owner.form_class())]
    return list(dict.fromkeys(found))


def _asked(model: type[Model], form: forms.Form) -> Iterator[tuple[str, str]]:
    """A filter's name with each thing that it can be asked for."""
    for name, field in form.fields.items():
        for value in _values(model, name, field):
            yield name, str(value)


def _values(model: type[Model], name: str, field: forms.Field) -> Sequence[Any]:
    choices: Any = getattr(field, "choices", None)
    if choices:
        return [value for value, _ in choices if value]
    if isinstance(field, forms.BooleanField):
        return ["on"]
    if isinstance(field, forms.DateTimeField):
        return [f"{database_now() - timedelta(days=15):%Y-%m-%dT%H:%M}"]
    row = model._default_manager.order_by("pk").first()
    return ["not there", *([row.pk] if row else [])] if name == "q" else [WORDS[name]] if name in WORDS else []


def main() -> int:
    """Measure all, the slowest first; 1 when a page took more than it may."""
    logging.disable(logging.INFO)  # a line for each request
    client = Client(SERVER_NAME="localhost")
    client.force_login(User.objects.create_superuser("bench"))
    User.objects.create(username="looked-at", is_staff=True)
    measured = [measure(client, path) for path in paths()]
    for each in sorted(measured, key=lambda each: -each.milliseconds):
        mark = "" if each.is_within else "  OVER"
        say(f"{each.milliseconds:7.0f} ms {each.queries:3d} queries  {each.path}{mark}")
    over = [each for each in measured if not each.is_within]
    slowest = max(each.milliseconds for each in measured)
    say(f"{len(measured)} pages, the slowest {slowest:.0f} of {MILLISECONDS_MAX} ms, {len(over)} over")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
