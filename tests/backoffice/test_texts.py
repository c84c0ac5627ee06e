"""The texts of the pages use the words of the market, and buttons name the action and its object."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from html import unescape
from typing import Any

import pytest
from django.test import Client

from backoffice.links import list_url
from exchange.database import database_now
from exchange.models import AuditEntry, Broker, Instrument
from orders.enums import Side
from orders.models import Order, ReconcileRun
from orders.reconciliation.checks import CHECKS
from tests import trading
from tests.backoffice.admin_client import action_path, listed_rows, page, perform, sign_in
from tests.trading import place
from webhooks import services as webhook_services
from webhooks.models import Delivery, Event, EventType, Subscription

pytestmark = pytest.mark.django_db(transaction=True)

NOON = datetime(2026, 2, 16, 12, tzinfo=UTC)
RULES = {"name": "", "tick_size": "0.05", "lot_size": "1", "pricing": "seller"}


@pytest.fixture(autouse=True)
def _market(transactional_db: None) -> None:
    """Open orders of alice, a trade with bob, and its delivery."""
    for name in ("alice", "bob"):
        trading.broker(name)
    webhook_services.subscribe("alice", url="https://alice.example/", events=[EventType.TRADE_EXECUTED])
    for price in ("99.84", "99.86", "99.90", "99.95", "100.00"):
        place(Side.BID, 5, price)
    place(Side.ASK, 2, "100.00", by="bob")


def text(response: Any) -> str:
    assert response.status_code == 200
    return " ".join(unescape(response.content.decode()).split())


def pages() -> Iterator[tuple[str, list[str]]]:
    """Paths, and the texts that each page must contain."""
    order, *others = Order.objects.filter(broker="alice").order_by("price")
    ids = [each.pk for each in (order, *others)]
    yield "/admin/", ["Pending deliveries", "Oldest pending", "No trades for 15 min", "Turnover"]
    yield page(Instrument.objects.get()), ["5-min VWAP", "Average order price", "Open", ">Sequence ", "Turnover today"]
    yield page(Instrument.objects.get()), ["Halt AAPL", "Edit AAPL", "Recent operator actions"]
    yield page(order), ["Queue position", "Ahead at this price", "Book sequence", ">History<", "Cancel order"]
    yield action_path(Order, "cancel", *ids), ["Cancel 5 orders", "Keep orders", "Recorded in the audit log."]
    yield (
        action_path(Order, "cancel", order.pk),
        ["Cancels the unfilled quantity and releases its reservation. Trades stand."],
    )
    yield action_path(Instrument, "halt", "AAPL"), ["Halt AAPL</button>", ">Back</a>"]
    yield action_path(Instrument, "list"), ["Leave blank to use the symbol.", "Trading starts immediately."]
    yield action_path(Broker, "issue-key", "alice"), ["Leave blank for no expiry.", "Issue key for alice"]
    yield page(Event.objects.filter(broker="alice").get()), ["Payload", "Redelivery of", "Response time"]
    yield page(Delivery.objects.get()), ["Response time", "From connecting to the end of the response"]
    yield list_url(ReconcileRun), ["Requested", "Started", ">OK<"]
    yield page(AuditEntry.objects.latest("id")), ["Actor", "Before and after"]


REPLACED = (
    "Leave it", "Nothing:", "Goes on record", "on record", "free again", "Current price", "Moving average",
    "First today", "Arrival in its book", "Place in the queue", "Its life", "Before it at its price", "What it tells",
    "Makes again", "from the dial", "Deliveries due", "Oldest due", "Quiet for", "Asked for", "Began", "agrees",
    "I have it",
)  # fmt: skip


def test_pages_use_the_texts_of_the_market(root: Client) -> None:
    findings = [{"check": check, "count": 0, "examples": [], "seconds": 0.1} for check in CHECKS]
    ReconcileRun.objects.create(
        asked_by="root", asked_at=NOON, started_at=NOON, finished_at=NOON, findings=findings, checks=len(CHECKS)
    )
    for path, texts in pages():
        content = text(root.get(path))
        assert [each for each in texts if each not in content] == [], path
        assert [each for each in REPLACED if each in content] == [], path


def test_a_secret_can_be_copied(root: Client) -> None:
    content = text(perform(root, Broker, "issue-key", "alice", scope="read"))

    assert "Done, I've copied it" in content
    assert '<button class="o-button" type="button" data-copies="secret">Copy</button>' in content
    assert 'id="secret"' in content


def test_errors_say_what_is_wrong_and_what_to_do(root: Client) -> None:
    cash, reserved = trading.balance("alice")

    transfer = perform(root, Broker, "transfer-cash", "alice", cash="-2000000", reference="wire-1")
    stop = perform(root, Broker, "stop", "alice", confirmation="bob")

    assert f"Insufficient cash: {cash - reserved:.2f} available." in text(transfer)
    assert "Does not match. Type alice exactly." in text(stop)


def test_orders_that_block_a_tick_size_are_counted_and_linked(root: Client) -> None:
    content = text(perform(root, Instrument, "edit", "AAPL", **RULES))

    url = f"{list_url(Order)}?symbol=AAPL&status=working&off_tick=0.0500"
    assert "2 open orders are off this tick (for example 99.84). Cancel them first." in content
    assert f'<a class="o-link" href="{url}">Show orders</a>' in content
    listed = listed_rows(root, Order, symbol="AAPL", status="working", off_tick="0.05")
    assert [order.price for order in listed] == [Decimal("99.86"), Decimal("99.84")]
    assert "Cancel selected orders" in text(root.get(url))


def test_orders_that_block_a_lot_size_are_counted_and_linked(root: Client) -> None:
    content = text(perform(root, Instrument, "edit", "AAPL", **RULES | {"tick_size": "0.01", "lot_size": "5"}))

    assert "1 open order is off this lot (3 remaining). Cancel it first." in content
    assert f'href="{list_url(Order)}?symbol=AAPL&status=working&off_lot=5"' in content
    assert [order.remaining_quantity for order in listed_rows(root, Order, off_lot="5", status="working")] == [3]


def test_all_failing_endpoints_are_counted(root: Client) -> None:
    now = database_now()
    for number in range(12):
        trading.broker(f"broker-{number}")
        url = f"https://broker-{number}.example/"
        webhook_services.subscribe(f"broker-{number}", url=url, events=[EventType.TRADE_EXECUTED])
    Subscription.objects.exclude(broker="alice").update(last_failure_at=now, failures_left=0)

    assert "12 webhook endpoints are failing. Latest: https://broker-" in text(root.get("/admin/"))


def test_a_missing_permission_is_stated_plainly(client: Client) -> None:
    response = sign_in(client, "vera", []).get(list_url(Order))

    assert response.status_code == 403
    assert "You don't have permission." in unescape(response.content.decode())
