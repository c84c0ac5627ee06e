"""Pages of subscriptions, deliveries and events: lists, filters, pages and actions."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.db.models import QuerySet
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from backoffice import health
from backoffice.links import list_url
from backoffice.templatetags.formatting import DASH
from backoffice.webhook_actions import PauseSubscription, RedeliverEvents, RedeliverFailedEvents, ResumeSubscription
from exchange.audit import Action, Actor, ActorKind
from exchange.database import database_now
from exchange.ids import first_id_at
from exchange.models import AuditEntry
from orders.enums import Side
from tests import trading
from tests.backoffice.admin_client import (
    REASON,
    action_path,
    form_errors,
    has_button,
    listed_rows,
    live_parts,
    page,
    perform,
    result_messages,
    sign_in,
)
from tests.receiver import Receiver, close, respond
from tests.trading import place
from tests.webhooks.deliveries import drain, subscribe, trade
from webhooks import services, wakeup
from webhooks.models import Answer, Delivery, DeliveryState, Event, EventType, Subscription, SubscriptionHour

pytestmark = pytest.mark.django_db(transaction=True)

MAX_QUERIES = 19
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _brokers(transactional_db: None) -> None:
    for name in ["alice", "bob", "carol", "maker"]:
        trading.broker(name)


@pytest.fixture(autouse=True)
def _no_lingering(settings: Settings) -> None:
    """Dispatchers end as soon as nothing is pending."""
    settings.WEBHOOK_LINGER_SECONDS = 0.0


@pytest.fixture(autouse=True)
def _nobody_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the test sends deliveries."""
    monkeypatch.setattr(wakeup, "request", lambda: None)


def text(client: Client, row: Any) -> str:
    """Return the HTML of a row's page, which takes few queries."""
    with CaptureQueriesContext(connection) as queries:
        response = client.get(page(row))
    assert response.status_code == 200
    assert len(queries) <= MAX_QUERIES, [query["sql"] for query in queries]
    return str(response.content.decode())


def audit_entries() -> QuerySet[AuditEntry]:
    """Return the audit entries about webhooks, oldest first."""
    return AuditEntry.objects.exclude(action=Action.BROKER_ADMIT).order_by("id")


def deliver(broker_id: str, receiver: Receiver, behaviour: Any, count: int = 1) -> list[Delivery]:
    """Deliver trades to a receiver with this behaviour. Return the deliveries, oldest first."""
    before = set(Delivery.objects.values_list("pk", flat=True))
    subscribe(broker_id, receiver.on(f"/{broker_id}", behaviour))
    trade(count, of=broker_id)
    drain()
    return list(Delivery.objects.exclude(pk__in=before).filter(subscription__broker=broker_id).order_by("pk"))


# --- Subscriptions --------------------------------------------------------------------------------------------------


def test_subscriptions_are_found_by_each_filter(root: Client, receiver: Receiver) -> None:
    alice = subscribe("alice", receiver.url("/a"))
    bob = subscribe("bob", receiver.url("/b"), EventType.ORDER_EXPIRED)
    gone = subscribe("carol", receiver.url("/gone"))
    services.unsubscribe("carol", gone)
    perform(root, Subscription, "pause", bob)

    def found(**filters: Any) -> list[UUID]:
        return [row.pk for row in listed_rows(root, Subscription, **filters)]

    assert found() == [gone, bob, alice]
    assert found(broker="alice") == [alice]
    assert found(event_type__exact="order.expired") == [bob]
    assert found(state="active") == [alice]
    assert found(state="paused") == [bob]
    assert found(state="deleted") == [gone]
    assert found(q="/b") == found(q="bob") == [bob]
    assert found(q=str(alice)) == [alice]
    assert found(failing="on") == []
    assert root.get(list_url(Subscription, url__startswith="http")).status_code == 400


