"""The reconciliation page: button, progress, result and previous runs."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from config.local.processes import wait_until
from exchange.audit import Actor, ActorKind
from exchange.models import AuditEntry
from orders.models import ReconcileRun
from orders.reconciliation import checks, runs
from tests.celery_processes import Celery
from tests.trading import TIMEOUT_SECONDS

pytestmark = pytest.mark.django_db(transaction=True)

LIST, START = "/admin/orders/reconcilerun/", "/admin/orders/reconcilerun/start/"
NOON = datetime(2026, 2, 16, 12, tzinfo=UTC)
CHECKS = len(checks.CHECKS)


def signed_in(*permissions: str) -> Client:
    """Return the client of a user with only these permissions."""
    user = User.objects.create_user("olga", password=None, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return client


def page(client: Client, path: str = LIST) -> str:
    answer = client.get(path)
    assert answer.status_code == 200
    return answer.content.decode()


def run(**fields: Any) -> ReconcileRun:
    """Create a run requested at noon."""
    return ReconcileRun.objects.create(**{"asked_by": "olga", "asked_at": NOON, "checks": CHECKS} | fields)


def findings(*counts: int) -> list[dict[str, Any]]:
    return [
        {"check": check, "count": count, "examples": [f"{check} broken"] * min(count, 5), "seconds": 0.25}
        for check, count in zip(checks.CHECKS, counts, strict=False)
    ]


def test_the_button_starts_a_run_and_its_result_is_shown(celery: Celery) -> None:
    celery.worker().start()
    client = signed_in("view_reconcilerun", "run_reconcile")
    assert "No runs yet." in page(client)
    assert f'href="{START}"' in page(client)

    answer = client.post(START, {"reason": "end of the day"})

    assert (answer.status_code, answer.headers["Location"]) == (302, LIST)
    assert wait_until(lambda: "Everything OK" in page(client), TIMEOUT_SECONDS)
    assert f"All {CHECKS} checks passed." in page(client)
    assert AuditEntry.objects.values_list("actor", "action", "reason").get() == (
        "olga",
        "reconcile.start",
        "end of the day",
    )


def test_the_reason_is_optional(celery: Celery) -> None:
    assert signed_in("view_reconcilerun", "run_reconcile").post(START, {}).status_code == 302
    assert ReconcileRun.objects.get().asked_by == "olga"


def test_a_second_run_is_rejected_on_the_form(celery: Celery) -> None:
    runs.start(by=Actor(ActorKind.USER, "otto"))

    answer = signed_in("view_reconcilerun", "run_reconcile").post(START, {})

    assert answer.status_code == 200
    assert "A reconciliation is already running. Wait for its result." in answer.content.decode()
    assert ReconcileRun.objects.count() == 1


def test_viewers_have_no_button(celery: Celery) -> None:
    client = signed_in("view_reconcilerun")

    assert START not in page(client)
    assert client.get(START).status_code == 403
    assert client.post(START, {}).status_code == 403
    assert not ReconcileRun.objects.exists()


def test_users_without_view_permission_are_refused() -> None:
    made = run(started_at=NOON)
    client = signed_in("run_reconcile")

    assert client.get(LIST).status_code == 403
    assert client.get(f"{LIST}{made.pk}/change/").status_code == 403


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, ["Waiting for a worker"]),
        ({"started_at": NOON, "findings": findings(*[0] * 7)}, [f"7 of {CHECKS} checks", "<progress"]),
        ({"started_at": NOON, "findings": findings(0, 2)}, ["In progress. 2 differences so far."]),
        (
            {"started_at": NOON, "finished_at": NOON, "findings": findings(*[0] * CHECKS)},
            ["Everything OK", "250 ms", ">OK<"],
        ),
        (
            {"started_at": NOON, "finished_at": NOON, "findings": findings(0, 1)},
            ["1 difference<", f"{list(checks.CHECKS)[1]} broken"],
        ),
        (
            {"started_at": NOON, "finished_at": NOON, "findings": findings(7)},
            ["7 differences<", "and more"],
        ),
        (
            {"started_at": NOON, "finished_at": NOON, "findings": findings(0, 3), "error": "the lights went out"},
            ["Incomplete", f"after 2 of {CHECKS} checks: the lights went out<", "3 differences found until then"],
        ),
    ],
    ids=["waiting", "running", "running, with differences", "agrees", "one difference", "many", "broke off"],
)
def test_the_list_and_the_run_page_show_the_state_of_a_run(fields: dict[str, Any], says: list[str]) -> None:
    made = run(**fields)
    client = signed_in("view_reconcilerun")

    for path in (LIST, f"{LIST}{made.pk}/change/"):
        content = page(client, path)
        assert [text for text in says if text not in content] == []
    assert ('id="run" data-live' in page(client, f"{LIST}{made.pk}/change/")) == (made.finished_at is None)


def test_the_latest_run_is_on_top_of_all_runs() -> None:
    first = run(started_at=NOON, finished_at=NOON, findings=findings(*[0] * CHECKS))
    last = run(started_at=NOON, finished_at=NOON, findings=findings(3))

    content = page(signed_in("view_reconcilerun"))

    assert "3 differences<" in content
    assert "Everything OK" not in content
    places = [content.index(f'href="{LIST}{each.pk}/change/"') for each in (last, first)]
    assert places == sorted(places)


def test_checks_with_differences_come_first() -> None:
    made = run(started_at=NOON, finished_at=NOON, findings=findings(0, 0, 1))

    content = page(signed_in("view_reconcilerun"), f"{LIST}{made.pk}/change/")

    first, _, third = list(checks.CHECKS)[:3]
    assert content.index(third) < content.index(first)


def test_the_pages_take_few_queries(django_assert_max_num_queries: Any) -> None:
    made = run(started_at=NOON, findings=findings(1))
    client = signed_in("view_reconcilerun", "run_reconcile")

    for path in (LIST, f"{LIST}{made.pk}/change/", START):
        with django_assert_max_num_queries(19):
            client.get(path)
