"""Health of webhook subscriptions: recent failures, pending deliveries, and a chart of the last day."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import OuterRef, Q, QuerySet, Subquery, Sum
from django.utils import timezone

from backoffice.templatetags.formatting import DASH, age
from exchange.ids import time_of_id
from webhooks.models import Delivery, Subscription, SubscriptionHour

DUE_COUNT_LIMIT = 1_000
HOUR, CHART_HOURS = timedelta(hours=1), 24
CHART_WIDTH, CHART_HEIGHT = 480, 96

FAILING = Q(failures_left=0)  # `Subscription.is_failing`


def with_health(rows: QuerySet[Subscription]) -> QuerySet[Any]:
    """Annotate subscriptions with the values for `failed_share`, `due_count` and `oldest_due`, read along indexes.

    Hours are clock hours: the last hour is the current one and the previous one.
    """
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    return rows.annotate(
        due_ids=ArraySubquery(due_to(OuterRef("pk")).values("pk")[: DUE_COUNT_LIMIT + 1]),
        completed_hour=_total("completed", hour - HOUR),
        failed_hour=_total("failed", hour - HOUR),
        completed_day=_total("completed", hour - CHART_HOURS * HOUR),
        failed_day=_total("failed", hour - CHART_HOURS * HOUR),
    )


def due_to(subscription_id: Any) -> QuerySet[Delivery]:
    """Return the pending deliveries of a subscription, oldest first.

    The two bounds and both sort columns force the planner to use the index of pending deliveries; see
    `webhooks.delivery_queue`.
    """
    due = Delivery.objects.filter(
        claimed_at=None, subscription_id__gte=subscription_id, subscription_id__lte=subscription_id
    )
    return due.order_by("subscription_id", "id")


def _total(column: str, since: datetime) -> Subquery:
    hours = SubscriptionHour.objects.filter(subscription=OuterRef("pk"), hour__gte=since)
    return Subquery(hours.values("subscription").annotate(total=Sum(column)).values("total"))


# --- Values of an annotated subscription ----------------------------------------------------------------------------


def health_of(row: Subscription) -> str:
    """Return "failing", "ok" if it has succeeded, or ""."""
    if row.is_failing:
        return "failing"
    return "ok" if row.last_success_at else ""


def failed_share(completed: int | None, failed: int | None) -> str:
    """Return the failed share of the completed deliveries. Rounding never gives 0 % or 100 % unless exact."""
    if not completed:
        return DASH
    percent = 100 * (failed or 0) / completed
    return f"{percent:.0f} %" if percent in (0, 100) else f"{min(max(percent, 0.1), 99.9):.1f} %"


def due_count(row: Any) -> str:
    """Return the number of pending deliveries, with a "+" beyond `DUE_COUNT_LIMIT`."""
    count = len(row.due_ids)
    return f"{DUE_COUNT_LIMIT:,}+" if count > DUE_COUNT_LIMIT else f"{count:,}"


def oldest_due(row: Any) -> str:
    """Return the age of the oldest pending delivery."""
    return age((timezone.now() - time_of_id(row.due_ids[0])).total_seconds()) if row.due_ids else DASH


# --- Chart ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HourColumn:
    """An hour in the chart: a bar of delivered, with failed on top."""

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
    """Deliveries of the last day by hour."""

    columns: Sequence[HourColumn]
    most: int
    completed: int
    failed: int
    width: int = CHART_WIDTH
    height: int = CHART_HEIGHT


def delivery_chart(subscription: Subscription) -> DeliveryChart:
    current = timezone.now().replace(minute=0, second=0, microsecond=0)
    first = current - (CHART_HOURS - 1) * HOUR
    rows = {row.hour: row for row in SubscriptionHour.objects.filter(subscription=subscription, hour__gte=first)}
    hours = [first + number * HOUR for number in range(CHART_HOURS)]
    counts = [(rows[hour].completed, rows[hour].failed) if hour in rows else (0, 0) for hour in hours]
    most = max(completed for completed, _ in counts)
    columns = [_column(number, hour, *counts[number], most) for number, hour in enumerate(hours)]
    return DeliveryChart(columns, most, sum(each.completed for each in columns), sum(each.failed for each in columns))


def _column(number: int, hour: datetime, completed: int, failed: int, most: int) -> HourColumn:
    step, unit = CHART_WIDTH / CHART_HOURS, CHART_HEIGHT / max(most, 1)
    failed_height = max(failed * unit, 2.0) if failed else 0.0  # keep one failure among thousands visible
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