def test_failing_subscriptions_are_found_and_marked(root: Client, receiver: Receiver) -> None:
    deliver("alice", receiver, respond(500), 3)
    deliver("bob", receiver, respond(), 2)
    deliver("carol", receiver, respond())
    deliver("carol", receiver, close)

    assert {row.broker_id for row in listed_rows(root, Subscription, failing="on")} == {"alice"}
    rows = {row.broker_id: row for row in listed_rows(root, Subscription)}
    assert {name: health.health_of(row) for name, row in rows.items()} == {
        "alice": "failing",
        "bob": "ok",
        "carol": "ok",
    }
    assert {name: (row.failed_hour, row.completed_hour, row.completed_day) for name, row in rows.items()} == {
        "alice": (3, 3, 3),
        "bob": (0, 2, 2),
        "carol": (1, 2, 2),
    }


def test_failures_are_counted_per_hour_and_per_day(root: Client, receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url())
    began = timezone.now().replace(minute=0, second=0, microsecond=0)
    for ago, completed, failed in [(0, 10, 1), (1, 20, 2), (2, 40, 4), (24, 80, 8), (25, 160, 16)]:
        SubscriptionHour.objects.create(
            subscription_id=webhook_id, hour=began - ago * HOUR, completed=completed, failed=failed
        )

    (row,) = listed_rows(root, Subscription)
    assert (row.completed_hour, row.failed_hour) == (30, 3)
    assert (row.completed_day, row.failed_day) == (150, 15)
    chart = health.delivery_chart(row)
    assert [(each.completed, each.failed) for each in chart.columns] == [(0, 0)] * 21 + [(40, 4), (20, 2), (10, 1)]
    assert (chart.most, chart.completed, chart.failed) == (40, 70, 7)
    assert chart.columns[-3].delivered_height + chart.columns[-3].failed_height == health.CHART_HEIGHT
    content = text(root, row)
    assert "10.0 %" in content
    assert "70 completed in the last 24 hours, 7 of them failed; at most 40 in one hour." in content


@pytest.mark.parametrize(
    ("completed", "failed", "share"),
    [
        (None, None, DASH),
        (0, 0, DASH),
        (5, 0, "0 %"),
        (5, 5, "100 %"),
        (3, 1, "33.3 %"),
        (10_000, 1, "0.1 %"),
        (10_000, 9_999, "99.9 %"),
    ],
)
def test_the_failed_share_is_never_rounded_to_0_or_100_percent(
    completed: int | None, failed: int | None, share: str
) -> None:
    assert health.failed_share(completed, failed) == share


def test_pending_deliveries_are_counted_up_to_a_limit(
    root: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "DUE_COUNT_LIMIT", 3)
    subscribe("alice", receiver.url())
    trade(3)
    (row,) = listed_rows(root, Subscription)
    assert (health.due_count(row), health.oldest_due(row)[-2:]) == ("3", " s")
    trade(1)
    (row,) = listed_rows(root, Subscription)
    assert health.due_count(row) == "3+"
    oldest = Delivery.objects.order_by("pk").first()
    assert oldest is not None
    assert row.due_ids[0] == oldest.pk


def test_the_page_of_a_subscription_shows_its_latest_deliveries(root: Client, receiver: Receiver) -> None:
    failed = deliver("alice", receiver, respond(503), 2)
    delivered = deliver("alice", receiver, respond(204), 2)
    deliver("bob", receiver, respond(418), 2)
    trade(1)
    row = Subscription.objects.get(broker="alice")

    response = root.get(page(row))
    content = text(root, row)
    assert [each.pk for each in response.context["latest_failed"]] == [each.pk for each in reversed(failed)]
    assert [each.pk for each in response.context["latest"]] == [each.pk for each in reversed([*failed, *delivered])]
    assert [each.claimed_at for each in response.context["due"]] == [None]
    assert ">503<" in content
    assert ">418<" not in content


def test_the_pages_of_a_subscription_and_of_a_delivery_refresh_automatically(root: Client, receiver: Receiver) -> None:
    (delivery,) = deliver("alice", receiver, respond(503), 1)
    assert live_parts(root.get(page(delivery.subscription))) == [
        "figures", "chart", "facts", "failed", "latest", "due", "audit",
    ]  # fmt: skip
    assert live_parts(root.get(page(delivery))) == ["figures", "facts", "answer", "deliveries", "audit"]


