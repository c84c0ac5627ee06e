"""What is done about webhooks: a subscription paused and resumed, and events delivered again."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.conf import settings
from django.utils import timezone

from backoffice.lists import MAX_SCANNED_ROWS
from backoffice.operator_actions import ActionResult, OperatorAction, ReasonForm
from exchange.audit import Actor
from exchange.errors import NothingToRedeliver
from exchange.ids import first_id_at
from webhooks import services
from webhooks.models import FAILED, Delivery, DeliveryState, Subscription, SubscriptionState

DEFAULT_COUNT = 100
OUTCOME_TIME_TOLERANCE = timedelta(seconds=10)  # a subscription's times are for people, and may lag a little


class SubscriptionAction(OperatorAction):
    def describe(self, row: Subscription) -> str:
        return describe(row)


class PauseSubscription(SubscriptionAction):
    name = "pause"
    label = "Pause"
    explanation = (
        "Nothing more is sent to it until it is resumed: what is due stays due, and what happens meanwhile is due too. "
        "A new URL does not resume it. What is on its way may still arrive."
    )
    permission = "webhooks.pause_subscription"

    def applies_to(self, row: Subscription) -> bool:
        return row.state == SubscriptionState.ACTIVE

    def perform(self, by: Actor, subjects: Sequence[Subscription], **fields: Any) -> ActionResult:
        services.pause(subjects[0].pk, by=by, **fields)
        return ActionResult(f"{describe(subjects[0])} is paused.")


class ResumeSubscription(SubscriptionAction):
    name = "resume"
    label = "Resume"
    explanation = "What waited is sent, oldest first, and what happens from now on."
    permission = "webhooks.pause_subscription"

    def applies_to(self, row: Subscription) -> bool:
        return row.state == SubscriptionState.PAUSED

    def perform(self, by: Actor, subjects: Sequence[Subscription], **fields: Any) -> ActionResult:
        services.resume(subjects[0].pk, by=by, **fields)
        return ActionResult(f"{describe(subjects[0])} is sent to again.")


class RedeliverEvents(OperatorAction):
    name = "redeliver"
    label = "Redeliver"
    explanation = (
        "The event is sent again to where it went, under a delivery id of its own; its receiver knows its number. "
        "The first delivery stays as it is. To a paused subscription it is sent when that is resumed."
    )
    permission = "webhooks.redeliver_delivery"
    max_subjects = settings.WEBHOOK_REDELIVERIES

    def applies_to(self, row: Delivery) -> bool:
        is_over = row.state in (DeliveryState.DELIVERED, DeliveryState.FAILED)
        return (is_over or is_lost(row)) and row.subscription.deleted_at is None

    def describe(self, row: Delivery) -> str:
        return f"{row.pk} · {row.state.replace('_', ' ')}"

    def perform(self, by: Actor, subjects: Sequence[Delivery], **fields: Any) -> ActionResult:
        return _redelivery_result(len(subjects), services.redeliver([row.pk for row in subjects], by=by, **fields))


class RedeliverFailedForm(ReasonForm):
    latest = forms.IntegerField(
        min_value=1,
        max_value=settings.WEBHOOK_REDELIVERIES,
        initial=DEFAULT_COUNT,
        label="How many",
        help_text="Of its latest failed deliveries so many, without those that were made again already.",
    )
    field_order = ["latest", "reason"]


class RedeliverFailedEvents(SubscriptionAction):
    name = "redeliver-failed"
    label = "Redeliver what failed"
    explanation = (
        "The events of its latest failed deliveries are sent again, under delivery ids of their own; its receiver "
        "knows their numbers."
    )
    permission = "webhooks.redeliver_delivery"
    form_class = RedeliverFailedForm

    def applies_to(self, row: Subscription) -> bool:
        return row.last_failure_at is not None and row.deleted_at is None

    def perform(self, by: Actor, subjects: Sequence[Subscription], **fields: Any) -> ActionResult:
        ids = latest_failed_ids(subjects[0], fields.pop("latest"))
        if not ids:
            raise NothingToRedeliver("Nothing failed that was not made again already.")
        return _redelivery_result(len(ids), services.redeliver(ids, by=by, **fields))


def describe(row: Subscription) -> str:
    return f"{row.event_type} of {row.broker_id} to {row.url}"


def is_lost(row: Delivery) -> bool:
    """Whether it was claimed so long ago that it will have no outcome."""
    lost = timedelta(seconds=settings.WEBHOOK_LOST_AFTER_SECONDS)
    return row.state == DeliveryState.IN_FLIGHT and row.claimed_at < timezone.now() - lost  # type: ignore[operator]


def latest_failed_ids(subscription: Subscription, count: int) -> list[UUID]:
    """Of its latest failed deliveries, those that nobody had made again; looked for among the latest of all."""
    until = (subscription.last_failure_at or timezone.now()) + OUTCOME_TIME_TOLERANCE
    failed = Delivery.objects.filter(FAILED, pk__lt=first_id_at(until)).order_by("-pk")
    near = failed.values_list("pk", "subscription_id")[:MAX_SCANNED_ROWS]
    mine = [pk for pk, subscription_id in near if subscription_id == subscription.pk][:count]
    again = set(Delivery.objects.filter(redelivery_of__in=mine).values_list("redelivery_of_id", flat=True))
    return [pk for pk in mine if pk not in again]


def _redelivery_result(asked: int, made: int) -> ActionResult:
    if made == asked:
        return ActionResult("The event is due again." if made == 1 else f"{made} events are due again.")
    left_out = (
        "Left out is what has had no outcome yet, is being made again already, or went to a deleted subscription."
    )
    return ActionResult(f"{made} of {asked} events are due again. {left_out}", is_warning=True)
