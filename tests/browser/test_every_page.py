"""Every page of the back office renders without errors, is accessible and fits, on a wide screen and on a phone."""

from collections.abc import Iterator, Sequence
from typing import Literal

import pytest
from django.contrib import admin
from django.urls import URLPattern, URLResolver
from playwright.sync_api import Page, ViewportSize

from bench import history, pages
from orders.enums import Side
from tests import celery_processes, trading
from tests.browser.chromium import PHONE, WIDE
from tests.browser.conftest import SignIn
from tests.browser.page_checks import accessibility_faults

pytestmark = pytest.mark.django_db(transaction=True)

# URLs without a page: Django's disabled add, delete and history views, exports, and redirects.
_ROWS = [f"exchange_{name}" for name in ("apikey", "auditentry", "broker", "instrument", "transfer")]
_ROWS += [f"orders_{name}" for name in ("order", "reconcilerun", "trade")]
_ROWS += [f"webhooks_{name}" for name in ("delivery", "event", "subscription")]
NOT_PAGES = {f"{rows}_{form}" for rows in _ROWS for form in ("add", "delete", "history")}
NOT_PAGES |= {f"{rows}_export" for rows in ("orders_order", "orders_trade", "exchange_transfer", "exchange_auditentry")}
NOT_PAGES |= {"logout", "jsi18n", "autocomplete", "view_on_site", "search", "auth_user_delete"}

# Controls that the Tab key does not reach.
_OUT_OF_REACH = """() => {
  const kinds = ["a", "button", "input", "select", "textarea", "summary", "[x-on\\\\:click]"];
  const isShown = each => each.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true });
  const isReachable = each => each.tabIndex >= 0 && (!each.matches("a") || each.hasAttribute("href"));
  return [...document.querySelectorAll(kinds.map(kind => `#main ${kind}`).join())]
    .filter(each => isShown(each) && !each.disabled && !isReachable(each))
    .map(each => each.outerHTML.slice(0, 150));
}"""
_FOCUSED = """([tag, text]) => {
  const it = document.activeElement;
  return it.matches(`#content ${tag}`) && it.innerText.trim() === text && getComputedStyle(it).outlineStyle;
}"""


@pytest.fixture
def market(transactional_db: None) -> None:
    """Data for every page."""
    history.load_history(
        celery_processes.environment()["DATABASE_URL"], orders=20, trades=16, deliveries=16, resting=8, symbols=2
    )


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)])
@pytest.mark.usefixtures("market")
def test_every_page(signed_in: SignIn, scheme: Literal["light", "dark"], size: ViewportSize) -> None:
    page = signed_in("superuser")
    pages.create_rows(actions=100)
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size(size)
    found = pages.pages()
    wrong: list[str] = []

    for each in found:
        answer = page.goto(each.path)
        wrong += [] if answer and answer.ok else [f"{each.path}: {answer and answer.status}"]
        wrong += accessibility_faults(page)
        wrong += [f"{each.path}: no key reaches {control}" for control in page.evaluate(_OUT_OF_REACH)]

    assert wrong == [], "\n".join(wrong)
    assert sorted(each.name for each in found) == sorted(_names())


def _names() -> Iterator[str]:
    """Yield the names of all URLs with a page, as `bench.pages` names them."""
    for name in _url_names(admin.site.get_urls()):
        if name == "app_list":
            yield from ("app-auth", "app-exchange", "app-orders", "app-webhooks")
        elif name not in NOT_PAGES:
            yield "dashboard" if name == "index" else name.replace("_", "-")


def _url_names(patterns: Sequence[URLPattern | URLResolver]) -> Iterator[str]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _url_names(pattern.url_patterns)
        elif pattern.name:
            yield pattern.name


# Elements of a page that are wider than their space: figures on two lines, and tables that scroll sideways.
_TOO_WIDE = """() => [
  ...[...document.querySelectorAll(".o-figure")].filter(each => each.getClientRects()[0].height > 40),
  ...[...document.querySelectorAll(".o-scroll")].filter(each => each.scrollWidth > each.clientWidth),
].map(each => each.innerText.slice(0, 150))"""
_HEADERS_IN_VIEW = """() => [...document.querySelectorAll("#rows thead th")]
  .filter(each => each.getBoundingClientRect().right <= innerWidth).map(each => each.innerText)"""


def test_columns_that_matter_fit(signed_in: SignIn) -> None:
    """On a broker's page at 1,400 pixels, all; in the list of orders on a phone, those of the order's terms."""
    trading.broker("alice", cash=987_654_321_012, holdings={"AAPL": 10**9})
    trading.place(Side.BID, 500_000, "1234.56")
    trading.place(Side.ASK, 200_000, "1234.56")
    page = signed_in("superuser")
    page.goto("/admin/exchange/broker/alice/change/")
    page.get_by_text("partially filled").wait_for()
    assert page.evaluate(_TOO_WIDE) == []

    page.set_viewport_size(PHONE)
    page.goto("/admin/orders/order/")
    assert page.evaluate(_HEADERS_IN_VIEW)[1:5] == ["Symbol", "Side", "Price", "Quantity"]
    top = page.locator("#rows").bounding_box()
    assert top is not None
    assert top["y"] < PHONE["height"] / 3
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Symbol").fill("NONE")
    page.get_by_role("button", name="Apply filters").click()
    page.get_by_text("No results.").wait_for()
    assert not page.locator("[name=symbol]").is_visible()


def test_a_page_is_usable_by_keyboard(signed_in: SignIn) -> None:
    trading.broker("alice")
    page = signed_in("superuser")
    page.keyboard.press("Control+k")
    page.locator("#search-input-command").press_sequentially("aap")
    page.locator("#command-results-list a", has_text="AAPL").wait_for()
    assert accessibility_faults(page) == []
    page.keyboard.press("ArrowDown")
    page.locator("#command-results-list li.active").wait_for()
    page.keyboard.press("Enter")
    page.wait_for_url("**/exchange/instrument/AAPL/change/")

    _tab_to(page, "a", "Halt AAPL")
    page.keyboard.press("Enter")
    page.wait_for_url("**/halt/*")
    _tab_to(page, "input", "")
    page.keyboard.type("by keyboard alone")
    page.keyboard.press("Enter")

    page.get_by_text("by keyboard alone").first.wait_for()


def _tab_to(page: Page, tag: str, text: str, presses: int = 80) -> None:
    """Press Tab until the element is focused. The focus must be visible."""
    for _ in range(presses):
        page.keyboard.press("Tab")
        if outline := page.evaluate(_FOCUSED, [tag, text]):
            assert outline != "none"
            return
    raise AssertionError(f"{presses} presses of Tab did not lead to {text or tag}")
