"""Screenshots of every page of the back office at a URL, wide and on a phone, light and dark.

Run by `tests.browser.screenshots` in the environment of that exchange, because the pages depend on its database.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import django

django.setup()

from django.conf import settings  # noqa: E402 (models can be had only now)
from django.contrib.auth.models import Group, User  # noqa: E402
from django.db.models import Case, IntegerField, Model, Value, When  # noqa: E402
from django_otp.plugins.otp_totp.models import TOTPDevice  # noqa: E402
from playwright.sync_api import Browser, Page, ViewportSize  # noqa: E402

from backoffice import two_factor  # noqa: E402
from bench import pages  # noqa: E402
from bench.pages import OfficePage  # noqa: E402
from config.local.processes import print_line  # noqa: E402
from exchange.audit import Actor, ActorKind  # noqa: E402
from tests.browser.chromium import PHONE, WIDE, chromium, code, sign_in  # noqa: E402
from tests.browser.page_checks import accessibility_faults, browser_errors  # noqa: E402
from tests.browser.palette import with_palette  # noqa: E402
from webhooks import services as webhooks  # noqa: E402
from webhooks.models import EventType, Subscription  # noqa: E402

PASSWORD = "only for pictures"  # noqa: S105 (of an exchange that ends with them)
USERS = {"vera": "viewer", "otto": "operator", "ada": "administrator"}
BY = Actor(ActorKind.USER, "otto")
STAGES: list[tuple[Literal["light", "dark"], str, ViewportSize]] = [
    (scheme, name, size) for scheme in ("light", "dark") for name, size in [("wide", WIDE), ("phone", PHONE)]
]
HEIGHT_MAX, LIST_HEIGHT_MAX = 2_400, 1_100  # pixels; longer lists are cut off
SETTLED_MS = 300  # for fonts and scripts
# The rows with the most content.
PREFERRED_ROWS: dict[str, dict[str, Any]] = {
    "auth.user": {"username": "otto"},
    "exchange.apikey": {"name": "reporting"},
    "exchange.broker": {"id": "aurora"},
    "exchange.instrument": {"symbol": "AAPL"},
    "orders.order": {"status": "partially_filled"},
    "webhooks.delivery": {"status_code": None, "completed_at__isnull": False},
    "webhooks.subscription": {"broker": "delta-1"},
}


def preferred_rows(model: type[Model]) -> Sequence[Any]:
    """Return the preferred rows, then the newest."""
    is_best = When(**PREFERRED_ROWS.get(model._meta.label_lower, {"pk": None}), then=Value(0))
    ordering = Case(is_best, default=Value(1), output_field=IntegerField())
    return list(model._default_manager.order_by(ordering, "-pk")[: pages.MAX_CANDIDATES])


@dataclass(frozen=True, slots=True)
class Stage:
    """A window size and colour scheme, with the faults found in them."""

    browser: Browser
    url: str
    folder: Path
    studio: Page
    scheme: Literal["light", "dark"]
    name: str
    size: ViewportSize
    faults_found: list[list[str]] = field(default_factory=list)

    def open(self) -> Page:
        """Open a page in a new browser context."""
        context = self.browser.new_context(
            base_url=self.url, viewport=self.size, color_scheme=self.scheme, reduced_motion="reduce"
        )
        page = context.new_page()
        self.faults_found.append(browser_errors(page))
        return page

    def snap(self, page: Page, name: str) -> None:
        """Save a screenshot of the whole page."""
        page.wait_for_timeout(SETTLED_MS)
        highest = LIST_HEIGHT_MAX if "changelist" in name else HEIGHT_MAX
        height = min(int(page.evaluate("document.documentElement.scrollHeight")), highest)
        page.set_viewport_size({"width": self.size["width"], "height": max(height, self.size["height"])})
        path = self.folder / f"{name}-{self.name}-{self.scheme}.png"
        path.write_bytes(with_palette(page.screenshot(animations="disabled"), self.studio))
        page.set_viewport_size(self.size)
        self.faults_found.append(accessibility_faults(page))

    @property
    def faults(self) -> list[str]:
        found = dict.fromkeys(each for several in self.faults_found for each in several)
        return [f"{self.name}, {self.scheme}: {fault}" for fault in found]


def capture(browser: Browser, url: str, found: Sequence[OfficePage], folder: Path) -> list[str]:
    """Capture all pages on every stage. Return the faults."""
    studio = browser.new_page()
    faults = []
    for scheme, name, size in STAGES:
        stage = Stage(browser, url, folder, studio, scheme, name, size)
        administrator = _sign_in(stage, "admin")
        for each in found:
            answer = administrator.goto(each.path)
            if answer is None or not answer.ok:
                stage.faults_found.append([f"{each.path}: {answer and answer.status}"])
            if administrator.url == f"{url}{each.path}":  # not redirected to another page
                stage.snap(administrator, each.name)
        _capture_key(stage, administrator)
        _capture_second_step(stage)
        _capture_error_pages(stage)
        for context in browser.contexts[1:]:
            context.close()
        faults += stage.faults
        print_line(f"{len(found)} pages, {name}, {scheme}")
    return faults


def _sign_in(stage: Stage, name: str) -> Page:
    page = stage.open()
    sign_in(page, stage.url, name, PASSWORD)
    return page


# --- Pages without a URL of their own -------------------------------------------------------------------------------


def _capture_key(stage: Stage, page: Page) -> None:
    page.goto("/admin/exchange/broker/banyan/change/")
    page.get_by_role("link", name="Issue key for banyan").click()
    page.get_by_label("Name").fill("trading desk")
    page.get_by_label("Reason").fill("asked for by mail")
    page.get_by_role("button", name="Issue key for banyan").click()
    page.locator("#secret").wait_for()
    stage.snap(page, "exchange-broker-issue-key-shown-once")


def _capture_second_step(stage: Stage) -> None:
    """Capture the enrolment, and the second step of an enrolled user."""
    page = _sign_in(stage, "vera")
    page.goto("/admin/two-factor/setup/")
    page.get_by_role("textbox", name="Code").fill(code(page.locator("#secret").inner_text()))
    page.get_by_role("button", name="Turn on two-factor login").click()
    page.locator("#codes").wait_for()
    stage.snap(page, "two-factor-codes")
    two_factor.reset(User.objects.get(username="vera"), by=BY, reason="for the next stage")

    page = stage.open()
    page.goto("/admin/")
    stage.snap(page, "login")
    page.fill("[name=username]", "otto")
    page.fill("[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.get_by_role("textbox", name="Code").wait_for()
    stage.snap(page, "login-code")


def _capture_error_pages(stage: Stage) -> None:
    """Capture error pages in contexts whose console errors are ignored."""
    page = _sign_in(stage, "vera").context.new_page()
    page.goto("/admin/auth/user/")
    stage.snap(page, "not-allowed")
    page.goto("/admin/exchange/broker/nobody/change/")
    stage.snap(page, "not-found")

    page = stage.open().context.new_page()
    for _ in range(settings.LOGIN_FAILURES):
        page.goto("/admin/login/")
        page.fill("[name=username]", "ada")
        page.fill("[name=password]", "forgotten")
        with page.expect_navigation():
            page.click("button[type=submit]")
    page.get_by_role("heading", name="Too many failed logins").wait_for()
    stage.snap(page, "locked-out")


def _prepare() -> None:
    """Create users, one of them enrolled, and pause a subscription."""
    User.objects.filter(username="admin").delete()
    User.objects.create_superuser("admin", password=PASSWORD)
    for name, role in USERS.items():
        user = User.objects.create_user(name, password=PASSWORD, is_staff=True)
        user.groups.add(Group.objects.get(name=role))
    TOTPDevice.objects.create(user=User.objects.get(username="otto"))
    paused = Subscription.objects.get(broker="banyan", event_type=EventType.ORDER_EXPIRED)
    webhooks.pause(paused.pk, by=BY, reason="receiver moves")


def main(url: str, target: str) -> int:
    _prepare()
    found = [page for page in pages.pages(preferred_rows) if page.name != "login"]
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # as in `conftest`
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    with chromium() as browser:
        faults = capture(browser, url, found, folder)
    for fault in faults:
        print_line(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
