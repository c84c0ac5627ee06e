"""Workflows of operators in a real browser, and their effects on the API."""

import json
import re
from http.client import HTTPConnection
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from backoffice.operator_actions import action_url
from exchange.audit import Action
from exchange.models import AuditEntry, Broker, Instrument
from exchange.rules import BrokerStatus, InstrumentStatus
from orders.enums import OrderStatus
from orders.models import Order
from tests import trading
from tests.backoffice import users
from tests.backoffice.test_roles import operator_actions, stored_state
from tests.backoffice.users import VIEWER
from tests.browser.conftest import SignIn
from tests.browser.page_checks import assert_accessible
from tests.celery_processes import Celery, start_all
from tests.live import Server
from tests.receiver import Receiver, respond
from webhooks import services as webhooks
from webhooks.models import Delivery, EventType

pytestmark = pytest.mark.django_db(transaction=True)


def place_order(
    server: Server, key: str, quantity: int = 5, price: str = "10.00", side: str = "ask"
) -> tuple[int, Any]:
    """Place an order over REST as alice. Return the status and the body."""
    body = {
        "broker_id": "alice",
        "document_number": "12345678900",
        "side": side,
        "symbol": "AAPL",
        "price": price,
        "quantity": quantity,
        "time_in_force": "gtc",
    }
    return call(server, key, "POST", "/orders", body)


