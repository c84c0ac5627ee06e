"""The dashboard: what goes on now and today, what is wrong and where to look, in a dozen queries whatever there is.

Every figure is bounded: by a range of a primary key, by the bars of a day, by what is due counted up to a limit, or by
how many instruments and subscriptions there are. Who may not see a part of the back office does not see it here either.
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
from backoffice.templatetags.formatting import short
from exchange import heartbeat, rejection_counts
from exchange.database import database_now
from exchange.ids import time_of_id
from exchange.models import Holding, Instrument
from exchange.rules import InstrumentStatus
from orders import activity
from orders.models import Order, ReconcileRun, RunState, Trade
from webhooks.models import Delivery, DeliveryState, Subscription

SILENT_AFTER_SECONDS = 15.0  # a process that has left no mark for so long is taken for dead
DUE_TOO_LONG = timedelta(minutes=1)
FAILING_WITHIN = timedelta(days=1)  # a receiver that nobody has called since is forgotten
MAX_DUE_COUNT = 10_000
MAX_INSTRUMENTS, MAX_NAMED = 12, 5
CHART_MINUTES = 60  # minutes


@dataclass(frozen=True, slots=True)
class Alarm:
    """What is wrong, and the page that shows it."""

    text: str
    url: str
    link: str


@dataclass(frozen=True, slots=True)
class Card:
    """A figure of the last minute and of today, with the chart of the last hour, also in words."""

    title: str
    last_minute: Number
    today: Number
    chart: Sparkline
    in_words: str
    url: str


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """A kind of process, and how old its last mark is."""

    name: str
    age_seconds: float | None
    does: str

    @property
    def state(self) -> str:
        return "silent" if self.age_seconds is None or self.age_seconds > SILENT_AFTER_SECONDS else "alive"


@dataclass(frozen=True, slots=True)
class DashboardSection:
    """What a part of the dashboard shows, and what is wrong in it."""

    shown: dict[str, Any]
    alarms: Sequence[Alarm] = ()


def dashboard(request: HttpRequest) -> dict[str, Any]:
    """What the page shows to this user."""
    now = database_now()
    sections = [section(now) for permissions, section in _SECTIONS if request.user.has_perms(permissions)]
    figures = {name: value for section in sections for name, value in section.shown.items()}
    alarms = [alarm for section in sections for alarm in section.alarms]
    return figures | {"now": now, "alarms": alarms, "sees_all": len(sections) == len(_SECTIONS)}


def _clock(moment: datetime) -> str:
    """A time that stays the same while the page refreshes: an alarm is read aloud when it changes."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


# --- What goes on ---------------------------------------------------------------------------------------------------


def _figures(now: datetime) -> DashboardSection:
    midnight = activity.start_of_day(now)
    told = activity.overview(now, midnight, CHART_MINUTES)
    lately, today, minutes = told.last_minute, told.today, told.minutes
    refused_lately, refused_today, refused = rejection_counts.summary(now, midnight, CHART_MINUTES)
    orders, trades = list_url(Order), list_url(Trade)
    cards = [
        _card("Orders", lately.orders, today.orders, [each.orders for each in minutes], orders),
        _card("Trades", lately.trades, today.trades, [each.trades for each in minutes], trades),
        _card("Value traded", lately.value, today.value, [each.value for each in minutes], trades),
        _card("Orders rejected", refused_lately, refused_today, refused, url=""),  # they are in no list
    ]
    behind = activity.behind_since(now)
    if behind is None:
        return DashboardSection({"cards": cards})
    text = f"The figures of the day and the charts are not kept up: they end at {_clock(behind)}."
    return DashboardSection({"cards": cards}, [Alarm(text, "#processes", "Look at the processes")])


def _card(title: str, last_minute: Number, today: Number, minutes: Sequence[Number], url: str) -> Card:
    in_words = (
        f"{title} by minute in the last hour: {short(minutes[-1])} in the last whole minute, "
        f"{short(max(minutes))} at most, {short(sum(minutes))} together"
    )
    return Card(title, last_minute, today, sparkline(minutes), in_words, url)


# --- The market -----------------------------------------------------------------------------------------------------


def _market(now: datetime) -> DashboardSection:
    """Prices and books are looked up for the instruments that are shown: those that are halted, and the busiest."""
    volumes = activity.volumes(activity.start_of_day(now))
    every: list[Any] = list(Instrument.objects.annotate(is_quiet=market_watch.is_quiet(now)))
    every.sort(key=lambda each: (each.status != InstrumentStatus.HALTED, -volumes.get(each.pk, 0), each.pk))
    halted = [each.pk for each in every if each.status == InstrumentStatus.HALTED]
    shown = every[:MAX_INSTRUMENTS]
    figures = market_watch.figures_of([each.pk for each in shown])
    market = {
        "rows": [(each, "quiet" if each.is_quiet else each.status, figures[each.pk]) for each in shown],
        "instruments": len(every),
        "halted": len(halted),
        "quiet": sum(each.is_quiet for each in every),
        "quiet_seconds": market_watch.QUIET_AFTER.total_seconds(),
        "open_orders": Holding.objects.aggregate(total=Coalesce(Sum("open_orders"), 0))["total"],
        "url": list_url(Instrument),
        "halted_url": list_url(Instrument, status__exact=InstrumentStatus.HALTED),
        "quiet_url": list_url(Instrument, quiet="on"),
    }
    return DashboardSection({"market": market}, [_halted(halted)] if halted else [])


