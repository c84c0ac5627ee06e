"""Takes every page of the back office that runs at a URL: light and dark, wide and on a phone.

Run by `tests.browser.screenshots` in the environment of that exchange, whose database tells which pages there are.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import django

django.setup()

from django.contrib.auth.models import Group, User  # noqa: E402 (models can be had only now)
from django.db import connections  # noqa: E402
from django.db.models import Case, IntegerField, Model, Value, When  # noqa: E402
from playwright.sync_api import Browser, Page, ViewportSize  # noqa: E402

from bench import pages  # noqa: E402
from bench.pages import OfficePage  # noqa: E402
from config.local.supervisor import say  # noqa: E402
from tests.browser.chromium import PHONE, WIDE, chromium, sign_in  # noqa: E402
from tests.browser.palette import small  # noqa: E402
from tests.browser.watching import accessibility_faults, complaints_of  # noqa: E402

PASSWORD = "only for pictures"  # noqa: S105 (of an exchange that ends with them)
PEOPLE = {"vera": "viewer", "otto": "operator", "ada": "administrator"}
STAGES: list[tuple[Literal["light", "dark"], str, ViewportSize]] = [
    (scheme, name, size) for scheme in ("light", "dark") for name, size in [("wide", WIDE), ("phone", PHONE)]
]
HEIGHT_MAX, LIST_HEIGHT_MAX = 2_400, 1_100  # pixels: further down a list only goes on
SETTLED_MS = 300  # fonts and scripts
# The rows that there is most to see of.
BEST: dict[str, dict[str, Any]] = {
    "auth.user": {"username": "otto"},
    "exchange.apikey": {"name": "reporting"},
    "exchange.broker": {"id": "aurora"},
    "exchange.instrument": {"symbol": "AAPL"},
    "orders.order": {"status": "partially_filled"},
    "webhooks.delivery": {"status_code": None, "completed_at__isnull": False},
    "webhooks.subscription": {"broker": "delta-1"},
}


def chosen(model: type[Model]) -> Sequence[Any]:
    """The newest rows, but first those that there is most to see of."""
    is_best = When(**BEST.get(model._meta.label_lower, {"pk": None}), then=Value(0))
    ordering = Case(is_best, default=Value(1), output_field=IntegerField())
    return list(model._default_manager.order_by(ordering, "-pk")[: pages.LOOKED_AT])


def take(browser: Browser, url: str, found: Sequence[OfficePage], folder: Path) -> list[str]:
    """All pages on every stage; what is wrong with any of them."""
    studio = browser.new_page()
    faults = []
    for scheme, name, size in STAGES:
        context = browser.new_context(base_url=url, viewport=size, color_scheme=scheme, reduced_motion="reduce")
        page = context.new_page()
        on_stage = complaints_of(page)
        page.goto("/admin/login/")
        _snap(page, studio, folder / f"login-{name}-{scheme}.png")
        sign_in(page, url, "admin", PASSWORD)
        for each in found:
            answer = page.goto(each.path)
            if answer is None or not answer.ok:
                on_stage.append(f"{each.path}: {answer and answer.status}")
            _snap(page, studio, folder / f"{each.name}-{name}-{scheme}.png")
            on_stage += accessibility_faults(page)
        context.close()
        faults += [f"{name}, {scheme}: {fault}" for fault in dict.fromkeys(on_stage)]
        say(f"{len(found)} pages, {name}, {scheme}")
    return faults


def _snap(page: Page, studio: Page, path: Path) -> None:
    """The whole page, as if the window were as high as it is."""
    size = page.viewport_size
    assert size is not None
    page.wait_for_timeout(SETTLED_MS)
    highest = LIST_HEIGHT_MAX if "changelist" in path.name else HEIGHT_MAX
    height = min(int(page.evaluate("document.documentElement.scrollHeight")), highest)
    page.set_viewport_size({"width": size["width"], "height": max(height, size["height"])})
    path.write_bytes(small(page.screenshot(animations="disabled"), studio))
    page.set_viewport_size(size)


def _admit_people() -> None:
    User.objects.filter(username="admin").delete()
    User.objects.create_superuser("admin", password=PASSWORD)
    for name, role in PEOPLE.items():
        User.objects.create(username=name, is_staff=True).groups.add(Group.objects.get(name=role))


def main(url: str, target: str) -> int:
    _admit_people()
    found = [page for page in pages.pages(chosen) if page.name != "login"]
    connections.close_all()
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    with chromium() as browser:
        faults = take(browser, url, found, folder)
    for fault in faults:
        say(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
