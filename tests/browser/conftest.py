"""Fixtures for the back office in a real browser.

While the browser runs, Playwright runs an event loop in this thread. Django must therefore allow database access here,
and the browser ends with this package, because other tests run their own loops.
"""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.backoffice import users
from tests.browser.chromium import PROGRAM, REASON, TIMEOUT_MS, WIDE, chromium, sign_in
from tests.browser.page_checks import browser_errors
from tests.live import Server

PASSWORD = "correct horse battery staple"  # noqa: S105 (of nobody)
SignIn = Callable[[str], Page]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip(REASON)
    expect.set_options(timeout=TIMEOUT_MS)
    with pytest.MonkeyPatch.context() as patch, chromium() as running:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        yield running


@pytest.fixture
def open_page(browser: Browser, transactional_db: None, backoffice: Server) -> Iterator[Callable[[], Page]]:
    """Return a function that opens a page in a new context. The test fails if a page reported an error."""
    contexts, complaints = [], []

    def open_one() -> Page:
        context = browser.new_context(base_url=backoffice.url, viewport=WIDE, reduced_motion="reduce")
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        complaints.append(browser_errors(page))
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert [each for found in complaints for each in found] == []


@pytest.fixture
def signed_in(open_page: Callable[[], Page], backoffice: Server) -> SignIn:
    """Return a function that signs in a user with a role: a group name or `superuser`."""

    def sign_in_as(role: str) -> Page:
        user = users.user(role, f"the-{role}", password=PASSWORD)
        page = open_page()
        sign_in(page, backoffice.url, user.username, PASSWORD)
        return page

    return sign_in_as
