"""Every page and every filter, as requested by the bench, takes few queries and shows its times in UTC."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.contrib.auth.models import User
from django.test import Client

from backoffice.links import list_url
from backoffice.model_admin import KeysetModelAdmin
from bench import history, page_times, pages
from tests import celery_processes
from tests.backoffice.admin_client import rows

pytestmark = pytest.mark.django_db(transaction=True)

# Times without milliseconds or without UTC, and times in Django's own format. Payloads have the API's format.
_BAD_TIME = re.compile(
    r"(?<![T\d])\d\d:\d\d:\d\d(?!\.\d{3}\b).*|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}(?! UTC).*|.*\b[ap]\.m\..*"
)


def test_every_page_takes_fewer_than_twenty_queries_and_every_filter_matches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = RecordingClient()
    monkeypatch.setattr(page_times, "TIMES", 1)
    url = celery_processes.environment()["DATABASE_URL"]
    history.load_history(url, orders=60, trades=40, deliveries=40, resting=24, symbols=2)
    client.force_login(User.objects.create_superuser("bench"))
    pages.create_rows(actions=20)

    known = page_times.filter_values()  # they depend on the time
    monkeypatch.setattr(page_times, "filter_values", lambda: known)

    found = page_times.paths()
    measured = [page_times.measure(client, path) for path in found]
    path_of = {
        (parts.path, name, value): path
        for path, parts in ((path, urlsplit(path)) for path in found)
        for name, value in parse_qsl(parts.query)
    }

    assert {"/admin/", "/admin/orders/order/?last=1", "/admin/orders/order/?status=working"} <= set(found)
    assert [each for each in measured if each.queries >= page_times.QUERIES_MAX] == []
    assert set(filters()) - {(path, name) for path, name, _ in path_of} == set()
    for term in terms():
        assert rows(client.responses[path_of[term]]), term
    bad_times = {path: _BAD_TIME.findall(_text(response)) for path, response in client.responses.items()}
    assert {path: times for path, times in bad_times.items() if times} == {}


def _text(response: Any) -> str:
    """Return the text of a page without its tags."""
    return re.sub(r"<[^>]*>", " ", response.content.decode())


class RecordingClient(Client):
    """Client that keeps the response of each path."""

    def __init__(self) -> None:
        super().__init__()
        self.responses: dict[str, Any] = {}

    def get(self, path: str, **more: Any) -> Any:  # type: ignore[override]
        self.responses[path] = super().get(path, **more)
        return self.responses[path]


def filters() -> Iterator[tuple[str, str]]:
    """Yield each field of each filter form."""
    for model, owner in pages.registry().items():
        if isinstance(owner, KeysetModelAdmin):
            yield from ((list_url(model), name) for name in owner.form_class().fields)


def terms() -> Iterator[tuple[str, str, str]]:
    for (model, name), values in page_times.filter_values().items():
        yield from ((list_url(model), name, str(value)) for value in values)
