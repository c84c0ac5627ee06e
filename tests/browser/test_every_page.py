"""Every page of the back office, wide and light, and on a phone in the dark: none fails, none keeps anyone out."""

from typing import Literal

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import ViewportSize

from bench import history, pages
from exchange.models import Instrument
from orders import reconcile_runs
from tests import celery_processes, trading
from tests.browser.chromium import PHONE, WIDE
from tests.browser.conftest import SignIn
from tests.browser.watching import accessibility_faults
from tests.trading import BY

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def market(transactional_db: None) -> None:
    """Something of everything that pages show."""
    history.load_history(
        celery_processes.environment()["DATABASE_URL"], orders=80, trades=60, deliveries=60, resting=32, symbols=2
    )
    User.objects.create(username="otto", is_staff=True)
    trading.broker("alice", holdings={"S1": 100})
    Instrument.objects.filter(symbol="S2").update(status="halted", halt_reason="news pending")
    reconcile_runs.run_now(by=BY)


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)])
@pytest.mark.usefixtures("market")
def test_every_page(signed_in: SignIn, scheme: Literal["light", "dark"], size: ViewportSize) -> None:
    page = signed_in("superuser")
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size(size)
    found = pages.pages()
    wrong: list[str] = []

    for each in found:
        answer = page.goto(each.path)
        wrong += [] if answer and answer.ok else [f"{each.path}: {answer and answer.status}"]
        wrong += accessibility_faults(page)

    assert wrong == []
    assert {"dashboard", "orders-order-change", "orders-order-cancel"} <= {each.name for each in found}