def test_a_new_subscription_has_a_page(root: Client, receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url())
    content = text(root, Subscription.objects.get())
    assert str(webhook_id) in content
    assert "No pending deliveries." in content


# --- Deliveries -----------------------------------------------------------------------------------------------------


@pytest.fixture
def outcomes(receiver: Receiver) -> dict[str, list[Delivery]]:
    """Deliveries in every state."""
    delivered = deliver("alice", receiver, respond(204), 2)
    failed = deliver("bob", receiver, respond(500), 2)
    broken = deliver("bob", receiver, close, 1)
    gone = subscribe("carol", receiver.url("/carol"))
    trade(1, of="carol")
    services.unsubscribe("carol", gone)
    drain()
    discarded = list(Delivery.objects.filter(subscription=gone))
    trade(2, of="alice")
    in_flight = list(Delivery.objects.filter(claimed_at=None).order_by("pk")[:1])
    Delivery.objects.filter(pk__in=[each.pk for each in in_flight]).update(claimed_at=database_now())
    due = list(Delivery.objects.filter(claimed_at=None))
    return {
        "delivered": delivered,
        "failed": [*failed, *broken],
        "discarded": discarded,
        "in_flight": in_flight,
        "due": due,
    }


def test_deliveries_are_found_by_state_and_outcome(root: Client, outcomes: dict[str, list[Delivery]]) -> None:
    def found(**filters: Any) -> list[UUID]:
        return [row.pk for row in listed_rows(root, Delivery, **filters)]

    def ids(rows: Sequence[Delivery]) -> list[UUID]:
        return sorted((row.pk for row in rows), reverse=True)

    everything = [row for rows in outcomes.values() for row in rows]
    assert found() == ids(everything)
    for word, rows in outcomes.items():
        assert found(state=word) == ids(rows), word
        assert {row.state for row in listed_rows(root, Delivery, state=word)} == {DeliveryState(word)}
    of_bob, failed = Subscription.objects.get(broker="bob"), outcomes["failed"]
    assert found(broker="bob") == found(subscription=of_bob.pk) == ids(failed)
    assert found(status_code=500) == found(status_code=500, state="failed") == ids(failed[:2])
    assert found(status_code=204) == ids(outcomes["delivered"])
    assert found(error="disconnected") == ids(failed[2:])
    assert found(error="subscription_deleted") == ids(outcomes["discarded"])
    assert found(error="disconnected", state="delivered") == []
    assert found(event="order.expired") == []
    assert found(event="trade.executed", broker="alice", state="due") == ids(outcomes["due"])
    assert found(state="due", subscription=outcomes["due"][0].subscription_id) == ids(outcomes["due"])
    assert found(state="due", subscription=of_bob.pk) == []


def test_a_delivery_is_found_by_its_id_its_event_and_its_order(root: Client, receiver: Receiver) -> None:
    (first, second) = deliver("alice", receiver, respond(500), 2)
    perform(root, Delivery, "redeliver", first.pk)
    (again,) = Delivery.objects.filter(redelivery_of=first)
    bid = place(Side.BID, 3, "9")
    trade(1)

    def found(term: object, **filters: Any) -> list[UUID]:
        return [row.pk for row in listed_rows(root, Delivery, q=term, **filters)]

    assert found(first.pk) == [first.pk]
    assert found(first.event_id) == [again.pk, first.pk]
    assert found(first.event_id, state="failed") == [first.pk]
    assert found(second.event.body.split('"order_id":"')[1][:36]) == [second.pk]
    assert found(bid.pk) == []
    for unknown in ("nonsense", UUID(int=0), UUID(int=2**128 - 1)):  # the last one has a time in the year 10889
        assert found(unknown) == []


