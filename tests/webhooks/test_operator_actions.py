"""The dispatcher's records for operators, and the actions of operators: pause, resume, redeliver."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.db.models import F, Max, QuerySet
from django.db.models.functions import Now
from pytest_django import Settings

from exchange.audit import Action, Actor, ActorKind
from exchange.database import database_now
from exchange.errors import NothingToRedeliver, ValidationFailed, WebhookDeleted, WebhookNotFound
from exchange.ids import first_id_at
from exchange.models import AuditEntry
from tests import trading
from tests.receiver import Receiver, Request, close, drip_body, hang, respond
from tests.trading import run_concurrently, start_thread
from tests.webhooks.deliveries import drain, outcomes, subscribe, trade
from webhooks import dispatcher, retention, services, wakeup
from webhooks.delivery_queue import ClaimedDelivery, DeliveryOutcome, DeliveryQueue
from webhooks.models import IS_FAILED, Answer, Delivery, DeliveryState, Subscription, SubscriptionHour

pytestmark = pytest.mark.django_db(transaction=True)

OPERATOR = Actor(ActorKind.USER, "olga", "192.0.2.7", "request-1")
KEPT_BYTES = 1_024
T = TypeVar("T")
PATIENCE_SECONDS = trading.TIMEOUT_SECONDS


@pytest.fixture(autouse=True)
def _brokers(transactional_db: None) -> None:
    for name in ["alice", "bob", "maker"]:
        trading.broker(name)


@pytest.fixture
def wake_ups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of committed deliveries at each wake-up of the dispatcher."""
    counts: list[int] = []

    def request() -> None:
        counts.append(start_thread(Delivery.objects.count).result(PATIENCE_SECONDS))

    monkeypatch.setattr(wakeup, "request", request)
    return counts


# --- Stored responses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (b"", None),
        (b'{"ok":true}', '{"ok":true}'),
        (b"x" * 4_000, "x" * KEPT_BYTES),
        (b"x" * (KEPT_BYTES - 1) + "é".encode(), "x" * (KEPT_BYTES - 1) + "\N{REPLACEMENT CHARACTER}"),
        (b"a\0b\xff\xed\xa0\x80c", "ab" + "\N{REPLACEMENT CHARACTER}" * 4 + "c"),
        (b"\0", None),
    ],
    ids=["empty", "short", "longer than 1 KiB", "a cut character", "no text", "only NUL"],
)
def test_the_beginning_of_a_response_is_stored_as_text(receiver: Receiver, sent: bytes, stored: str | None) -> None:
    subscribe("alice", receiver.on("/", respond(500, body=sent)))
    trade()
    drain()

    assert outcomes() == [(500, "")]
    assert list(Answer.objects.values_list("body", flat=True)) == ([] if stored is None else [stored])
    assert list(Answer.objects.values_list("pk", flat=True)) == [
        each.pk for each in Delivery.objects.all() if stored is not None
    ]


def test_the_received_part_of_a_truncated_response_is_stored(receiver: Receiver, settings: Settings) -> None:
    settings.WEBHOOK_TIMEOUT_SECONDS = 1.5
    subscribe("alice", receiver.on("/", drip_body))
    trade()
    drain()

    assert outcomes() == [(200, "timeout")]
    assert set(Answer.objects.get().body) == {"x"}


# --- Health ---------------------------------------------------------------------------------------------------------


