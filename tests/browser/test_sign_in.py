"""Login and dashboard in a real browser."""

from collections.abc import Callable
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import SignIn
from tests.browser.page_checks import assert_accessible

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_user_signs_in_and_sees_the_dashboard(signed_in: SignIn) -> None:
    page = signed_in("superuser")

    expect(page.get_by_role("heading", name="Dashboard", level=1)).to_be_visible()
    expect(page.get_by_role("link", name="Reconciliation").first).to_have_attribute(
        "href", "/admin/orders/reconcilerun/"
    )
    assert_accessible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_wrong_password_is_rejected(open_page: Callable[[], Page], scheme: Literal["light", "dark"]) -> None:
    page = open_page()
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto("/admin/")
    assert_accessible(page)
    page.fill("[name=username]", "nobody")
    page.fill("[name=password]", "wrong")
    page.keyboard.press("Enter")

    expect(page.get_by_text("Please enter the correct username and password")).to_be_visible()
    assert "/admin/login/" in page.url
    assert_accessible(page)