def call(server: Server, key: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    client = HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    client.request(method, path, body=json.dumps(body) if body else None, headers=headers)
    response = client.getresponse()
    content = response.read()
    client.close()
    return response.status, json.loads(content) if content else None


def perform(page: Page, action: str, *, reason: str = "", **fields: str) -> None:
    """Open an action by its button, fill in the form and submit it."""
    page.get_by_role("link", name=action, exact=True).click()
    for label, value in fields.items():
        page.locator(f"[name={label}]").fill(value)
    if reason:
        page.get_by_label("Reason").fill(reason)
    page.get_by_role("button", name=action, exact=True).click()


def audit_entries(action: Action) -> list[tuple[str, str, str]]:
    """Return actor, subject and reason of each entry for an action."""
    entries = AuditEntry.objects.filter(action=action).order_by("id")
    return list(entries.values_list("actor", "subject", "reason"))


def test_an_order_placed_over_rest_appears_automatically_and_is_cancelled_with_a_reason(
    signed_in: SignIn, server: Server
) -> None:
    key = trading.broker("alice")
    page = signed_in("operator")
    page.goto("/admin/orders/order/")
    expect(page.get_by_text("No entries yet.")).to_be_visible()

    _, placed = place_order(server, key)

    expect(page.locator("#rows")).to_contain_text("alice")  # without a reload
    page.goto(f"/admin/orders/order/{placed['order_id']}/change/")
    perform(page, "Cancel order", reason="typed by mistake")
    expect(page.get_by_text("cancelled", exact=True).first).to_be_visible()
    assert call(server, key, "GET", f"/orders/{placed['order_id']}")[1]["cancel_reason"] == "by_operator"
    assert audit_entries(Action.ORDER_CANCEL) == [("the-operator", placed["order_id"], "typed by mistake")]


def test_an_instrument_is_halted_and_resumed(signed_in: SignIn, server: Server) -> None:
    key = trading.broker("alice")
    page = signed_in("operator")
    page.goto("/admin/exchange/instrument/AAPL/change/")
    page.get_by_role("link", name="Halt AAPL", exact=True).click()
    page.get_by_role("button", name="Halt AAPL", exact=True).click()  # the browser requires a reason
    assert Instrument.objects.get().status == InstrumentStatus.TRADING

    page.get_by_label("Reason").fill("news pending")
    page.get_by_role("button", name="Halt AAPL", exact=True).click()
    expect(page.get_by_text("news pending").first).to_be_visible()
    assert place_order(server, key)[1]["code"] == "instrument_halted"

    perform(page, "Resume AAPL", reason="news out")
    expect(page.get_by_role("link", name="Halt AAPL", exact=True)).to_be_visible()
    assert place_order(server, key)[0] == 201
    assert audit_entries(Action.INSTRUMENT_HALT) == [("the-operator", "AAPL", "news pending")]


def test_the_kill_switch_leaves_no_open_orders(signed_in: SignIn, server: Server) -> None:
    key = trading.broker("alice")
    for _ in range(3):
        place_order(server, key)
    page = signed_in("operator")
    page.goto("/admin/exchange/broker/alice/change/")
    page.get_by_role("link", name="Suspend alice and cancel all orders").click()
    page.get_by_label("Reason").fill("key in wrong hands")
    confirmation = page.locator("input[type=text]:not([name=reason])")
    confirmation.fill("bob")
    page.get_by_role("button", name="Suspend alice and cancel all orders").click()
    assert Broker.objects.get().status == BrokerStatus.ACTIVE  # the confirmation does not match

    confirmation.fill("alice")
    page.get_by_role("button", name="Suspend alice and cancel all orders").click()

    expect(page.get_by_text(re.compile("3 .*cancelled|cancelled .*3")).first).to_be_visible()
    assert set(Order.objects.values_list("status", flat=True)) == {OrderStatus.CANCELLED}
    assert place_order(server, key)[1]["code"] == "broker_suspended"
    assert audit_entries(Action.BROKER_SUSPEND) == [("the-operator", "alice", "key in wrong hands")]


def test_a_key_is_issued_shown_once_and_trades_until_it_is_revoked(signed_in: SignIn, server: Server) -> None:
    trading.broker("alice")
    page = signed_in("operator")
    page.goto("/admin/exchange/broker/alice/change/")
    page.get_by_role("link", name="Issue key for alice").click()
    page.get_by_label("Name").fill("new desk")
    page.get_by_label("Reason").fill("asked for by mail")
    page.get_by_role("button", name="Issue key for alice").click()
    key = page.locator("#secret").inner_text()
    assert place_order(server, key)[0] == 201

    page.get_by_role("link", name="Done, I've copied it").click()
    expect(page.get_by_text("new desk")).to_be_visible()
    assert key not in page.content()
    page.goto(f"/admin/exchange/apikey/{key.split('_')[1]}/change/")
    perform(page, f"Revoke key {key.split('_')[1]}", reason="desk closed")
    expect(page.get_by_text("revoked").first).to_be_visible()
    page.wait_for_timeout(5_000)  # the contract's limit, also for cached keys
    assert place_order(server, key)[0] == 401


def test_a_failed_delivery_is_shown_on_the_dashboard_and_redelivered(
    signed_in: SignIn, server: Server, celery: Celery, receiver: Receiver
) -> None:
    key = trading.broker("alice")
    hook = {"broker_id": "alice", "url": receiver.on("/hook", respond(500)), "events": ["order.cancelled"]}
    call(server, key, "POST", "/webhooks", hook)
    start_all(celery.worker(), celery.webhook_worker(), celery.beat())
    _, placed = place_order(server, key)
    call(server, key, "DELETE", f"/orders/{placed['order_id']}")
    page = signed_in("operator")

    expect(page.get_by_text(re.compile("endpoint is failing"))).to_be_visible()
    page.goto("/admin/webhooks/delivery/?state=failed")
    page.locator("#rows tbody a").first.click()
    receiver.on("/hook", respond(200, body=b"mended"))
    perform(page, "Redeliver event", reason="receiver mended")

    expect(page.get_by_text("delivered").first).to_be_visible()
    first, second = Delivery.objects.order_by("id")
    assert second.redelivery_of_id == first.pk
    assert second.event_id == first.event_id


def test_a_viewer_is_refused_every_action_at_its_own_url(signed_in: SignIn, server: Server) -> None:
    """With a valid CSRF token. The other roles are tested in `tests/backoffice/test_roles.py`."""
    key = trading.broker("alice")
    webhooks.subscribe("alice", url="http://127.0.0.1:9/", events=[EventType.ORDER_CANCELLED])
    call(server, key, "DELETE", f"/orders/{place_order(server, key)[1]['order_id']}")  # creates a delivery
    users.user(VIEWER, "otto")  # a user to act on
    page = signed_in(VIEWER)
    token = page.locator("[name=csrfmiddlewaretoken]").first.input_value()
    before = stored_state()
    for model, action in operator_actions():
        address = action_url(model, action, *model._default_manager.all()[: min(action.max_subjects, 1)])
        opened = page.request.get(address)
        sent = page.request.post(address, form={"csrfmiddlewaretoken": token, "reason": "because I can"})
        assert [opened.status, sent.status] == [403, 403], address
        assert "You don&#x27;t have permission." in opened.text(), address
        assert "You don&#x27;t have permission." in sent.text(), address  # not a CSRF error

    assert stored_state() == before


def test_a_viewer_sees_pages_without_actions(signed_in: SignIn, server: Server) -> None:
    _, placed = place_order(server, trading.broker("alice"))
    page = signed_in(VIEWER)
    for path in (
        f"/admin/orders/order/{placed['order_id']}/change/",
        "/admin/exchange/instrument/AAPL/change/",
        "/admin/exchange/broker/alice/change/",
    ):
        page.goto(path)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert page.get_by_role("group", name="Actions").count() == 0

    page = page.context.new_page()  # its console may report the 403
    page.goto(f"/admin/orders/order/cancel/?id={placed['order_id']}")
    expect(page.get_by_role("heading", name="Permission denied", level=1)).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("You don't have permission.")
    assert_accessible(page)
    page.get_by_role("link", name="Go to dashboard").click()
    expect(page.get_by_role("heading", name="Dashboard", level=1)).to_be_visible()