def test_hours_count_completed_and_failed_deliveries(receiver: Receiver) -> None:
    """Outcomes of each kind, stored together and separately, for two subscriptions; `FAILED` agrees with the counts."""
    for number, behaviour in enumerate([respond(204), respond(301), respond(500), close]):
        subscribe("alice", receiver.on(f"/{number}", behaviour))
        trade(6)
        drain()
    subscribe("bob", receiver.url("/bob"))
    trade(3, of="bob")
    drain()
    deleted = subscribe("maker", receiver.url("/maker"))
    trade(of="bob")
    services.unsubscribe("maker", deleted)
    drain()

    assert outcomes("maker") == [(None, "subscription_deleted")]
    assert counts_by_broker() == {"alice": (24, 18), "bob": (4, 0)}
    assert Delivery.objects.filter(IS_FAILED).count() == 18
    assert {each.state for each in Delivery.objects.filter(IS_FAILED)} == {DeliveryState.FAILED}
    not_failed = Counter(each.state for each in Delivery.objects.exclude(pk__in=Delivery.objects.filter(IS_FAILED)))
    assert not_failed == {DeliveryState.DELIVERED: 10, DeliveryState.DISCARDED: 1}


def test_a_subscription_stores_its_last_success_and_failure(receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url())
    trade()
    drain()
    succeeded, failed = last_times(webhook_id)
    assert (succeeded, failed) == (last_completed_at(), None)

    receiver.on("/", respond(500))
    trade()
    drain()
    assert last_times(webhook_id) == (succeeded, last_completed_at())

    receiver.on("/", respond())
    _, failed = last_times(webhook_id)
    trade()
    drain()
    assert last_times(webhook_id) == (last_completed_at(), failed)  # immediately, because the health changed


def save_outcomes(*status_codes: int) -> bool:
    """Save these outcomes of new deliveries to alice in one batch. Return whether her subscription is failing."""
    trade(len(status_codes))

    async def claim_and_save(queue: DeliveryQueue) -> None:
        (due,) = await queue.find_due(len(status_codes))
        claims = await queue.save_outcomes_and_claim([], [(due, len(status_codes))])
        done = [
            DeliveryOutcome(claim.delivery_id, code, None, 3) for claim, code in zip(claims, status_codes, strict=True)
        ]
        await queue.save_outcomes_and_claim(done, [])

    with_delivery_queue(claim_and_save)
    return Subscription.objects.get(broker="alice").is_failing


def test_a_subscription_is_failing_after_three_failures_in_a_row() -> None:
    subscribe("alice", "http://127.0.0.1:9/")
    assert not save_outcomes(200)
    assert [save_outcomes(500), save_outcomes(500), save_outcomes(500)] == [False, False, True]
    assert save_outcomes(500)
    assert not save_outcomes(200)
    assert [save_outcomes(500), save_outcomes(200), save_outcomes(500), save_outcomes(500)] == [False] * 4


def test_the_last_outcomes_of_a_batch_decide_whether_a_subscription_is_failing() -> None:
    subscribe("alice", "http://127.0.0.1:9/")
    assert not save_outcomes(500, 500, 500, 500, 200)
    assert not save_outcomes(500, 200, 500, 500)
    assert save_outcomes(500)
    assert not save_outcomes(500, 200)
    assert save_outcomes(200, 500, 500, 500)


def test_a_url_that_has_not_worked_is_failing_after_its_first_failure() -> None:
    subscribe("alice", "http://127.0.0.1:9/wrong")
    assert save_outcomes(500)

    subscribe("alice", "http://127.0.0.1:9/wrong")  # no change
    assert Subscription.objects.get().is_failing
    subscribe("alice", "http://127.0.0.1:9/right")
    assert not Subscription.objects.get().is_failing
    assert save_outcomes(500)
    assert not save_outcomes(200)
    subscribe("alice", "http://127.0.0.1:9/right")
    assert not save_outcomes(500)


def test_unchanged_health_is_written_at_intervals(receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url())
    trade()
    drain()
    first, _ = last_times(webhook_id)
    trade()
    drain()
    assert last_times(webhook_id) == (first, None)

    Subscription.objects.update(last_success_at=F("last_success_at") - timedelta(seconds=5))
    trade()
    drain()
    assert last_times(webhook_id) == (last_completed_at(), None)


