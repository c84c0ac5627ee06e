"""What a page must not do while it is looked at, and what keeps people out who cannot see it or use no mouse."""

from collections.abc import Sequence

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Page, Request

GRAVE = ("serious", "critical")


def complaints_of(page: Page) -> list[str]:
    """What the browser finds fault with from now on: errors of scripts, what the CSP refused, what did not load."""
    found: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            found.append(f"{message.location.get('url', '')}: {message.text}")

    def on_failure(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # somebody went on to another page
            found.append(f"{request.url}: {request.failure}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: found.append(f"{page.url}: {error}"))
    page.on("requestfailed", on_failure)
    return found


def accessibility_faults(page: Page, impacts: Sequence[str] = GRAVE) -> list[str]:
    """What axe-core finds on the page as it stands: rule, what it is about, and where."""
    options = {"resultTypes": ["violations"], "selectors": False}  # which take long to write and are not shown here
    violations = Axe().run(page, options=options).response["violations"]
    return [
        f"{page.url}: {violation['id']} ({violation['impact']}): {violation['help']}: {node['html'][:200]}"
        for violation in violations
        if violation["impact"] in impacts
        for node in violation["nodes"]
    ]


def assert_accessible(page: Page) -> None:
    """No fault that axe-core calls serious or critical."""
    assert accessibility_faults(page) == []
