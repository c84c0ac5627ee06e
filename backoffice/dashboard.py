"""The dashboard: current and daily activity, and alarms, in a dozen queries regardless of the data volume.

Every query is bounded: by a primary key range, by the bars of one day, by a limit on counting, or by the number of
instruments and subscriptions. Sections that the user may not view are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.http import HttpRequest

from backoffice.charts import Number, Sparkline, sparkline
from backoffice.health import FAILING, due_to
from backoffice.links import list_url, page_url
from backoffice.queries import market_watch
from backoffice.templatetags.formatting import compact
from exchange import heartbeat, rejection_counts
from exchange.database import database_now
from exchange.ids import time_of_id
from exchange.models import Holding, Instrument
from exchange.rules import InstrumentStatus
from orders import activity
from orders.models import Order, ReconcileRun, RunState, Trade
from webhooks.models import Delivery, DeliveryState, Subscription

SILENT_AFTER_SECONDS = 15.0  # without a heartbeat, a process counts as not responding
DUE_TOO_LONG = timedelta(minutes=1)
FAILING_WITHIN = timedelta(days=1)  # older failures without a later attempt are ignored
MAX_DUE_COUNT = 10_000
INSTRUMENT_ROWS, NAMES_IN_TEXT = 12, 5
CHART_MINUTES = 60


@dataclass(frozen=True, slots=True)
class Alarm:
    """A problem, and a link to the page that shows it."""

    text: str
    url: str
    link: str


@dataclass(frozen=True, slots=True)
class Card:
    """A figure of the last minute and of today, with a chart of the last hour and its description."""

    title: str
    last_minute: Number
    today: Number
    chart: Sparkline
    description: str
    url: str


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """A kind of process, and the age of its last heartbeat."""

    name: str
    age_seconds: float | None
    tasks: str

    @property
    def state(self) -> str:
        return "silent" if self.age_seconds is None or self.age_seconds > SILENT_AFTER_SECONDS else "alive"


@dataclass(frozen=True, slots=True)
class DashboardSection:
    """The template context and the alarms of a section."""

    context: dict[str, Any]
    alarms: Sequence[Alarm] = ()


def dashboard(request: HttpRequest) -> dict[str, Any]:
    """Return the template context of the sections that the user may view."""
    now = database_now()
    sections = [section(now) for permissions, section in _SECTIONS if request.user.has_perms(permissions)]
    figures = {name: value for section in sections for name, value in section.context.items()}
    alarms = [alarm for section in sections for alarm in section.alarms]
    return figures | {"now": now, "alarms": alarms, "sees_all": len(sections) == len(_SECTIONS)}


def _minute(at: datetime) -> str:
    """Format a time to the minute, so that it is stable: screen readers announce an alarm when it changes."""
    return f"{at:%Y-%m-%d %H:%M} UTC"


# --- Activity -------------------------------------------------------------------------------------------------------


def _figures(now: datetime) -> DashboardSection:
    midnight = activity.start_of_day(now)
    overview = activity.overview(now, midnight, CHART_MINUTES)
    last_minute, today, minutes = overview.last_minute, overview.today, overview.minutes
    rejected_last_minute, rejected_today, rejected = rejection_counts.summary(now, midnight, CHART_MINUTES)
    orders, trades = list_url(Order), list_url(Trade)
    cards = [
        _card("Orders", last_minute.orders, today.orders, [each.orders for each in minutes], orders),
        _card("Trades", last_minute.trades, today.trades, [each.trades for each in minutes], trades),
        _card("Turnover", last_minute.value, today.value, [each.value for each in minutes], trades),
        _card("Rejected orders", rejected_last_minute, rejected_today, rejected, url=""),  # not stored, so no list
    ]
    behind = activity.behind_since(now)
    if behind is None:
        return DashboardSection({"cards": cards})
    text = f"Daily figures and charts are delayed. They end at {_minute(behind)}."
    return DashboardSection({"cards": cards}, [Alarm(text, "#processes", "View processes")])


def _card(title: str, last_minute: Number, today: Number, minutes: Sequence[Number], url: str) -> Card:
    description = (
        f"{title} per minute in the last hour: {compact(minutes[-1])} in the last full minute, "
        f"maximum {compact(max(minutes))}, total {compact(sum(minutes))}"
    )
    return Card(title, last_minute, today, sparkline(minutes), description, url)


# --- Market ---------------------------------------------------------------------------------------------------------


def _market(now: datetime) -> DashboardSection:
    """Read prices and books of the instruments shown: the halted ones, then those with the highest volume."""
    volumes = activity.volumes(activity.start_of_day(now))
    instruments: list[Any] = list(Instrument.objects.annotate(is_quiet=market_watch.is_quiet(now)))
    instruments.sort(key=lambda each: (each.status != InstrumentStatus.HALTED, -volumes.get(each.pk, 0), each.pk))
    halted = [each.pk for each in instruments if each.status == InstrumentStatus.HALTED]
    shown = instruments[:INSTRUMENT_ROWS]
    figures = market_watch.figures_of([each.pk for each in shown])
    market = {
        "rows": [
            (each, "quiet" if each.is_quiet else each.status, figures[each.pk]) for each in shown if each.pk in figures
        ],
        "instruments": len(instruments),
        "halted": len(halted),
        "quiet": sum(each.is_quiet for each in instruments),
        "quiet_seconds": market_watch.QUIET_AFTER.total_seconds(),
        "open_orders": Holding.objects.aggregate(total=Coalesce(Sum("open_orders"), 0))["total"],
    }
    return DashboardSection({"market": market}, [_halted(halted)] if halted else [])


def _halted(symbols: Sequence[str]) -> Alarm:
    if len(symbols) == 1:
        (symbol,) = symbols
        return Alarm(f"{symbol} is halted.", page_url(Instrument, symbol), f"View {symbol}")
    url = list_url(Instrument, status__exact=InstrumentStatus.HALTED)
    return Alarm(f"{_join_names(symbols)} are halted.", url, "View halted instruments")


def _join_names(names: Sequence[str]) -> str:
    """Join the first names, and add the number of the others."""
    others = len(names) - NAMES_IN_TEXT
    return ", ".join(names[:NAMES_IN_TEXT]) + (f" and {others:,} more" if others > 0 else "")


# --- Webhooks -------------------------------------------------------------------------------------------------------


def _webhooks(now: datetime) -> DashboardSection:
    due = Delivery.objects.filter(claimed_at=None)[: MAX_DUE_COUNT + 1].count()
    oldest = _oldest_due()
    waited = None if oldest is None else now - time_of_id(oldest)
    failing = list(_failing(now)[: NAMES_IN_TEXT + 1])
    count = len(failing) if len(failing) <= NAMES_IN_TEXT else _failing(now).count()
    context = {
        "due": f"{MAX_DUE_COUNT:,}+" if due > MAX_DUE_COUNT else f"{due:,}",
        "oldest_seconds": None if waited is None else waited.total_seconds(),
        "failing": failing[:NAMES_IN_TEXT],
        "failing_count": count,
    }
    alarms = []
    if failing:
        latest = f"{failing[0].url} ({failing[0].broker_id})"
        text = f"{count:,} webhook endpoints are failing. Latest: {latest}"
        if count == 1:
            text = f"1 webhook endpoint is failing: {latest}"
        alarms.append(Alarm(text, list_url(Subscription, failing="on"), "View failing endpoints"))
    if waited is not None and waited > DUE_TOO_LONG:
        text = f"Webhook deliveries are delayed. The oldest has been pending since {_minute(now - waited)}."
        alarms.append(Alarm(text, list_url(Delivery, state=DeliveryState.DUE), "View pending deliveries"))
    return DashboardSection({"webhooks": context}, alarms)


def _oldest_due() -> UUID | None:
    """Return the ID of the oldest pending delivery, with one index lookup per active subscription."""
    active = Subscription.objects.alive().filter(paused_at=None)
    oldest = active.annotate(oldest=Subquery(due_to(OuterRef("pk")).values("pk")[:1])).exclude(oldest=None)
    return oldest.order_by("oldest").values_list("oldest", flat=True).first()


def _failing(now: datetime) -> QuerySet[Subscription]:
    """Return the failing active subscriptions, latest failure first."""
    failing = Subscription.objects.alive().filter(FAILING, paused_at=None, last_failure_at__gt=now - FAILING_WITHIN)
    return failing.order_by("-last_failure_at", "pk")


# --- Processes ------------------------------------------------------------------------------------------------------


def _processes(now: datetime) -> DashboardSection:
    read = heartbeat.read()
    processes = [
        ProcessStatus("Web", read.web_age_seconds, "serves requests"),
        ProcessStatus("Worker", read.worker_age_seconds, "expires orders and aggregates daily figures"),
        ProcessStatus("Webhook worker", read.webhooks_age_seconds, "sends deliveries"),
        ProcessStatus("Beat", read.beat_age_seconds, "starts scheduled tasks"),
    ]
    context = {"processes": processes, "valkey": read.valkey}
    if not read.valkey:
        text = "Valkey is not responding. Scheduled tasks do not run, and the state of the processes is unknown."
        return DashboardSection(context, [Alarm(text, "#processes", "View processes")])
    silent = [each for each in processes[1:] if each.state == "silent"]  # a web process serves this page
    return DashboardSection(context, [_silent(each, now) for each in silent])


def _silent(process: ProcessStatus, now: datetime) -> Alarm:
    since = "" if process.age_seconds is None else f" since {_minute(now - timedelta(seconds=process.age_seconds))}"
    text = f"No heartbeat from the {process.name.lower()}{since}. It {process.tasks}."
    return Alarm(text, "#processes", "View processes")


# --- Reconciliation -------------------------------------------------------------------------------------------------


def _reconciliation(now: datetime) -> DashboardSection:
    run = ReconcileRun.objects.exclude(finished_at=None).order_by("-id").first()
    context = {"run": run, "sees_runs": True}
    if run is None or run.state == RunState.OK:
        return DashboardSection(context)
    text = f"The last reconciliation did not finish: {run.error}"
    if run.state == RunState.DIFFERENCES:
        text = f"The last reconciliation found {run.differences:,} difference{'s' if run.differences != 1 else ''}."
    return DashboardSection(context, [Alarm(text, page_url(ReconcileRun, run.pk), "View reconciliation")])


# The permissions to view each section, in the order of the alarms: those that stop trading come first.
_SECTIONS: tuple[tuple[tuple[str, ...], Callable[[datetime], DashboardSection]], ...] = (
    ((), _processes),
    (("exchange.view_instrument", "orders.view_trade", "orders.view_order"), _market),
    (("orders.view_reconcilerun",), _reconciliation),
    (("webhooks.view_subscription", "webhooks.view_delivery"), _webhooks),
    (("orders.view_order", "orders.view_trade", "exchange.view_rejectedorders"), _figures),
)
