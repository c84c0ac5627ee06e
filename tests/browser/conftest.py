"""The back office in a real browser: its server, Chromium, and somebody signed in.

Playwright's calls wait on an event loop that runs in this very thread, for as long as there is a browser. So Django
must be told that it may be asked from here all the same, and the browser ends with this package: elsewhere tests run
loops of their own.
"""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.backoffice import users
from tests.browser.chromium import PATIENCE_MS, PROGRAM, REASON, WIDE, chromium, sign_in
from tests.browser.page_checks import complaints_of
from tests.live import Server

PASSWORD = "correct horse battery staple"  # noqa: S105 (of nobody)
SignIn = Callable[[str], Page]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip(REASON)
    expect.set_options(timeout=PATIENCE_MS)
    with pytest.MonkeyPatch.context() as patch, chromium() as running:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        yield running


@pytest.fixture
def open_page(browser: Browser, transactional_db: None, backoffice: Server) -> Iterator[Callable[[], Page]]:
    """Opens a window of a browser that nobody has used; at the end of the test no window may have complained."""
    contexts, complaints = [], []

    def open_one() -> Page:
        context = browser.new_context(base_url=backoffice.url, viewport=WIDE, reduced_motion="reduce")
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        complaints.append(complaints_of(page))
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert [each for found in complaints for each in found] == []


@pytest.fixture
def signed_in(open_page: Callable[[], Page], backoffice: Server) -> SignIn:
    """Signs somebody in who has a role, that of the group of this name, and may do everything as `superuser`."""

    def sign_in_as(role: str) -> Page:
        user = users.user(role, f"the-{role}", password=PASSWORD)
        page = open_page()
        sign_in(page, backoffice.url, user.username, PASSWORD)
        return page

    return sign_in_as
