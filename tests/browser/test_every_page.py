"""Every page of the back office, wide and light, and on a phone in the dark: none fails, none keeps anyone out."""

from typing import Literal

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, ViewportSize

from bench import history, pages
from exchange.models import Instrument
from orders import reconcile_runs
from tests import celery_processes, trading
from tests.browser.chromium import PHONE, WIDE
from tests.browser.conftest import SignIn
from tests.browser.watching import accessibility_faults
from tests.trading import BY

pytestmark = pytest.mark.django_db(transaction=True)

# What can be pressed or filled in and does not get the focus by the Tab key, or shows no sign of having it.
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
    """Something of everything that pages show."""
    history.load_history(
        celery_processes.environment()["DATABASE_URL"], orders=80, trades=60, deliveries=60, resting=32, symbols=2
    )
    trading.broker("alice", holdings={"S1": 100})
    Instrument.objects.filter(symbol="S2").update(status="halted", halt_reason="news pending")
    reconcile_runs.run_now(by=BY)


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)])
@pytest.mark.usefixtures("market")
def test_every_page(signed_in: SignIn, scheme: Literal["light", "dark"], size: ViewportSize) -> None:
    page = signed_in("superuser")
    User.objects.create(username="otto", is_staff=True)  # the newest: one may not do to oneself all that one may do
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
    assert {"dashboard", "orders-order-change", "orders-order-cancel"} <= {each.name for each in found}


def test_the_tab_key_walks_through_a_page_and_enter_acts(signed_in: SignIn) -> None:
    trading.broker("alice")
    page = signed_in("superuser")
    page.goto("/admin/exchange/instrument/AAPL/change/")

    _tab_to(page, "a", "Halt")
    page.keyboard.press("Enter")
    page.wait_for_url("**/halt/*")
    _tab_to(page, "input", "")
    page.keyboard.type("by keyboard alone")
    page.keyboard.press("Enter")

    page.get_by_text("by keyboard alone").first.wait_for()


def _tab_to(page: Page, tag: str, text: str, presses: int = 80) -> None:
    """Press Tab until this is focused, which must show."""
    for _ in range(presses):
        page.keyboard.press("Tab")
        if outline := page.evaluate(_FOCUSED, [tag, text]):
            assert outline != "none"
            return
    raise AssertionError(f"{presses} presses of Tab did not lead to {text or tag}")
