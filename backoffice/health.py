"""How well it goes with subscriptions: what failed of late, what is due, and the last day as a chart."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import F, OuterRef, Q, QuerySet, Subquery, Sum
from django.utils import timezone

from backoffice.templatetags.formatting import DASH, age
from exchange.ids import time_of_id
from webhooks.models import Delivery, Subscription, SubscriptionHour

MAX_DUE_COUNT = 1_000
HOUR, CHART_HOURS = timedelta(hours=1), 24
CHART_WIDTH, CHART_HEIGHT = 480, 96

# Whose last delivery that had an outcome failed; as `Subscription.is_failing`.
FAILING = Q(last_failure_at__isnull=False) & (Q(last_success_at=None) | Q(last_failure_at__gt=F("last_success_at")))


def with_health(rows: QuerySet[Subscription]) -> QuerySet[Any]:
    """Each subscription with what `failed_share`, `due_count` and `oldest_due` read, along indexes for each.

    Hours are whole: the last hour is the one that has begun and the one before.
    """
    began = timezone.now().replace(minute=0, second=0, microsecond=0)
    return rows.annotate(
        due_ids=ArraySubquery(due_to(OuterRef("pk")).values("pk")[: MAX_DUE_COUNT + 1]),
        completed_hour=_total("completed", began - HOUR),
        failed_hour=_total("failed", began - HOUR),
        completed_day=_total("completed", began - CHART_HOURS * HOUR),
        failed_day=_total("failed", began - CHART_HOURS * HOUR),
    )


def due_to(subscription_id: Any) -> QuerySet[Delivery]:
    """What is due to a subscription, oldest first.

    Two bounds and both columns leave the planner nothing but the index of what is due; see `webhooks.claims`.
    """
    due = Delivery.objects.filter(
        claimed_at=None, subscription_id__gte=subscription_id, subscription_id__lte=subscription_id
    )
    return due.order_by("subscription_id", "id")


def _total(column: str, since: datetime) -> Subquery:
    hours = SubscriptionHour.objects.filter(subscription=OuterRef("pk"), hour__gte=since)
    return Subquery(hours.values("subscription").annotate(total=Sum(column)).values("total"))


# --- What a subscription with its health says -----------------------------------------------------------------------


def health_of(row: Subscription) -> str:
    if row.last_success_at is None and row.last_failure_at is None:
        return ""
    return "failing" if row.is_failing else "ok"


def failed_share(completed: int | None, failed: int | None) -> str:
    """What failed of what had an outcome, in percent: never 0 % where something failed, nor 100 % where not all did."""
    if not completed:
        return DASH
    percent = 100 * (failed or 0) / completed
    return f"{percent:.0f} %" if percent in (0, 100) else f"{min(max(percent, 0.1), 99.9):.1f} %"


def due_count(row: Any) -> str:
    """How many are due, or at least how many."""
    count = len(row.due_ids)
    return f"{MAX_DUE_COUNT:,}+" if count > MAX_DUE_COUNT else f"{count:,}"


def oldest_due(row: Any) -> str:
    """For how long what is due has waited."""
    return age((timezone.now() - time_of_id(row.due_ids[0])).total_seconds()) if row.due_ids else DASH


# --- The chart ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HourColumn:
    """An hour in the chart: what was delivered stands on the ground, what failed on top of it."""

    hour: datetime
    completed: int
    failed: int
    left: float
    width: float
    delivered_top: float
    delivered_height: float
    failed_top: float
    failed_height: float

    @property
    def delivered(self) -> int:
        return self.completed - self.failed


@dataclass(frozen=True, slots=True)
class DeliveryChart:
    """The last day, hour by hour, in pictures and in words."""

    columns: Sequence[HourColumn]
    most: int
    completed: int
    failed: int
    width: int = CHART_WIDTH
    height: int = CHART_HEIGHT


def delivery_chart(subscription: Subscription) -> DeliveryChart:
    began = timezone.now().replace(minute=0, second=0, microsecond=0)
    first = began - (CHART_HOURS - 1) * HOUR
    rows = {row.hour: row for row in SubscriptionHour.objects.filter(subscription=subscription, hour__gte=first)}
    hours = [first + number * HOUR for number in range(CHART_HOURS)]
    counts = [(rows[hour].completed, rows[hour].failed) if hour in rows else (0, 0) for hour in hours]
    most = max(completed for completed, _ in counts)
    columns = [_column(number, hour, *counts[number], most) for number, hour in enumerate(hours)]
    return DeliveryChart(columns, most, sum(each.completed for each in columns), sum(each.failed for each in columns))


def _column(number: int, hour: datetime, completed: int, failed: int, most: int) -> HourColumn:
    step, unit = CHART_WIDTH / CHART_HOURS, CHART_HEIGHT / max(most, 1)
    failed_height = max(failed * unit, 2.0) if failed else 0.0  # one of thousands is seen too
    delivered_height = min((completed - failed) * unit, CHART_HEIGHT - failed_height)
    return HourColumn(
        hour=hour,
        completed=completed,
        failed=failed,
        left=round(number * step + 1, 2),
        width=round(step - 2, 2),
        delivered_top=round(CHART_HEIGHT - delivered_height, 2),
        delivered_height=round(delivered_height, 2),
        failed_top=round(CHART_HEIGHT - delivered_height - failed_height, 2),
        failed_height=round(failed_height, 2),
    )
