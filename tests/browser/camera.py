"""Takes every page of the back office that runs at a URL: light and dark, wide and on a phone.

Run by `tests.browser.screenshots` in the environment of that exchange, whose database tells which pages there are.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import django

django.setup()

from django.contrib.auth.models import User  # noqa: E402 (models can be had only now)
from django.db import connections  # noqa: E402
from django.db.models import Case, IntegerField, Model, Value, When  # noqa: E402
from playwright.sync_api import Browser, Page, ViewportSize  # noqa: E402

from bench import pages  # noqa: E402
from bench.pages import OfficePage  # noqa: E402
from config.local.supervisor import say  # noqa: E402
from tests.browser.chromium import PHONE, WIDE, chromium, sign_in  # noqa: E402
from tests.browser.watching import accessibility_faults, complaints_of  # noqa: E402

PASSWORD = "only for pictures"  # noqa: S105 (of an exchange that ends with them)
STAGES: list[tuple[Literal["light", "dark"], str, ViewportSize]] = [
    (scheme, name, size) for scheme in ("light", "dark") for name, size in [("wide", WIDE), ("phone", PHONE)]
]
HEIGHT_MAX = 2_400  # pixels: further down a list only goes on
SETTLED_MS = 300  # fonts and scripts
# The rows that there is most to see of.
BEST: dict[str, dict[str, Any]] = {
    "orders.order": {"status": "partially_filled"},
    "exchange.broker": {"id": "aurora"},
    "exchange.instrument": {"symbol": "AAPL"},
    "webhooks.delivery": {"status_code": None, "completed_at__isnull": False},
    "webhooks.subscription": {"broker": "delta-1"},
    "exchange.apikey": {"name": "reporting"},
}


def chosen(model: type[Model]) -> Sequence[Any]:
    """The newest rows, but first those that there is most to see of."""
    is_best = When(**BEST.get(model._meta.label_lower, {"pk": None}), then=Value(0))
    ordering = Case(is_best, default=Value(1), output_field=IntegerField())
    return list(model._default_manager.order_by(ordering, "-pk")[: pages.LOOKED_AT])


def take(browser: Browser, url: str, found: Sequence[OfficePage], folder: Path) -> list[str]:
    """All pages on every stage; what is wrong with any of them."""
    faults = []
    for scheme, name, size in STAGES:
        context = browser.new_context(base_url=url, viewport=size, color_scheme=scheme, reduced_motion="reduce")
        page = context.new_page()
        faults += complaints_of(page) if scheme == "light" else []
        page.goto("/admin/login/")
        _snap(page, folder / f"login-{name}-{scheme}.png")
        sign_in(page, url, "admin", PASSWORD)
        complaints = complaints_of(page)
        for each in found:
            answer = page.goto(each.path)
            assert answer is not None
            if not answer.ok:
                faults.append(f"{each.path}: {answer.status}")
            _snap(page, folder / f"{each.name}-{name}-{scheme}.png")
            faults += accessibility_faults(page)
        faults += complaints
        context.close()
        say(f"{len(found)} pages, {name}, {scheme}")
    return faults


def _snap(page: Page, path: Path) -> None:
    page.wait_for_timeout(SETTLED_MS)
    height = min(int(page.evaluate("document.documentElement.scrollHeight")), HEIGHT_MAX)
    size = page.viewport_size
    assert size is not None
    clip: Any = {"x": 0, "y": 0, "width": size["width"], "height": max(height, size["height"])}
    page.screenshot(path=path, full_page=True, clip=clip, animations="disabled")


def main(url: str, target: str) -> int:
    User.objects.filter(username="admin").delete()
    User.objects.create_superuser("admin", password=PASSWORD)
    found = [page for page in pages.pages(chosen) if page.name != "login"]
    connections.close_all()
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    with chromium() as browser:
        faults = take(browser, url, found, folder)
    for fault in dict.fromkeys(faults):
        say(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
