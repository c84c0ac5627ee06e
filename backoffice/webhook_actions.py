"""Operator actions on webhooks: pause and resume subscriptions, redeliver events."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.conf import settings
from django.utils import timezone

from backoffice.lists import MAX_SCANNED_ROWS
from backoffice.operator_actions import ActionResult, OperatorAction, ReasonForm
from backoffice.templatetags.formatting import readable
from exchange.audit import Actor
from exchange.errors import NothingToRedeliver
from exchange.ids import first_id_at
from webhooks import services
from webhooks.models import IS_FAILED, Delivery, DeliveryState, Subscription, SubscriptionState

DEFAULT_COUNT = 100
OUTCOME_TIME_TOLERANCE = timedelta(seconds=10)  # by which a subscription's times may lag its deliveries


class SubscriptionAction(OperatorAction):
    def describe(self, row: Subscription) -> str:
        return describe(row)


class PauseSubscription(SubscriptionAction):
    name = "pause"
    label = "Pause"
    label_format = "Pause subscription"
    explanation = (
        "Nothing is sent until the subscription is resumed. Pending deliveries stay pending, and new events are added. "
        "A new URL does not resume it. Deliveries in flight may still arrive."
    )
    permission = "webhooks.pause_subscription"

    def applies_to(self, row: Subscription) -> bool:
        return row.state == SubscriptionState.ACTIVE

    def perform(self, by: Actor, subjects: Sequence[Subscription], **fields: Any) -> ActionResult:
        services.pause(subjects[0].pk, by=by, **fields)
        return ActionResult(f"Paused: {describe(subjects[0])}.")


class ResumeSubscription(SubscriptionAction):
    name = "resume"
    label = "Resume"
    label_format = "Resume subscription"
    explanation = "Pending deliveries are sent, oldest first, then new events."
    permission = "webhooks.pause_subscription"

    def applies_to(self, row: Subscription) -> bool:
        return row.state == SubscriptionState.PAUSED

    def perform(self, by: Actor, subjects: Sequence[Subscription], **fields: Any) -> ActionResult:
        services.resume(subjects[0].pk, by=by, **fields)
        return ActionResult(f"Resumed: {describe(subjects[0])}.")


class RedeliverEvents(OperatorAction):
    name = "redeliver"
    label = "Redeliver"
    label_format = "Redeliver event"
    explanation = (
        "The event is sent to the subscription again, with a new delivery ID and the same event sequence. The original "
        "delivery is not changed. A paused subscription receives it when it is resumed."
    )
    permission = "webhooks.redeliver_delivery"
    max_subjects = settings.WEBHOOK_REDELIVERIES

    def applies_to(self, row: Delivery) -> bool:
        is_completed = row.state in (DeliveryState.DELIVERED, DeliveryState.FAILED)
        return (is_completed or is_lost(row)) and row.subscription.deleted_at is None

    def describe(self, row: Delivery) -> str:
        return f"{row.pk} · {readable(row.state)}"

    def perform(self, by: Actor, subjects: Sequence[Delivery], **fields: Any) -> ActionResult:
        return _redelivery_result(len(subjects), services.redeliver([row.pk for row in subjects], by=by, **fields))


class RedeliverFailedForm(ReasonForm):
    latest = forms.IntegerField(
        min_value=1,
        max_value=settings.WEBHOOK_REDELIVERIES,
        initial=DEFAULT_COUNT,
        label="Number of deliveries",
        help_text="The latest failed deliveries, without those already redelivered.",
    )
    field_order = ["latest", "reason"]


class RedeliverFailedEvents(SubscriptionAction):
    name = "redeliver-failed"
    label = label_format = "Redeliver failed events"
    explanation = (
        "The events of the latest failed deliveries are sent again, with new delivery IDs and the same event sequences."
    )
    permission = "webhooks.redeliver_delivery"
    form_class = RedeliverFailedForm

    def applies_to(self, row: Subscription) -> bool:
        return row.last_failure_at is not None and row.deleted_at is None

    def perform(self, by: Actor, subjects: Sequence[Subscription], **fields: Any) -> ActionResult:
        ids = latest_failed_ids(subjects[0], fields.pop("latest"))
        if not ids:
            raise NothingToRedeliver("All recent failed deliveries have already been redelivered.")
        return _redelivery_result(len(ids), services.redeliver(ids, by=by, **fields))


def describe(row: Subscription) -> str:
    return f"{row.event_type} of {row.broker_id} to {row.url}"


def is_lost(row: Delivery) -> bool:
    """True if it was claimed so long ago that no outcome will be recorded."""
    lost = timedelta(seconds=settings.WEBHOOK_LOST_AFTER_SECONDS)
    return row.state == DeliveryState.IN_FLIGHT and row.claimed_at < timezone.now() - lost  # type: ignore[operator]


def latest_failed_ids(subscription: Subscription, count: int) -> list[UUID]:
    """Return the latest failed deliveries not redelivered yet, out of the latest `MAX_SCANNED_ROWS` of all brokers."""
    until = (subscription.last_failure_at or timezone.now()) + OUTCOME_TIME_TOLERANCE
    failed = Delivery.objects.filter(IS_FAILED, pk__lt=first_id_at(until)).order_by("-pk")
    near = failed.values_list("pk", "subscription_id")[:MAX_SCANNED_ROWS]
    own = [pk for pk, subscription_id in near if subscription_id == subscription.pk][:count]
    redelivered = set(Delivery.objects.filter(redelivery_of__in=own).values_list("redelivery_of_id", flat=True))
    return [pk for pk in own if pk not in redelivered]


def _redelivery_result(requested: int, created: int) -> ActionResult:
    if created == requested:
        return ActionResult(
            "1 event queued for redelivery." if created == 1 else f"{created} events queued for redelivery."
        )
    skipped = "Skipped: deliveries without an outcome, already redelivered, or of a deleted subscription."
    return ActionResult(f"{created} of {requested} events queued for redelivery. {skipped}", is_warning=True)
