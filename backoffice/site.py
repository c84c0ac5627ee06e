"""The back office as a whole: who may come in, what leads where, and what every page loads."""

from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse
from unfold.sites import UnfoldAdminSite

# What the sidebar shows: groups of pages, each with its URL's name, its icon, and the permission to see it.
PAGES: tuple[tuple[str, tuple[tuple[str, str, str, str], ...]], ...] = (
    (
        "Market",
        (
            ("Dashboard", "index", "monitoring", ""),
            ("Instruments", "exchange_instrument_changelist", "candlestick_chart", "exchange.view_instrument"),
            ("Orders", "orders_order_changelist", "list_alt", "orders.view_order"),
            ("Trades", "orders_trade_changelist", "handshake", "orders.view_trade"),
        ),
    ),
    (
        "Members",
        (
            ("Brokers", "exchange_broker_changelist", "account_balance", "exchange.view_broker"),
            ("Transfers", "exchange_transfer_changelist", "swap_horiz", "exchange.view_transfer"),
            ("Keys", "exchange_apikey_changelist", "key", "exchange.view_apikey"),
        ),
    ),
    (
        "Webhooks",
        (
            ("Subscriptions", "webhooks_subscription_changelist", "webhook", "webhooks.view_subscription"),
            ("Deliveries", "webhooks_delivery_changelist", "outgoing_mail", "webhooks.view_delivery"),
            ("Events", "webhooks_event_changelist", "stream", "webhooks.view_event"),
        ),
    ),
    (
        "Control",
        (
            ("Audit", "exchange_auditentry_changelist", "policy", "exchange.view_auditentry"),
            ("Reconciliation", "orders_reconcilerun_changelist", "balance", "orders.view_reconcilerun"),
            ("Users", "auth_user_changelist", "group", "auth.view_user"),
        ),
    ),
)


class BackOffice(UnfoldAdminSite):  # type: ignore[misc]  # unfold is not typed
    """Django's admin site, with a dashboard as its first page."""

    index_title = "Dashboard"


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """The sidebar, as unfold wants to be told it: only what this user may see."""
    return [
        {"title": title, "separator": False, "items": [_link(request, *page) for page in pages]}
        for title, pages in PAGES
    ]


def _link(request: HttpRequest, title: str, name: str, icon: str, permission: str) -> dict[str, Any]:
    path = reverse(f"admin:{name}")
    is_active = request.path == path if name == "index" else request.path.startswith(path)
    return {
        "title": title,
        "icon": icon,
        "link": path,
        "active": is_active,
        "permission": lambda asking: not permission or asking.user.has_perm(permission),
    }


def stylesheet(request: HttpRequest) -> str:
    return static("backoffice/office.css")


def script(request: HttpRequest) -> str:
    return static("backoffice/office.js")
