"""Every page and every filter of the back office, as the bench asks for them: few queries, whatever it shows."""

import pytest
from django.contrib.auth.models import User
from django.test import Client

from bench import history, page_times
from tests import celery_processes, trading

pytestmark = pytest.mark.django_db(transaction=True)


def test_no_page_makes_twenty_queries(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_times, "TIMES", 1)
    url = celery_processes.environment()["DATABASE_URL"]
    history.load_history(url, orders=800, trades=600, deliveries=600, resting=320, symbols=2)
    trading.broker("alice", holdings={"S1": 100})
    client.force_login(User.objects.create_superuser("bench"))
    User.objects.create(username="looked-at", is_staff=True)

    found = page_times.paths()
    measured = [page_times.measure(client, path) for path in found]

    assert len(found) > 150
    assert {"/admin/", "/admin/orders/order/?last=1", "/admin/orders/order/?status=working"} <= set(found)
    assert [each for each in measured if each.queries >= page_times.QUERIES_MAX] == []
