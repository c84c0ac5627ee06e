"""User administration, enrolment and login with a code in a real browser."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.backoffice import users
from tests.browser.chromium import code, sign_in
from tests.browser.conftest import PASSWORD, SignIn
from tests.browser.page_checks import assert_accessible
from tests.live import Server

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_new_user_enrols_and_logs_in_with_a_code(
    signed_in: SignIn, open_page: Callable[[], Page], backoffice: Server
) -> None:
    administrator = signed_in("administrator")
    _admit(administrator, "vera")

    hers = open_page()
    sign_in(hers, backoffice.url, "vera", PASSWORD)
    hers.get_by_text("vera", exact=True).click()
    hers.get_by_role("link", name="Two-factor login").click()
    assert_accessible(hers)
    hers.get_by_role("textbox", name="Code").fill(code(hers.locator("#secret").inner_text()))
    hers.get_by_role("button", name="Turn on two-factor login").click()
    expect(hers.get_by_text("Two-factor login is on.")).to_be_visible()
    assert_accessible(hers)
    recovery = hers.locator("#codes code").first.inner_text()

    elsewhere = open_page()
    elsewhere.goto("/admin/orders/order/")
    elsewhere.get_by_label("Username").fill("vera")
    elsewhere.get_by_label("Password").fill(PASSWORD)
    elsewhere.keyboard.press("Enter")
    field = elsewhere.get_by_role("textbox", name="Code")
    expect(field).to_have_attribute("autofocus", "")  # a busy browser may not set the focus
    assert_accessible(elsewhere)
    field.press_sequentially(recovery)
    field.press("Enter")
    expect(elsewhere.get_by_role("heading", name="Orders", level=1)).to_be_visible()
    expect(elsewhere.get_by_role("link", name="Users")).to_have_count(0)


def _admit(page: Page, name: str) -> None:
    page.get_by_role("link", name="Users").first.click()
    expect(page.get_by_role("link", name="the-administrator")).to_be_visible()
    assert_accessible(page)
    page.goto("/admin/auth/user/add/")
    assert_accessible(page)
    page.get_by_label("Username").fill(name)
    page.locator("[name=password1]").fill(PASSWORD)
    page.locator("[name=password2]").fill(PASSWORD)
    page.get_by_label(users.VIEWER).check()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("was added successfully")).to_be_visible()
    assert_accessible(page)
    page.get_by_role("link", name="Change password").first.click()
    assert_accessible(page)
    page.go_back()
    page.get_by_role("link", name=f"Remove {name}", exact=True).click()
    assert_accessible(page)


def test_a_user_changes_the_own_password(signed_in: SignIn) -> None:
    page = signed_in("viewer")
    page.goto("/admin/password_change/")
    assert_accessible(page)
    page.locator("[name=old_password]").fill(PASSWORD)
    for name in ("new_password1", "new_password2"):
        page.locator(f"[name={name}]").fill("another battery staple")
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_text("Your password was changed")).to_be_visible()
    assert_accessible(page)