def test_all_deliveries_about_an_order_are_found_with_few_queries(root: Client, receiver: Receiver) -> None:
    subscribe("alice", receiver.url())
    ask = place(Side.ASK, 30, "10")
    for _ in range(30):
        place(Side.BID, 1, "10", by="bob")
    trade(1)

    with CaptureQueriesContext(connection) as queries:
        rows = listed_rows(root, Delivery, q=ask.pk)
    assert len(rows) == 30
    assert {row.event.sequence for row in rows} == set(range(1, 31))
    assert len(queries) <= MAX_QUERIES


def test_deliveries_are_found_by_the_time_of_their_ids(root: Client, receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url())
    trade(1)
    (event,) = Event.objects.filter(broker="alice")
    noon = datetime(2026, 2, 16, 12, tzinfo=UTC)
    ids = [UUID(int=first_id_at(noon + number * HOUR).int + 1) for number in range(4)]
    Delivery.objects.all().delete()
    for each in ids:
        Delivery.objects.create(
            id=each, event=event, subscription_id=webhook_id, claimed_at=noon, completed_at=noon, status_code=500
        )

    for state in ("", "failed"):
        rows = listed_rows(root, Delivery, state=state, since="2026-02-16 13:00", until="2026-02-16 15:00")
        assert [row.pk for row in rows] == [ids[2], ids[1]]


def test_the_page_of_a_delivery_shows_outcome_payload_and_response(root: Client, receiver: Receiver) -> None:
    (row,) = deliver("alice", receiver, respond(500, body=b"<b>no room</b>"))
    content = text(root, row)
    event = row.event
    for said_ in [
        str(row.pk),
        "&lt;b&gt;no room&lt;/b&gt;",
        "500",
        receiver.url("/alice"),
        "&quot;price&quot;: 10.00,",
        f"/admin/orders/order/{event.body.split('order_id')[1][3:39]}",
        f"/admin/webhooks/event/{event.pk}",
        f"/admin/webhooks/subscription/{row.subscription_id}",
    ]:
        assert said_ in content, said_

    Answer.objects.all().delete()
    assert "The response had no body." in text(root, row)
    old = UUID(int=first_id_at(timezone.now() - timedelta(days=15)).int)
    Delivery.objects.filter(pk=row.pk).update(id=old)
    assert "Response bodies are deleted after 14 days." in text(root, Delivery.objects.get(pk=old))


def test_a_delivery_without_a_response_shows_the_reason(root: Client, outcomes: dict[str, list[Delivery]]) -> None:
    assert "The receiver closed the connection before it responded." in text(root, outcomes["failed"][-1])
    assert "No response." in text(root, outcomes["failed"][-1])
    assert "Pending." in text(root, outcomes["due"][0])
    assert "In flight." in text(root, outcomes["in_flight"][0])
    assert "The broker deleted the subscription before the event was sent." in text(root, outcomes["discarded"][0])


# --- Events ---------------------------------------------------------------------------------------------------------


def test_events_are_found_by_broker_type_time_and_order(root: Client, receiver: Receiver) -> None:
    bid = place(Side.BID, 5, "10")
    place(Side.ASK, 3, "10", by="bob")
    trading.cancel(bid)
    traded, cancelled = Event.objects.filter(broker="alice").order_by("sequence")
    (sold,) = Event.objects.filter(broker="bob")

    def found(**filters: Any) -> list[UUID]:
        return [row.pk for row in listed_rows(root, Event, **filters)]

    assert found() == sorted([traded.pk, cancelled.pk, sold.pk], reverse=True)
    assert found(broker="alice") == [cancelled.pk, traded.pk]
    assert found(broker="alice", type="trade.executed") == [traded.pk]
    assert found(type="order.cancelled") == [cancelled.pk]
    assert found(q=bid.pk) == found(q=bid.pk, broker="alice") == [cancelled.pk, traded.pk]
    assert found(q=sold.pk) == [sold.pk]
    assert found(q=sold.pk, broker="alice") == found(q="nonsense") == []
    hour = timezone.now() - HOUR
    assert len(found(since=f"{hour:%Y-%m-%dT%H:%M}")) == 3
    assert found(until=f"{hour:%Y-%m-%dT%H:%M}") == found(broker="alice", until=f"{hour:%Y-%m-%dT%H:%M}") == []