def test_a_locked_subscription_delays_no_delivery(receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url())
    trade()
    with transaction.atomic():
        Subscription.objects.select_for_update().get()
        drain()
        assert outcomes() == [(200, "")]
    assert last_times(webhook_id) == (None, None)
    assert counts_by_broker() == {"alice": (1, 0)}

    trade()
    drain()
    assert last_times(webhook_id) == (last_completed_at(), None)


def test_an_outcome_is_stored_once(receiver: Receiver) -> None:
    """A dispatcher stores an outcome again after it lost its connection during the commit."""
    subscribe("alice", receiver.url())
    trade()

    async def claim_and_store_twice(queue: DeliveryQueue) -> None:
        ((claim,),) = [await queue.save_outcomes_and_claim([], [(each, 1)]) for each in await queue.find_due(1)]
        for status_code in (500, 200):
            await queue.save_outcomes_and_claim([DeliveryOutcome(claim.delivery_id, status_code, None, 3, "down")], [])

    with_delivery_queue(claim_and_store_twice)
    assert outcomes() == [(500, "")]
    assert counts_by_broker() == {"alice": (1, 1)}
    assert list(Answer.objects.values_list("body", flat=True)) == ["down"]


# --- Pause and resume -----------------------------------------------------------------------------------------------


def test_events_during_a_pause_are_sent_after_it(receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url("/alice"))
    subscribe("bob", receiver.url("/bob"))
    trade()
    services.pause(webhook_id, by=OPERATOR, reason="its receiver needs rest")
    trade(2)
    trade(of="bob")
    drain()
    assert [request.path for request in receiver.requests] == ["/bob"]
    assert outcomes() == [(None, "")] * 3

    services.resume(webhook_id, by=OPERATOR, reason="it is back")
    drain()
    assert sequences(receiver.requests_to("/alice")) == [1, 2, 3]
    assert outcomes() == [(200, "")] * 3


def test_a_running_dispatcher_claims_nothing_during_a_pause(receiver: Receiver, settings: Settings) -> None:
    settings.WEBHOOK_CONCURRENCY_PER_ENDPOINT = 1
    webhook_id = subscribe("alice", receiver.on("/", respond(after_seconds=0.5)))
    trade(4)
    draining = start_thread(partial(dispatcher.drain, 0))
    assert receiver.wait_for(1, PATIENCE_SECONDS)
    services.pause(webhook_id, by=OPERATOR, reason="x")
    draining.result(PATIENCE_SECONDS)

    assert len(receiver.requests) == 1
    assert Counter(outcomes()) == {(200, ""): 1, (None, ""): 3}


def test_a_delivery_found_before_a_pause_is_not_claimed_in_it(receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url())
    trade()

    async def find_and_claim(queue: DeliveryQueue) -> list[ClaimedDelivery]:
        (endpoint,) = await queue.find_due(1)
        await asyncio.to_thread(services.pause, webhook_id, by=OPERATOR, reason="x")
        return await queue.save_outcomes_and_claim([], [(endpoint, 1)])

    assert with_delivery_queue(find_and_claim) == []
    assert outcomes() == [(None, "")]


def test_a_paused_subscription_stays_paused_after_a_registration(receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url("/old"))
    services.pause(webhook_id, by=OPERATOR, reason="x")
    trade()
    assert subscribe("alice", receiver.url("/new")) == webhook_id
    drain()
    assert receiver.requests == []

    services.unsubscribe("alice", webhook_id)
    drain()
    assert receiver.requests == []
    assert outcomes() == [(None, "subscription_deleted")]