def _halted(symbols: Sequence[str]) -> Alarm:
    if len(symbols) == 1:
        (symbol,) = symbols
        return Alarm(f"{symbol} is halted.", page_url(Instrument, symbol), f"Look at {symbol}")
    url = list_url(Instrument, status__exact=InstrumentStatus.HALTED)
    return Alarm(f"{_join_names(symbols)} are halted.", url, "Look at them")


def _join_names(names: Sequence[str]) -> str:
    """The first few by name, and how many others there are."""
    others = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {others:,} more" if others > 0 else "")


# --- Webhooks -------------------------------------------------------------------------------------------------------


def _webhooks(now: datetime) -> DashboardSection:
    due = Delivery.objects.filter(claimed_at=None)[: MAX_DUE_COUNT + 1].count()
    oldest = _oldest_due()
    waited = None if oldest is None else now - time_of_id(oldest)
    failing = list(_failing(now)[: MAX_NAMED + 1])
    count = f"{MAX_NAMED}+" if len(failing) > MAX_NAMED else str(len(failing))
    told = {
        "due": f"{MAX_DUE_COUNT:,}+" if due > MAX_DUE_COUNT else f"{due:,}",
        "oldest_seconds": None if waited is None else waited.total_seconds(),
        "failing": failing[:MAX_NAMED],
        "failing_count": count,
        "due_url": list_url(Delivery, state=DeliveryState.DUE),
        "failed_url": list_url(Delivery, state=DeliveryState.FAILED),
    }
    alarms = []
    if failing:
        latest = failing[0]
        what = "An endpoint fails" if len(failing) == 1 else f"{count} endpoints fail, the latest"
        url = list_url(Subscription, failing="on")
        alarms.append(Alarm(f"{what}: {latest.url} of {latest.broker_id}.", url, "Look at what fails"))
    if waited is not None and waited > DUE_TOO_LONG:
        text = f"Webhooks wait to be delivered, the oldest since {_clock(now - waited)}."
        alarms.append(Alarm(text, list_url(Delivery, state=DeliveryState.DUE), "Look at what is due"))
    return DashboardSection({"webhooks": told}, alarms)


def _oldest_due() -> UUID | None:
    """What has waited longest, of all that is meant to be sent: one look per subscription."""
    sent_to = Subscription.objects.alive().filter(paused_at=None)
    oldest = sent_to.annotate(oldest=Subquery(due_to(OuterRef("pk")).values("pk")[:1])).exclude(oldest=None)
    return oldest.order_by("oldest").values_list("oldest", flat=True).first()


def _failing(now: datetime) -> QuerySet[Subscription]:
    """Those whose last attempt failed, latest first; not those that an operator has paused."""
    asked = Subscription.objects.alive().filter(FAILING, paused_at=None, last_failure_at__gt=now - FAILING_WITHIN)
    return asked.order_by("-last_failure_at", "pk")


# --- Processes ------------------------------------------------------------------------------------------------------


def _processes(now: datetime) -> DashboardSection:
    read = heartbeat.read()
    pulses = [
        ProcessStatus("Web", read.web_age_seconds, "answers requests"),
        ProcessStatus("Worker", read.worker_age_seconds, "expires orders, sums up the day"),
        ProcessStatus("Webhooks worker", read.webhooks_age_seconds, "sends deliveries"),
        ProcessStatus("Beat", read.beat_age_seconds, "starts what must be repeated"),
    ]
    told = {"processes": pulses, "valkey": read.valkey}
    if not read.valkey:
        text = "Valkey does not answer: nothing that must be repeated is started, and nobody knows what is alive."
        return DashboardSection(told, [Alarm(text, "#processes", "Look at the processes")])
    silent = [pulse for pulse in pulses[1:] if pulse.state == "silent"]  # a web process shows this page
    return DashboardSection(told, [_silent(pulse, now) for pulse in silent])


def _silent(pulse: ProcessStatus, now: datetime) -> Alarm:
    since = "" if pulse.age_seconds is None else f" since {_clock(now - timedelta(seconds=pulse.age_seconds))}"
    text = f"There is no sign of the {pulse.name.lower()}{since}: it {pulse.does}."
    return Alarm(text, "#processes", "Look at the processes")


# --- Reconciliation -------------------------------------------------------------------------------------------------


def _reconciliation(now: datetime) -> DashboardSection:
    run = ReconcileRun.objects.exclude(finished_at=None).order_by("-id").first()
    told = {"run": run, "run_url": run and page_url(ReconcileRun, run.pk), "runs_url": list_url(ReconcileRun)}
    if run is None or run.state == RunState.OK:
        return DashboardSection(told)
    text = f"The last reconciliation came to no verdict: {run.error}"
    if run.state == RunState.DIFFERENCES:
        text = f"The last reconciliation found {run.differences:,} difference{'s' if run.differences != 1 else ''}."
    return DashboardSection(told, [Alarm(text, page_url(ReconcileRun, run.pk), "Look at it")])


# What each part needs to be seen, and where its alarms stand: what stops trading comes first.
_SECTIONS: tuple[tuple[tuple[str, ...], Callable[[datetime], DashboardSection]], ...] = (
    ((), _processes),
    (("exchange.view_instrument", "orders.view_trade", "orders.view_order"), _market),
    (("orders.view_reconcilerun",), _reconciliation),
    (("webhooks.view_subscription", "webhooks.view_delivery"), _webhooks),
    (("orders.view_order", "orders.view_trade", "exchange.view_rejectedorders"), _figures),
)
