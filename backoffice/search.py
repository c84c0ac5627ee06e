"""Global search (Ctrl-K): rows, as the searches of their lists find them, then pages by their title."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from unfold.dataclasses import SearchResult

from backoffice.links import page_url
from backoffice.site import navigation
from exchange.models import ApiKey, Broker, Instrument, Transfer
from orders.models import Order, Trade

MAX_RESULTS = 5  # per model

_ICONS = {
    Instrument: "candlestick_chart",
    Broker: "account_balance",
    Order: "list_alt",
    Trade: "handshake",
    Transfer: "swap_horiz",
    ApiKey: "key",
}


def search_results(request: HttpRequest, lowercase_term: str) -> list[SearchResult]:
    """Return the rows and pages that match and that the user may view. Most IDs are case-sensitive."""
    term = request.GET["s"].strip()
    rows = [] if "\0" in term else [each for model in _ICONS for each in _rows(model, request, term)]
    return rows + _pages(request, lowercase_term.strip())


def _rows(model: Any, request: HttpRequest, term: str) -> list[SearchResult]:
    owner: Any = admin.site.get_model_admin(model)
    if not owner.has_view_permission(request):
        return []
    return [
        SearchResult(str(row), owner.summary(row), page_url(model, row.pk), _ICONS[model])
        for row in owner.search(request, term, MAX_RESULTS)
    ]


def _pages(request: HttpRequest, lowercase_term: str) -> list[SearchResult]:
    return [
        SearchResult(page["title"], group["title"], page["link"], page["icon"])
        for group in navigation(request)
        for page in group["items"]
        if lowercase_term in page["title"].lower() and page["permission"](request)
    ]