def test_the_page_of_an_event_shows_its_deliveries(root: Client, receiver: Receiver) -> None:
    (first,) = deliver("alice", receiver, respond(500))
    perform(root, Delivery, "redeliver", first.pk)
    drain()
    (again,) = Delivery.objects.filter(redelivery_of=first)
    trade(1)

    for row in (first.event, first, again):
        response = root.get(page(row))
        assert [each.pk for each in response.context["event_deliveries"]] == [first.pk, again.pk]
        text(root, row)
    (untold,) = Event.objects.filter(broker="maker")[:1]
    assert "The broker was probably not subscribed to this event type." in text(root, untold)


# --- Actions --------------------------------------------------------------------------------------------------------


def test_a_subscription_is_paused_and_resumed_with_a_reason(root: Client, receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url())
    pause, resume = (action_path(Subscription, name, webhook_id) for name in ("pause", "resume"))
    row = Subscription.objects.get()
    assert (has_button(root, pause, page(row)), has_button(root, resume, page(row))) == (True, False)

    named = f"trade.executed of alice to {receiver.url()}"
    assert result_messages(perform(root, Subscription, "pause", webhook_id)) == [("success", f"Paused: {named}.")]
    assert (has_button(root, pause, page(row)), has_button(root, resume, page(row))) == (False, True)
    trade(1)
    drain()
    assert receiver.requests == []

    assert result_messages(perform(root, Subscription, "resume", webhook_id)) == [("success", f"Resumed: {named}.")]
    drain()
    assert len(receiver.requests) == 1
    assert list(audit_entries().values_list("actor", "action", "subject", "reason", "address")) == [
        ("root", "webhook.pause", str(webhook_id), REASON, "127.0.0.1"),
        ("root", "webhook.resume", str(webhook_id), REASON, "127.0.0.1"),
    ]
    services.unsubscribe("alice", webhook_id)
    assert (has_button(root, pause, page(row)), has_button(root, resume, page(row))) == (False, False)
    assert form_errors(perform(root, Subscription, "pause", webhook_id)) == {
        "__all__": ["This webhook is deleted. Nothing is sent to it."]
    }


def test_several_selected_deliveries_are_redelivered(root: Client, receiver: Receiver) -> None:
    rows = deliver("alice", receiver, respond(500), 3)
    receiver.on("/alice", respond(200))

    done = perform(root, Delivery, "redeliver", *[row.pk for row in rows[:2]])
    assert result_messages(done) == [("success", "2 events queued for redelivery.")]
    drain()
    assert [row.state for row in listed_rows(root, Delivery)] == ["delivered"] * 2 + ["failed"] * 3
    assert {row.redelivery_of_id for row in listed_rows(root, Delivery, state="delivered")} == {
        row.pk for row in rows[:2]
    }
    assert AuditEntry.objects.filter(action="delivery.redeliver", reason=REASON).count() == 2


def test_deliveries_that_cannot_be_redelivered_are_skipped(root: Client, outcomes: dict[str, list[Delivery]]) -> None:
    (due,), (gone,), failed = outcomes["due"], outcomes["discarded"], outcomes["failed"][0]
    for row in (due, gone, *outcomes["in_flight"]):
        assert not has_button(root, action_path(Delivery, "redeliver", row.pk), page(row))
    assert has_button(root, action_path(Delivery, "redeliver", failed.pk), page(failed))

    ((level, message),) = result_messages(perform(root, Delivery, "redeliver", due.pk, failed.pk))
    assert (level, message[:39]) == ("warning", "1 of 2 events queued for redelivery. Sk")
    assert list(form_errors(perform(root, Delivery, "redeliver", due.pk))) == ["__all__"]
    assert list(form_errors(perform(root, Delivery, "redeliver", gone.pk))) == ["__all__"]
    assert Delivery.objects.exclude(redelivery_of=None).count() == 1


