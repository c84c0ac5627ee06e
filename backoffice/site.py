"""The admin site of the back office: login, navigation, and the files that every page loads."""

from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.templatetags.static import static
from django.urls import URLPattern, path, reverse
from unfold.sites import UnfoldAdminSite

from backoffice import known_devices, two_factor
from backoffice.dashboard import dashboard
from backoffice.operator_actions import actor_of
from backoffice.templatetags.formatting import DASH
from exchange import audit
from exchange.audit import Action, Entry

# The sidebar: pages by group, each with its title, icon, URL name, and required permission.
NAVIGATION: dict[str, list[tuple[str, str, str, str]]] = {
    "Market": [
        ("Dashboard", "monitoring", "index", ""),
        ("Instruments", "candlestick_chart", "exchange_instrument_changelist", "exchange.view_instrument"),
        ("Orders", "list_alt", "orders_order_changelist", "orders.view_order"),
        ("Trades", "handshake", "orders_trade_changelist", "orders.view_trade"),
    ],
    "Members": [
        ("Brokers", "account_balance", "exchange_broker_changelist", "exchange.view_broker"),
        ("Transfers", "swap_horiz", "exchange_transfer_changelist", "exchange.view_transfer"),
        ("Keys", "key", "exchange_apikey_changelist", "exchange.view_apikey"),
    ],
    "Webhooks": [
        ("Subscriptions", "webhook", "webhooks_subscription_changelist", "webhooks.view_subscription"),
        ("Deliveries", "outgoing_mail", "webhooks_delivery_changelist", "webhooks.view_delivery"),
        ("Events", "stream", "webhooks_event_changelist", "webhooks.view_event"),
    ],
    "Control": [
        ("Audit", "policy", "exchange_auditentry_changelist", "exchange.view_auditentry"),
        ("Reconciliation", "balance", "orders_reconcilerun_changelist", "orders.view_reconcilerun"),
        ("Users", "group", "auth_user_changelist", "auth.view_user"),
    ],
}


class BackOfficeSite(UnfoldAdminSite):  # type: ignore[misc]  # unfold is not typed
    """Django's admin site with a dashboard as its index and a second login step."""

    index_title = "Dashboard"
    empty_value_display = DASH

    def has_permission(self, request: HttpRequest) -> bool:
        return self._has_logged_in(request) and not two_factor.needs_verification(request)

    def _has_logged_in(self, request: HttpRequest) -> bool:
        """True if an active staff user has entered the password."""
        return bool(super().has_permission(request))

    def extra_urls(self) -> list[URLPattern]:
        return [
            path("two-factor/", self._after_login(two_factor.verify), name="two_factor"),
            path("two-factor/setup/", self._after_login(two_factor.setup), name="two_factor_setup"),
            path("logout/", self._after_login(self.logout), name="logout"),  # also available before the second step
        ]

    def _after_login(self, view: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
        """Wrap a view that needs the password but not the second step."""

        @wraps(view)
        def inner(request: HttpRequest) -> HttpResponse:
            if not self._has_logged_in(request):
                return redirect_to_login(request.get_full_path(), reverse("admin:login"))
            return view(request)

        return inner

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show Django's login form or, after the password, redirect to the second step."""
        if request.method == "GET" and self._has_logged_in(request) and two_factor.needs_verification(request):
            return two_factor.redirect_to_second_step(request)
        response: HttpResponse = super().login(request, extra_context)
        has_logged_in = request.method == "POST" and response.status_code == HTTPStatus.FOUND
        if has_logged_in and not two_factor.is_required_for(request.user):
            known_devices.remember(request.user, response)
        return response

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Change the user's own password and record it. Django redirects on success."""
        with transaction.atomic():
            response: HttpResponse = super().password_change(request, extra_context)
            if request.method == "POST" and response.status_code == 302:
                entry = Entry.of(
                    actor_of(request), Action.USER_CHANGE, request.user.get_username(), after={"password": "changed"}
                )
                audit.record(entry)
        return response

    def search(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Search by `backoffice.search`. The results fit on one page."""
        if "page" in request.GET:
            raise Http404
        response: HttpResponse = super().search(request, extra_context)
        return response

    def _search_apps(self, app_list: Any, search_term: str) -> list[Any]:
        """Return no pages: unfold would list them before the rows, under names that the sidebar does not use."""
        return []

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        request.current_app = self.name
        context = self.each_context(request) | {"title": self.index_title}
        return TemplateResponse(request, "backoffice/dashboard.html", context | dashboard(request))


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the sidebar in unfold's format. Unfold hides the pages that the user may not view."""
    return [
        {"title": title, "separator": False, "items": [_link(request, *page) for page in pages]}
        for title, pages in NAVIGATION.items()
    ]


def _link(request: HttpRequest, title: str, icon: str, name: str, permission: str) -> dict[str, Any]:
    path = reverse(f"admin:{name}")
    is_active = request.path == path if name == "index" else request.path.startswith(path)
    return {
        "title": title,
        "icon": icon,
        "link": path,
        "active": is_active,
        "permission": lambda request: not permission or request.user.has_perm(permission),
    }


def account_links(request: HttpRequest) -> list[dict[str, str]]:
    """Return the links of the account menu."""
    return [
        {"title": "Change password", "link": reverse("admin:password_change")},
        {"title": "Two-factor login", "link": reverse("admin:two_factor_setup")},
    ]


def stylesheet(request: HttpRequest) -> str:
    return static("backoffice/office.css")


def script(request: HttpRequest) -> str:
    return static("backoffice/office.js")


def favicon(request: HttpRequest) -> str:
    return static("backoffice/favicon.svg")