def test_pauses_are_audited_and_a_resume_wakes_the_dispatcher(receiver: Receiver, wake_ups: list[int]) -> None:
    webhook_id = subscribe("alice", receiver.url())
    trade()
    wake_ups.clear()
    for _ in range(2):
        services.pause(webhook_id, by=OPERATOR, reason="rest")
    assert wake_ups == []
    paused_at = Subscription.objects.get().paused_at
    assert paused_at is not None
    for _ in range(2):
        services.resume(webhook_id, by=OPERATOR, reason="enough")

    assert wake_ups == [1, 1]
    assert Subscription.objects.get().paused_at is None
    assert entries() == [
        ("webhook.pause", str(webhook_id), "rest", {"state": "active"}, {"state": "paused"}),
        ("webhook.pause", str(webhook_id), "rest", {"state": "paused"}, {"state": "paused"}),
        ("webhook.resume", str(webhook_id), "enough", {"state": "paused"}, {"state": "active"}),
        ("webhook.resume", str(webhook_id), "enough", {"state": "active"}, {"state": "active"}),
    ]
    assert set(audit_entries().values_list("actor_kind", "actor", "address", "request_id")) == {
        ("user", "olga", "192.0.2.7", "request-1")
    }


def test_a_deleted_or_unknown_webhook_cannot_be_paused(receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url())
    services.unsubscribe("alice", webhook_id)

    for action in (services.pause, services.resume):
        with pytest.raises(WebhookDeleted):
            action(webhook_id, by=OPERATOR, reason="x")
        with pytest.raises(WebhookNotFound):
            action(UUID(int=1), by=OPERATOR, reason="x")
    assert Subscription.objects.get().paused_at is None
    assert entries() == []


# --- Redelivery -----------------------------------------------------------------------------------------------------


def test_a_redelivery_is_a_new_delivery_of_the_event(receiver: Receiver, wake_ups: list[int]) -> None:
    webhook_id = subscribe("alice", receiver.on("/", respond(503, body=b"down")))
    trade(2)
    drain()
    first, second = Delivery.objects.order_by("id")
    before = list(Delivery.objects.order_by("id").values())
    receiver.on("/", respond(204))
    wake_ups.clear()

    assert services.redeliver([second.pk, first.pk, first.pk], by=OPERATOR, reason="it was down") == 2
    assert wake_ups == [4]
    drain()

    original, repeated = receiver.requests[:2], receiver.requests[2:]
    assert [content_of(each) for each in repeated] == [content_of(each) for each in original]
    assert list(Delivery.objects.filter(redelivery_of=None).order_by("id").values()) == before
    redeliveries = Delivery.objects.exclude(redelivery_of=None).order_by("id")
    assert [(each.redelivery_of_id, each.event_id, each.subscription_id) for each in redeliveries] == [
        (each.pk, each.event_id, webhook_id) for each in (first, second)
    ]
    assert {each.headers["x-delivery-id"] for each in repeated} == {str(each.pk) for each in redeliveries}
    assert [(each.status_code, each.error) for each in redeliveries] == [(204, "")] * 2
    assert entries() == [
        ("delivery.redeliver", str(each.redelivery_of_id), "it was down", None, {"redelivery": str(each.pk)})
        for each in redeliveries
    ]
    assert counts_by_broker() == {"alice": (4, 2)}
    trading.assert_sound()


def test_a_successful_delivery_can_be_redelivered(receiver: Receiver) -> None:
    subscribe("alice", receiver.url())
    trade()
    drain()
    (only,) = Delivery.objects.all()

    assert services.redeliver([only.pk], by=OPERATOR, reason="they lost it") == 1
    drain()
    assert sequences(receiver.requests) == [1, 1]


def test_due_and_in_flight_deliveries_are_not_redelivered(receiver: Receiver) -> None:
    subscribe("alice", receiver.on("/", hang))
    trade(5)
    due = list(Delivery.objects.values_list("pk", flat=True))
    assert_nothing_is_redelivered(due)

    draining = start_thread(partial(dispatcher.drain, 0))
    assert receiver.wait_for(4, PATIENCE_SECONDS)
    assert_nothing_is_redelivered(due)
    dispatcher.stop()
    draining.result(PATIENCE_SECONDS)
    dispatcher._stopping.clear()

    assert services.redeliver(due, by=OPERATOR, reason="x") == 4  # the fifth delivery is due
    assert_nothing_is_redelivered(due)  # all are in flight or due
    assert_nothing_is_redelivered([UUID(int=1)])
    assert_nothing_is_redelivered([])