def test_the_latest_failed_deliveries_are_redelivered_once(root: Client, receiver: Receiver) -> None:
    rows = deliver("alice", receiver, respond(500), 5)
    deliver("bob", receiver, respond(500), 2)
    webhook_id = rows[0].subscription_id
    services.redeliver([rows[4].pk], by=Actor(ActorKind.COMMAND, "test"), reason="x")

    done = perform(root, Subscription, "redeliver-failed", webhook_id, latest=3)
    assert result_messages(done) == [("success", "2 events queued for redelivery.")]
    again = Delivery.objects.exclude(redelivery_of=None).values_list("redelivery_of", flat=True)
    assert set(again) == {row.pk for row in rows[2:]}

    assert form_errors(perform(root, Subscription, "redeliver-failed", webhook_id, latest=3)) == {
        "__all__": ["All recent failed deliveries have already been redelivered."]
    }
    assert list(form_errors(perform(root, Subscription, "redeliver-failed", webhook_id, latest=501))) == ["latest"]


@pytest.mark.parametrize(
    ("model", "action", "permission"),
    [
        (Subscription, PauseSubscription(), "webhooks.pause_subscription"),
        (Subscription, ResumeSubscription(), "webhooks.pause_subscription"),
        (Subscription, RedeliverFailedEvents(), "webhooks.redeliver_delivery"),
        (Delivery, RedeliverEvents(), "webhooks.redeliver_delivery"),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_viewers_cannot_act(client: Client, receiver: Receiver, model: Any, action: Any, permission: str) -> None:
    (delivery,) = deliver("alice", receiver, respond(500))
    if isinstance(action, ResumeSubscription):
        Subscription.objects.update(paused_at=database_now())
    row = delivery if model is Delivery else delivery.subscription
    path = action_path(model, action.name, row.pk)
    looker = sign_in(client, "vera", [f"webhooks.view_{model._meta.model_name}"])
    assert not has_button(looker, path, page(row))
    assert looker.get(path).status_code == 403
    assert perform(looker, model, action.name, row.pk).status_code == 403
    assert not audit_entries()
    assert "Select" not in looker.get(list_url(model)).content.decode()

    presser = sign_in(Client(), "otto", [f"webhooks.view_{model._meta.model_name}", permission])
    assert has_button(presser, path, page(row))


@pytest.mark.parametrize("model", [Subscription, Delivery, Event])
def test_users_without_permission_see_nothing(client: Client, receiver: Receiver, model: Any) -> None:
    deliver("alice", receiver, respond(500))
    nobody = sign_in(client, "vera", [])
    row = model.objects.first()
    assert nobody.get(list_url(model)).status_code == 403
    assert nobody.get(page(row)).status_code == 403


# --- Queries --------------------------------------------------------------------------------------------------------


FILTERS: list[tuple[Any, dict[str, str]]] = [
    (Subscription, {}),
    (Subscription, {"failing": "on", "state": "active"}),
    (Delivery, {}),
    (Delivery, {"state": "due"}),
    (Delivery, {"state": "failed", "broker": "alice"}),
    (Delivery, {"last": "1"}),
    (Event, {}),
    (Event, {"broker": "alice", "type": "trade.executed"}),
]


def test_the_number_of_queries_is_independent_of_the_number_of_rows(root: Client, receiver: Receiver) -> None:
    counts: list[list[int]] = []
    for _ in range(2):
        deliver("alice", receiver, respond(500), 3)
        deliver("bob", receiver, respond(200), 3)
        trade(3, of="alice")
        counts.append([])
        for model, filters in FILTERS:
            with CaptureQueriesContext(connection) as queries:
                assert root.get(list_url(model, **filters)).status_code == 200
            counts[-1].append(len(queries))
            has_counted = any("COUNT(" in query["sql"].upper() for query in queries)
            assert has_counted == (model is Subscription), (model, filters)  # Django's changelist counts rows
    assert counts[0] == counts[1]
    assert max(counts[0]) <= MAX_QUERIES
