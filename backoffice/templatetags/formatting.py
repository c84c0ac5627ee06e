"""How the back office writes what it shows: amounts, times, states."""

from datetime import datetime
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

# A state's colour: good, bad, waiting, or none in particular.
_TONES = {
    "trading": "good",
    "active": "good",
    "filled": "good",
    "delivered": "good",
    "alive": "good",
    "ok": "good",
    "halted": "bad",
    "suspended": "bad",
    "failed": "bad",
    "failing": "bad",
    "silent": "bad",
    "revoked": "bad",
    "live": "good",
    "pending": "wait",
    "partially_filled": "wait",
    "due": "wait",
    "in_flight": "wait",
    "paused": "wait",
    "running": "wait",
    "waiting": "wait",
    "differences": "bad",
    "incomplete": "bad",
}


@register.filter
def state(value: Any) -> SafeString:
    """A state's word on its colour."""
    word = str(value)
    return format_html('<span class="o-state o-{}">{}</span>', _TONES.get(word, "plain"), word.replace("_", " "))


def states(*values: Any) -> SafeString:
    """Several of them, side by side; what is empty is left out."""
    return format_html_join(" ", "{}", ((state(value),) for value in values if value))


@register.filter
def shown(value: Any) -> Any:
    """A value as tables show it: grouped digits, UTC to the second, a dash for nothing."""
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
            return moment(value)
        case Enum():
            return str(value)
    return value


def coloured(side: str) -> SafeString:
    """A side in its colour."""
    return format_html('<span class="o-{}">{}</span>', side, side)


@register.filter
def words(value: Any) -> str:
    """A word of ours as people write it."""
    return str(value).replace("_", " ")


@register.filter
def short_id(value: Any) -> SafeString | str:
    """The end of an id, which tells neighbours apart (they begin alike); the whole of it on hovering."""
    return DASH if value is None else format_html('<span class="o-id" title="{}">…{}</span>', value, str(value)[-8:])


@register.filter
def money(value: Decimal | None) -> str:
    """An amount with grouped digits and two decimals, or up to four where it has them."""
    return DASH if value is None else f"{round_cash(value):,}"


@register.filter
def short(value: Any) -> str:
    """A figure for a glance: whole up to a million, then in millions and so on to three digits or four."""
    for limit, name in ((10**12, "tn"), (10**9, "bn"), (10**6, "M")):
        if abs(value) >= limit:
            return f"{value / limit:,.2f} {name}"
    return money(value) if isinstance(value, Decimal) else f"{value:,}"


@register.filter
def percent(value: Decimal | None) -> str:
    """A change with its sign and two decimals."""
    if value is None:
        return DASH
    return f"{value:+.2f} %" if value else "0.00 %"


@register.filter
def price(value: Decimal | None) -> str:
    """A price with grouped digits and the decimals it comes with: its instrument's."""
    return DASH if value is None else f"{value:,}"


@register.filter
def moved(change: Decimal | None, part: Decimal | None) -> SafeString | str:
    """How far a price has moved, also in percent, in green or in red."""
    if change is None:
        return DASH
    tone = "o-faint" if not change else "o-bid" if change > 0 else "o-ask"
    sign = "+" if change > 0 else ""
    return format_html(
        '<span class="{}">{}{} <span class="o-percent">{}</span></span>', tone, sign, price(change), percent(part)
    )


@register.filter
def moment(value: datetime | None) -> SafeString | str:
    """A time in UTC to the second; the whole of it on hovering."""
    if value is None:
        return DASH
    exact = value.isoformat()
    return format_html('<time datetime="{}" title="{}">{}</time>', exact, exact, f"{value:%Y-%m-%d %H:%M:%S}")


@register.filter
def made_at(id_: UUID) -> datetime:
    """When an id was made."""
    return time_of_id(id_)


@register.filter
def outcome(delivery: Delivery) -> str:
    """What became of a delivery: the status that was answered, the error, or both when the answer broke off."""
    code = str(delivery.status_code) if delivery.status_code else ""
    return ", ".join(each for each in (code, words(delivery.error)) if each)


@register.filter
def took(seconds: float | None) -> str:
    """How long something took: like an age, but milliseconds below a second."""
    return age(seconds) if seconds is None or seconds >= 1 else f"{seconds * 1000:.0f} ms"


@register.filter
def age(seconds: float | None) -> str:
    """A duration in the largest unit that says enough: 0.8 s, 42 s, 7 min, 3 h, 2 d."""
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
    """How long ago it was; the time itself on hovering."""
    if value is None:
        return DASH
    exact = value.isoformat()
    seconds = (timezone.now() - value).total_seconds()
    return format_html('<time datetime="{}" title="{}">{} ago</time>', exact, exact, age(seconds))


@register.filter
def page(row: Model) -> str:
    """Where the row has its page."""
    return page_url(type(row), row.pk)