def test_a_delivery_lost_with_its_dispatcher_can_be_redelivered_later(receiver: Receiver, settings: Settings) -> None:
    subscribe("alice", receiver.url())
    trade()
    (lost,) = Delivery.objects.all()
    Delivery.objects.update(claimed_at=Now() - timedelta(seconds=settings.WEBHOOK_LOST_AFTER_SECONDS - 5))
    assert_nothing_is_redelivered([lost.pk])

    Delivery.objects.update(claimed_at=Now() - timedelta(seconds=settings.WEBHOOK_LOST_AFTER_SECONDS + 5))
    assert services.redeliver([lost.pk], by=OPERATOR, reason="a worker was killed") == 1
    drain()
    assert len(receiver.requests) == 1
    assert outcomes() == [(None, ""), (200, "")]


def test_concurrent_requests_redeliver_each_delivery_once(receiver: Receiver) -> None:
    subscribe("alice", receiver.url())
    trade(20)
    drain()
    ids = list(Delivery.objects.values_list("pk", flat=True))

    def redeliver() -> int:
        try:
            return services.redeliver(ids, by=OPERATOR, reason="x")
        except NothingToRedeliver:
            return 0

    assert sum(run_concurrently([redeliver] * 6)) == 20
    assert Delivery.objects.exclude(redelivery_of=None).values("redelivery_of").distinct().count() == 20
    assert Delivery.objects.count() == 40


def test_deliveries_of_a_deleted_webhook_are_not_redelivered(receiver: Receiver) -> None:
    webhook_id = subscribe("alice", receiver.url())
    subscribe("bob", receiver.url())
    trade()
    trade(of="bob")
    drain()
    services.unsubscribe("alice", webhook_id)
    of_deleted = Delivery.objects.get(subscription=webhook_id)
    both = list(Delivery.objects.values_list("pk", flat=True))

    with pytest.raises(WebhookDeleted):
        services.redeliver([of_deleted.pk], by=OPERATOR, reason="x")
    assert services.redeliver(both, by=OPERATOR, reason="x") == 1
    assert Delivery.objects.exclude(redelivery_of=None).get().subscription_id != webhook_id


def test_the_number_of_redeliveries_per_call_is_limited(receiver: Receiver, settings: Settings) -> None:
    settings.WEBHOOK_REDELIVERIES = 2
    subscribe("alice", receiver.url())
    trade(3)
    drain()
    ids = list(Delivery.objects.values_list("pk", flat=True))

    with pytest.raises(ValidationFailed):
        services.redeliver(ids, by=OPERATOR, reason="x")
    assert Delivery.objects.count() == 3
    assert services.redeliver(ids[:2], by=OPERATOR, reason="x") == 2


def test_an_action_without_its_audit_entry_is_rolled_back(receiver: Receiver) -> None:
    """The audit entry is written in the transaction of the action."""
    webhook_id = subscribe("alice", receiver.url())
    trade()
    drain()
    (only,) = Delivery.objects.all()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE exchange_auditentry ADD CONSTRAINT no_entries CHECK (false) NOT VALID")
    try:
        for action in (partial(services.pause, webhook_id), partial(services.redeliver, [only.pk])):
            with pytest.raises(Exception, match="no_entries"):
                action(by=OPERATOR, reason="x")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE exchange_auditentry DROP CONSTRAINT no_entries")
    assert Subscription.objects.get().paused_at is None
    assert Delivery.objects.count() == 1


# --- Retention ------------------------------------------------------------------------------------------------------


