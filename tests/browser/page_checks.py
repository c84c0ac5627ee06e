"""Checks of pages: browser errors and accessibility."""

from collections.abc import Sequence

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Page, Request

SERIOUS = ("serious", "critical")


def browser_errors(page: Page) -> list[str]:
    """Collect script errors, CSP violations and failed requests from now on."""
    found: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            found.append(f"{message.location.get('url', '')}: {message.text}")

    def on_failure(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # navigation to another page
            found.append(f"{request.url}: {request.failure}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: found.append(f"{page.url}: {error}"))
    page.on("requestfailed", on_failure)
    return found


def accessibility_faults(page: Page, impacts: Sequence[str] = SERIOUS) -> list[str]:
    """Return the axe-core violations on the page."""
    options = {"resultTypes": ["violations"], "selectors": False}  # passes and selectors are slow to compute and unused
    violations = Axe().run(page, options=options).response["violations"]
    return [
        f"{page.url}: {violation['id']} ({violation['impact']}): {violation['help']}: {node['html'][:200]}"
        for violation in violations
        if violation["impact"] in impacts
        for node in violation["nodes"]
    ]


def assert_accessible(page: Page) -> None:
    """Assert that axe-core reports no serious or critical violation."""
    assert accessibility_faults(page) == []
