"""Times and queries of every page of the back office, with every filter and the last page of every list.

`bench.backoffice` runs this in the environment of a database with a history. The pages are requested through Django's
test client: the whole site without sockets.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from time import perf_counter
from typing import Any

import django

django.setup()

from django import forms  # noqa: E402 (Django must be set up first)
from django.contrib.auth.models import AnonymousUser, User  # noqa: E402
from django.db import connection  # noqa: E402
from django.db.models import Model  # noqa: E402
from django.test import Client, RequestFactory  # noqa: E402
from django.test.utils import CaptureQueriesContext  # noqa: E402

from backoffice.events import event_data  # noqa: E402
from backoffice.links import list_url  # noqa: E402
from backoffice.model_admin import ExchangeModelAdmin, KeysetModelAdmin  # noqa: E402
from bench import pages  # noqa: E402
from config.local.processes import print_line  # noqa: E402
from exchange.database import database_now  # noqa: E402
from exchange.models import ApiKey, AuditEntry, Broker, Instrument, Transfer  # noqa: E402
from orders.models import Order, Trade  # noqa: E402
from webhooks.models import Delivery, Event, Subscription  # noqa: E402

QUERIES_MAX, MILLISECONDS_MAX = 20, 500
TIMES = 5  # requests per page; their median counts

FilterValues = Mapping[tuple[type[Model], str], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class PageTime:
    """A page with the queries of its first request and the median time of all its requests."""

    path: str
    queries: int
    milliseconds: float

    @property
    def is_within(self) -> bool:
        return self.queries < QUERIES_MAX and self.milliseconds < MILLISECONDS_MAX


def measure(client: Client, path: str) -> PageTime:
    """Request a page several times; each status must be 200."""
    queries, times = 0, []
    for n in range(TIMES):
        with CaptureQueriesContext(connection) as statements:
            began = perf_counter()
            status = client.get(path, follow=True).status_code
            times.append((perf_counter() - began) * 1000)
        assert status == 200, f"{path}: {status}"
        queries = len(statements) if n == 0 else queries
    return PageTime(path, queries, median(times))


def paths() -> list[str]:
    """Return every page, the last page of every keyset list, and every list with each of its filters."""
    found = [page.path for page in pages.pages()]
    known = filter_values()
    for model, owner in pages.registry().items():
        if isinstance(owner, KeysetModelAdmin):
            found += [f"{list_url(model)}?last=1"]
            found += [
                list_url(model, **{name: value}) for name, value in _filter_choices(model, owner.form_class(), known)
            ]
        elif isinstance(owner, ExchangeModelAdmin):
            found += _changelist_choices(model, owner)
            found += [list_url(of, **{name: each}) for (of, name), few in known.items() if of is model for each in few]
    return list(dict.fromkeys(found))


def filter_values() -> FilterValues:
    """Return values of the history for each filter without fixed choices."""
    delivery = Delivery.objects.select_related("event").latest("pk")
    order_id = event_data(delivery.event)["order_id"]
    found: dict[tuple[type[Model], str], Sequence[Any]] = {
        (Broker, "q"): ["bench-1"],
        (Instrument, "q"): ["S1", "Instrument 1"],
        (Order, "q"): [order_id, "00000000008", "past-8"],  # document number, client_order_id
        (Order, "off_tick"): ["7777"],
        (Order, "off_lot"): [777_777],
        (Trade, "q"): [Trade.objects.latest("pk").pk, order_id],
        (Transfer, "q"): [Transfer.objects.latest("pk").pk, "initial/bench-1/cash"],
        (ApiKey, "q"): [ApiKey.objects.latest("created_at").pk, "report"],
        (AuditEntry, "q"): ["S2", "bench-1"],
        (AuditEntry, "actor"): [pages.BY.name, "operator-1"],
        (Event, "q"): [delivery.event_id, order_id],
        (Delivery, "q"): [delivery.pk, delivery.event_id, order_id],
        (Delivery, "status_code"): [200, 500],
        (Delivery, "subscription"): [delivery.subscription_id],
        (Subscription, "q"): [delivery.subscription_id, "//bench-1.example"],
    }
    month = database_now() - timedelta(days=15)
    for model in (Order, Trade, Transfer, AuditEntry, Event, Delivery):
        found |= {(model, name): [f"{month:%Y-%m-%dT%H:%M}"] for name in ("since", "until")}
    found |= {
        (model, "broker"): ["bench-1"] for model in (Order, Trade, Transfer, ApiKey, Event, Delivery, Subscription)
    }
    return found | {(model, "symbol"): ["S1"] for model in (Order, Trade, Transfer)}


def _filter_choices(model: type[Model], form: forms.Form, known: FilterValues) -> Iterator[tuple[str, str]]:
    """Yield each filter with each of its values."""
    for name, field in form.fields.items():
        choices: Any = getattr(field, "choices", None)
        if choices:
            yield from ((name, value) for value, _ in choices if value)
        elif isinstance(field, forms.BooleanField):
            yield name, "on"
        else:
            yield from ((name, str(value)) for value in known[model, name])
    if "q" in form.fields:
        yield "q", "not there"


def _changelist_choices(model: type[Model], owner: ExchangeModelAdmin) -> Iterator[str]:
    """Yield a changelist of Django's with each choice of its filters."""
    request = RequestFactory().get(list_url(model))
    request.user = AnonymousUser()
    changelist = owner.get_changelist_instance(request)
    for spec in changelist.filter_specs:
        yield from (f"{list_url(model)}{choice['query_string']}" for choice in spec.choices(changelist))


def main() -> int:
    """Print the figures of all pages, slowest first, and return 1 if any exceeds a limit."""
    logging.disable(logging.INFO)  # the request log
    client = Client(SERVER_NAME="localhost")
    client.force_login(User.objects.create_superuser("bench"))
    pages.create_rows(actions=Order.objects.count())
    measured = [measure(client, path) for path in paths()]
    for each in sorted(measured, key=lambda each: -each.milliseconds):
        mark = "" if each.is_within else "  OVER"
        print_line(f"{each.milliseconds:7.0f} ms {each.queries:3d} queries  {each.path}{mark}")
    over = [each for each in measured if not each.is_within]
    slowest = max(each.milliseconds for each in measured)
    print_line(f"{len(measured)} pages, the slowest {slowest:.0f} of {MILLISECONDS_MAX} ms, {len(over)} over")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