def test_old_responses_are_deleted_in_batches(
    receiver: Receiver, settings: Settings, django_assert_num_queries: Any
) -> None:
    now = database_now()
    settings.WEBHOOK_RETENTION_BATCH = 10
    edge = now - settings.WEBHOOK_RESPONSE_RETENTION
    old = [UUID(int=first_id_at(edge - timedelta(seconds=1)).int + number) for number in range(25)]
    young = [UUID(int=first_id_at(edge + timedelta(minutes=1)).int + number) for number in range(5)]
    Answer.objects.bulk_create(Answer(delivery_id=each, body="x") for each in [*old, *young])

    with django_assert_num_queries(5):  # the clock, three batches, the hours
        assert retention.delete_old() == 25
    assert list(Answer.objects.order_by("pk").values_list("pk", flat=True)) == young


def test_one_run_deletes_a_limited_number_of_batches(settings: Settings) -> None:
    settings.WEBHOOK_RETENTION_BATCH, settings.WEBHOOK_RETENTION_BATCHES = 10, 2
    Answer.objects.bulk_create(Answer(delivery_id=UUID(int=number), body="x") for number in range(1, 26))

    assert [retention.delete_old() for _ in range(3)] == [20, 5, 0]


def test_old_hours_of_health_are_deleted(receiver: Receiver, settings: Settings) -> None:
    webhook_id = subscribe("alice", receiver.url())
    edge = database_now() - settings.WEBHOOK_RESPONSE_RETENTION
    for offset in [timedelta(days=-1), timedelta(hours=-2), timedelta(0), timedelta(days=1)]:
        SubscriptionHour.objects.create(subscription_id=webhook_id, hour=edge + offset, completed=1)
    retention.delete_old()

    assert [row.hour - edge for row in SubscriptionHour.objects.order_by("hour")] == [timedelta(0), timedelta(days=1)]


# --- Helpers --------------------------------------------------------------------------------------------------------


def with_delivery_queue(job: Callable[[DeliveryQueue], Awaitable[T]]) -> T:
    """Run a job on a dispatcher's connection, without a dispatcher."""

    async def run() -> T:
        queue = await DeliveryQueue.connect()
        try:
            return await job(queue)
        finally:
            await queue.close()

    return asyncio.run(run())


def assert_nothing_is_redelivered(ids: list[UUID]) -> None:
    before, recorded = Delivery.objects.count(), len(entries())
    with pytest.raises(NothingToRedeliver):
        services.redeliver(ids, by=OPERATOR, reason="x")
    assert (Delivery.objects.count(), len(entries())) == (before, recorded)


def entries() -> list[tuple[Any, ...]]:
    """The audit entries about webhooks, oldest first."""
    return list(audit_entries().values_list("action", "subject", "reason", "before", "after"))


def audit_entries() -> QuerySet[AuditEntry]:
    actions = [Action.WEBHOOK_PAUSE, Action.WEBHOOK_RESUME, Action.DELIVERY_REDELIVER]
    return AuditEntry.objects.filter(action__in=actions).order_by("id")


def counts_by_broker() -> dict[str, tuple[int, int]]:
    """Completed and failed deliveries of each broker, over all hours."""
    totals: dict[str, tuple[int, int]] = {}
    for hour in SubscriptionHour.objects.select_related("subscription"):
        assert (hour.hour.minute, hour.hour.second, hour.hour.microsecond) == (0, 0, 0)
        completed, failed = totals.get(hour.subscription.broker_id, (0, 0))
        totals[hour.subscription.broker_id] = completed + hour.completed, failed + hour.failed
    return totals


def last_times(webhook_id: UUID) -> tuple[Any, Any]:
    row = Subscription.objects.get(pk=webhook_id)
    return row.last_success_at, row.last_failure_at


def last_completed_at() -> Any:
    """The time of the last stored outcome."""
    return Delivery.objects.aggregate(last=Max("completed_at"))["last"]


def content_of(request: Request) -> tuple[bytes, str, str]:
    return request.body, request.headers["x-webhook-id"], request.headers["x-event-sequence"]


def sequences(requests: list[Request]) -> list[int]:
    return sorted(int(request.headers["x-event-sequence"]) for request in requests)
