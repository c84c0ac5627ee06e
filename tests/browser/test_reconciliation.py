"""A reconciliation in a real browser: started by keyboard, with a result that appears automatically."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import SignIn
from tests.browser.page_checks import assert_accessible
from tests.celery_processes import Celery, start_all

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_run_is_started_by_keyboard_and_shows_its_result(signed_in: SignIn, celery: Celery) -> None:
    page = signed_in("superuser")
    page.goto("/admin/orders/reconcilerun/")
    page.get_by_role("link", name="Run reconciliation").press("Enter")
    assert_accessible(page)
    page.get_by_label("Reason").fill("end of the day")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Waiting for a worker")).to_be_visible()

    start_all(celery.worker(), celery.beat())

    expect(page.get_by_text("Everything OK")).to_be_visible()
    assert_accessible(page)
    page.get_by_role("region", name="Reconciliation").locator("tbody a").press("Enter")
    expect(page.get_by_text("no book is crossed")).to_be_visible()
    assert_accessible(page)
