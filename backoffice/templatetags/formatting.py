"""Formats of amounts, times and statuses in the back office."""

from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from django import template
from django.db.models import Model
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from backoffice.links import page_url
from exchange.ids import time_of_id
from exchange.rules import round_cash
from webhooks.models import Delivery

register = template.Library()

DASH = "\N{EN DASH}"

# The colours of statuses. Others are plain.
_TONES = {
    **dict.fromkeys(["trading", "active", "filled", "delivered", "alive", "ok", "live"], "good"),
    **dict.fromkeys(["halted", "suspended", "failed", "failing", "silent", "revoked"], "bad"),
    **dict.fromkeys(["differences", "incomplete"], "bad"),
    **dict.fromkeys(["pending", "partially_filled", "due", "in_flight", "paused", "running", "waiting"], "wait"),
}

# Labels of words that are not their own label.
_LABELS = {
    "alive": "running",
    "due": "pending",
    "invalid_answer": "invalid response",
    "ok": "OK",
    "quiet": "no trades",
    "silent": "not responding",
}


@register.filter
def status_pill(value: Any) -> SafeString:
    """Return the label of a status in its colour."""
    return format_html('<span class="o-state o-{}">{}</span>', _TONES.get(str(value), "plain"), readable(value))


def status_pills(*values: Any) -> SafeString:
    """Return the pills of several statuses, without empty ones."""
    return format_html_join(" ", "{}", ((status_pill(value),) for value in values if value))


@register.filter
def formatted(value: Any) -> Any:
    """Format a value for a table: grouped digits, times in UTC, a dash for nothing."""
    match value:
        case None | "":
            return DASH
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case Decimal():
            return money(value)
        case datetime():
            return timestamp(value)
        case Enum():
            return str(value)
    return value


def side_label(side: str) -> SafeString:
    """Return a side in its colour."""
    return format_html('<span class="o-{}">{}</span>', side, side)


@register.filter
def readable(value: Any) -> str:
    """Return the label of an enum value: its own, or the value with spaces."""
    return _LABELS.get(str(value), str(value).replace("_", " "))


@register.filter
def short_id(value: Any) -> SafeString | str:
    """Return the end of an ID, because neighbouring IDs begin alike, with the whole ID as a tooltip."""
    return DASH if value is None else format_html('<span class="o-id" title="{}">…{}</span>', value, str(value)[-8:])


@register.filter
def money(value: Decimal | None) -> str:
    """Format an amount with grouped digits and two to four decimals."""
    return DASH if value is None else f"{round_cash(value):,}"


@register.filter
def compact(value: Any) -> str:
    """Format a number in full below a million, above in millions (M), billions (bn) or trillions (tn)."""
    for limit, name in ((10**12, "tn"), (10**9, "bn"), (10**6, "M")):
        if abs(value) >= limit:
            return f"{value / limit:,.2f} {name}"
    return money(value) if isinstance(value, Decimal) else f"{value:,}"


@register.filter
def percent(value: Decimal | None) -> str:
    """Format a percentage with its sign and two decimals."""
    if value is None:
        return DASH
    return f"{value:+.2f} %" if value else "0.00 %"


@register.filter
def price(value: Decimal | None) -> str:
    """Format a price with grouped digits. Its decimals are the instrument's."""
    return DASH if value is None else f"{value:,}"


@register.filter
def price_change(change: Decimal | None, change_percent: Decimal | None) -> SafeString | str:
    """Format a price change, absolute and in percent, in green or red."""
    if change is None:
        return DASH
    tone = "o-faint" if not change else "o-bid" if change > 0 else "o-ask"
    sign = "+" if change > 0 else ""
    return format_html(
        '<span class="{}">{}{} <span class="o-percent">{}</span></span>',
        tone,
        sign,
        price(change),
        percent(change_percent),
    )


def utc(value: datetime) -> str:
    """Format a time in UTC to the millisecond: 2026-02-16 16:29:00.123 UTC."""
    return value.astimezone(UTC).isoformat(" ", "milliseconds").replace("+00:00", " UTC")


@register.filter
def timestamp(value: datetime | None) -> SafeString | str:
    """Format a time in UTC, with the exact time as a tooltip."""
    return DASH if value is None else _time_element(value, utc(value))


@register.filter
def time_of_day(value: datetime) -> SafeString:
    """Format the time of a day, in UTC like a timestamp, for columns whose title says so."""
    return _time_element(value, utc(value)[11:23])


def _time_element(value: datetime, text: str) -> SafeString:
    exact = value.isoformat()
    return format_html('<time datetime="{}" title="{}">{}</time>', exact, exact, text)


@register.filter
def id_time(id_: UUID) -> datetime:
    """Return the time at which an ID was created."""
    return time_of_id(id_)


@register.filter
def outcome(delivery: Delivery) -> str:
    """Return a delivery's response status, its error, or both if the response was cut off."""
    code = str(delivery.status_code) if delivery.status_code else ""
    return ", ".join(each for each in (code, readable(delivery.error)) if each)


@register.filter
def duration(seconds: float | None) -> str:
    """Format a duration like an age, but in milliseconds below one second."""
    return age(seconds) if seconds is None or seconds >= 1 else f"{seconds * 1000:.0f} ms"


@register.filter
def age(seconds: float | None) -> str:
    """Format a duration in one unit: 0.8 s, 42 s, 7 min, 3 h, 2 d."""
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    for limit, unit, name in ((120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} d"


@register.filter
def ago(value: datetime | None) -> SafeString | str:
    """Format the age of a time, with the exact time as a tooltip."""
    if value is None:
        return DASH
    return _time_element(value, f"{age((timezone.now() - value).total_seconds())} ago")


@register.filter
def row_url(row: Model) -> str:
    """Return the URL of a row's page."""
    return page_url(type(row), row.pk)
