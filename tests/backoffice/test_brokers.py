"""Brokers, transfers and keys in the back office: lists, pages and actions."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from html import escape, unescape
from itertools import count
from threading import Event
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from backoffice import brokers
from backoffice.links import list_url, page_url
from exchange import services as exchange_services
from exchange.errors import BrokerSuspended
from exchange.models import ApiKey, AuditEntry, Broker, Instrument, Transfer
from exchange.rules import BrokerStatus, Scope
from orders import services
from orders.enums import CancelReason, OrderStatus, Side
from orders.matching.commands import Accepted
from orders.models import Order, Trade
from tests import api, trading
from tests.backoffice.admin_client import (
    ADDRESS,
    REASON,
    action_path,
    cells,
    form_errors,
    has_button,
    impact,
    listed_rows,
    live_parts,
    page,
    perform,
    result_messages,
    rows,
    sign_in,
)
from tests.exchange.client import Client as ApiClient
from tests.trading import BY, execute_one, order, place, run_concurrently, start_thread
from webhooks.models import Subscription

pytestmark = pytest.mark.django_db(transaction=True)

MAX_QUERIES = 20


@pytest.fixture
def alice(db: None) -> Broker:
    """A broker with 1,000,000 in cash and 10,000 shares of AAPL."""
    trading.broker("alice")
    return Broker.objects.get(pk="alice")


def audit_entries() -> list[tuple[Any, ...]]:
    """Return the audit entries of the user `root`."""
    entries = AuditEntry.objects.filter(actor="root").order_by("id")
    assert {(entry.actor_kind, entry.address) for entry in entries} <= {("user", ADDRESS)}
    return list(entries.values_list("action", "subject", "reason", "before", "after"))


def journal(broker_id: str) -> list[tuple[Any, ...]]:
    rows = Transfer.objects.filter(broker=broker_id).order_by("created_at", "id")
    return list(rows.values_list("reference", "cash", "instrument", "quantity", "reason"))


def assert_rejected(response: Any, before: Any, **errors: list[str]) -> None:
    """Assert that the form shows exactly these errors and nothing was written."""
    assert form_errors(response) == errors
    assert (trading.snapshot(), AuditEntry.objects.count(), Transfer.objects.count()) == before


def stored_state() -> Any:
    return trading.snapshot(), AuditEntry.objects.count(), Transfer.objects.count()


# --- The list -------------------------------------------------------------------------------------------------------


def test_the_list_shows_balances_and_activity_of_each_broker(root: Client, alice: Broker) -> None:
    trading.broker("bob", cash=5, holdings={})
    place(Side.ASK, 5, "10", by="alice")
    place(Side.BID, 3, "11", by="alice")  # trades with itself: counts on both sides
    place(Side.ASK, 7, "12.5", by="alice")
    place(Side.BID, 2, "9", by="alice")

    response = root.get(list_url(Broker))

    alices, bobs = cells(response)
    assert alices[0] == "alice"
    assert "active" in alices[1]
    assert alices[2:5] == ["1,000,000.00", "18.00", "999,982.00"]
    assert alices[5:7] == ["3", "2"]
    assert bobs[5:7] == ["0", "0"]
    assert page(alice) in response.content.decode()


def test_trades_are_counted_up_to_a_limit(root: Client, alice: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "TRADE_COUNT_LIMIT", 2)
    monkeypatch.setattr(brokers, "TRADE_SUM_LIMIT", 2)
    trading.broker("bob")

    def counted() -> list[str]:
        return [row[6] for row in cells(root.get(list_url(Broker)))]

    def summed() -> list[tuple[Any, ...]]:
        sides = root.get(page(alice)).context["sides"]
        return [(each["side"], each["count"], each["value"], each["is_more"]) for each in sides]

    for quantity in (1, 2):
        place(Side.ASK, quantity, "10", by="alice")
        place(Side.BID, quantity, "10", by="bob")
    assert counted() == ["2", "2"]
    assert summed() == [("bid", 0, 0, False), ("ask", 2, Decimal(30), False)]
    Trade.objects.update(executed_at=brokers.today() - timedelta(seconds=1))
    assert counted() == ["0", "0"]
    for quantity in (4, 8, 16):
        place(Side.ASK, quantity, "10", by="alice")
        place(Side.BID, quantity, "10", by="bob")
    assert counted() == ["2+", "2+"]
    assert [each[3] for each in summed()] == [False, True]
    assert "Latest 2 <a" in root.get(page(alice)).content.decode()


def test_brokers_are_found_by_status_and_id(root: Client, alice: Broker) -> None:
    for broker_id in ("bob", "bobby"):
        trading.broker(broker_id)
    services.suspend("bobby", cancel_orders=False, by=BY)

    assert [row.pk for row in listed_rows(root, Broker)] == ["alice", "bob", "bobby"]
    assert [row.pk for row in listed_rows(root, Broker, q="bob")] == ["bob", "bobby"]
    assert [row.pk for row in listed_rows(root, Broker, q="BOB", status__exact="active")] == ["bob"]
    assert [row.pk for row in listed_rows(root, Broker, status__exact="suspended")] == ["bobby"]
    assert listed_rows(root, Broker, status__exact="dead") == []


# --- The page -------------------------------------------------------------------------------------------------------


def test_the_page_of_a_broker_shows_all_sections(root: Client, alice: Broker) -> None:
    trading.broker("bob")
    resting = place(Side.ASK, 5, "10.5", by="alice")
    place(Side.BID, 2, "10.5", by="bob")
    bid = place(Side.BID, 4, "10", by="alice")
    subscription = Subscription.objects.create(
        broker=alice, event_type="trade.executed", url="https://a.example/hook", created_at=timezone.now()
    )

    response = root.get(page(alice))

    context = response.context
    assert (context["available"], context["open_orders"]) == (Decimal(1_000_000) + 21 - 40, 2)
    assert context["holdings"] == [
        {
            "symbol": "AAPL",
            "url": page_url(Instrument, "AAPL"),
            "quantity": 9_998,
            "reserved": 3,
            "available": 9_995,
            "open_orders": 2,
        }
    ]
    assert context["orders"] == [bid, resting]
    assert [(each["side"], each["count"], each["value"]) for each in context["sides"]] == [
        (Side.BID, 0, Decimal(0)),
        (Side.ASK, 1, Decimal(21)),
    ]
    assert [each.reference for each in context["transfers"]] == ["initial/alice/AAPL", "initial/alice/cash"]
    assert [key.broker_id for key, *_ in context["keys"]] == ["alice"]
    assert list(context["subscriptions"]) == [subscription]
    assert [(entry.action, entry.subject) for entry in context["audit"]] == [("broker.admit", "alice")]
    text = response.content.decode()
    links = [
        "/admin/orders/order/?broker=alice",
        "/admin/orders/order/?broker=alice&status=working",
        "/admin/orders/trade/?broker=alice",
        *(each["url"] for each in context["sides"]),
    ]
    assert [len(rows(root.get(url))) for url in links] == [2, 2, 1, 0, 1]
    assert all(escape(url) in text for url in links)
    for row in (bid, resting, subscription, *context["transfers"], context["keys"][0][0], *context["audit"]):
        assert page(row) in text


def test_the_latest_open_orders_come_from_all_books(root: Client, alice: Broker) -> None:
    trading.instrument("GOOG")
    placed = [place(Side.BID, 1, "10", symbol=symbol, by="alice") for _ in range(7) for symbol in ("AAPL", "GOOG")]
    trading.cancel(placed[-1])

    assert root.get(page(alice)).context["orders"] == placed[-2:-12:-1]


@pytest.mark.parametrize("model", [Broker, Transfer, ApiKey], ids=lambda model: model.__name__)
def test_pages_take_few_queries_however_many_rows_there_are(root: Client, model: Any) -> None:
    for number in range(60):
        trading.broker(f"broker-{number}")
    for symbol in range(30):
        trading.instrument(f"S{symbol}")
        place(Side.BID, 1, "10", symbol=f"S{symbol}", by="broker-0")
    for path in (list_url(model), page(model.objects.order_by("pk")[0]), page_url(Broker, "broker-0")):
        with CaptureQueriesContext(connection) as queries:
            assert root.get(path).status_code == 200
        assert len(queries) < MAX_QUERIES
        has_counted = any("count(*)" in query["sql"].lower().split(" from ")[0] for query in queries)
        assert has_counted == (path == list_url(model) and model is not Transfer)  # Django's changelist counts rows


@pytest.mark.parametrize("broker_id", ["a_5Fb", "a-b_c", "_", "-"])
def test_broker_ids_with_underscores_and_hyphens_have_pages(root: Client, broker_id: str) -> None:
    trading.broker(broker_id)
    trading.broker("a_b")

    assert root.get(page_url(Broker, broker_id)).context["row"].pk == broker_id
    response = perform(root, Broker, "suspend", broker_id)
    assert (response.context["row"].pk, response.context["row"].status) == (broker_id, BrokerStatus.SUSPENDED)
    assert root.get(page_url(Broker, "nobody")).status_code == 404


# --- Admission ------------------------------------------------------------------------------------------------------

ADMIT = {"broker_id": "carol", "initial_cash": "1000.5", "initial_holdings": "AAPL 100\r\n\r\n  NEW.1   7  \r\n"}


def secret_of(response: Any) -> str:
    """Return the key that a page shows. The page must not be cached."""
    assert response.status_code == 200
    assert "no-store" in response["Cache-Control"]
    (secret,) = re.findall(r"brs_[0-9a-f]{12}_[0-9a-f]{64}", response.content.decode())
    return str(secret)


def test_a_broker_is_admitted_with_cash_shares_and_a_key(root: Client) -> None:
    trading.instrument("AAPL")

    response = perform(root, Broker, "admit", **ADMIT)

    key = secret_of(response)
    assert trading.balance("carol") == (Decimal("1000.5"), 0)
    assert [trading.shares("carol", symbol) for symbol in ("AAPL", "NEW.1")] == [(100, 0), (7, 0)]
    assert [row[:4] for row in journal("carol")] == [
        ("initial/carol/cash", Decimal("1000.5"), None, None),
        ("initial/carol/AAPL", None, "AAPL", 100),
        ("initial/carol/NEW.1", None, "NEW.1", 7),
    ]
    assert api.place_order(ApiClient(key), api.limit("bid", 1, "10") | {"broker_id": "carol"})["status"] == "pending"
    assert page_url(Broker, "carol") in response.content.decode()
    ((action, subject, reason, before, after),) = audit_entries()
    assert (action, subject, reason, before) == ("broker.admit", "carol", REASON, None)
    assert (after["cash"], after["holdings"]) == ("1000.50", {"AAPL": 100, "NEW.1": 7})
    assert key not in str(AuditEntry.objects.values_list())


def test_new_instruments_of_a_broker_are_confirmed(root: Client) -> None:
    trading.instrument("AAPL")
    path, before = action_path(Broker, "admit"), stored_state()

    response = root.post(path, ADMIT | {"reason": REASON})

    assert impact(response, "changes") == [["NEW.1", "7"]]
    assert "New instruments, not listed yet" in response.content.decode()
    assert stored_state() == before
    other = ADMIT | {"reason": REASON, "initial_holdings": "NEW.2 7", "confirmed": response.context["digest"]}
    assert impact(root.post(path, other), "changes") == [["NEW.2", "7"]]
    assert stored_state() == before
    listed = ADMIT | {"reason": REASON, "initial_holdings": "AAPL 7"}  # nothing to confirm
    secret_of(root.post(path, listed, follow=True))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("broker_id", "", "This field is required."),
        ("broker_id", "a b", "Use letters, digits, hyphens and underscores, at most 64."),
        ("broker_id", "é", "Use letters, digits, hyphens and underscores, at most 64."),
        ("broker_id", "a" * 65, "Use letters, digits, hyphens and underscores, at most 64."),
        ("broker_id", "a\0", "Null characters are not allowed."),
        ("initial_cash", "", "This field is required."),
        ("initial_cash", "-1", "Enter a number below 10^16 with at most 4 decimals, such as 1000.50."),
        ("initial_cash", "1,000", "Enter a number below 10^16 with at most 4 decimals, such as 1000.50."),
        ("initial_cash", "1.00001", "Enter a number below 10^16 with at most 4 decimals, such as 1000.50."),
        ("initial_cash", "NaN", "Enter a number below 10^16 with at most 4 decimals, such as 1000.50."),
        ("initial_cash", "1e3", "Enter a number below 10^16 with at most 4 decimals, such as 1000.50."),
        ("initial_cash", "1000000000000001", "May be at most 1000000000000000."),
        (
            "initial_holdings",
            "AAPL 1\naapl 1",
            "Line 2: Use capital letters, digits and dots, at most 12, not starting with a dot.",
        ),
        ("initial_holdings", "AAPL", "Line 1: This field is required."),
        ("initial_holdings", "AAPL 1.5", "Line 1: Enter a whole number."),
        ("initial_holdings", "AAPL 1 2", "Line 1: Enter a whole number."),
        ("initial_holdings", "AAPL 0", "Line 1: Must be 1 to 1000000000000."),
        ("initial_holdings", "AAPL -5", "Line 1: Must be 1 to 1000000000000."),
        ("initial_holdings", "AAPL 1\n\nAAPL 1", "Line 3: Enter AAPL only once."),
        ("reason", "", "This field is required."),
        ("reason", "x" * 201, "Ensure this value has at most 200 characters (it has 201)."),
    ],
)
def test_errors_of_a_new_broker_are_shown_per_field(root: Client, field: str, value: str, sentence: str) -> None:
    before = stored_state()
    assert_rejected(perform(root, Broker, "admit", **ADMIT | {field: value}), before, **{field: [sentence]})


def test_all_errors_are_shown_at_once(root: Client) -> None:
    fields = {"broker_id": "?", "initial_cash": "x", "initial_holdings": "a 1\nB x", "reason": " "}

    assert {name: len(each) for name, each in form_errors(perform(root, Broker, "admit", **fields)).items()} == {
        "broker_id": 1,
        "initial_cash": 1,
        "initial_holdings": 2,
        "reason": 1,
    }


def test_a_broker_is_not_admitted_twice(root: Client, alice: Broker) -> None:
    before = stored_state()
    response = perform(root, Broker, "admit", **ADMIT | {"broker_id": "alice"})

    assert_rejected(response, before, __all__=["Broker alice already exists."])


# --- Transfers ------------------------------------------------------------------------------------------------------


def cash(root: Client, amount: str, reference: str = "wire-1", **more: str) -> Any:
    return perform(root, Broker, "transfer-cash", "alice", cash=amount, reference=reference, **more)


def shares(root: Client, quantity: str, symbol: str = "AAPL", reference: str = "move-1", **more: str) -> Any:
    return perform(
        root, Broker, "transfer-shares", "alice", quantity=quantity, symbol=symbol, reference=reference, **more
    )


def test_cash_is_booked_to_the_last_digit(root: Client, alice: Broker) -> None:
    assert result_messages(cash(root, "250.2501", "in")) == [("success", "in booked: +250.2501 cash.")]
    assert trading.balance("alice") == (Decimal("1000250.2501"), 0)
    assert result_messages(cash(root, "-1000250.2501", "out")) == [("success", "out booked: -1,000,250.2501 cash.")]
    assert trading.balance("alice") == (0, 0)
    assert journal("alice")[2:] == [
        ("in", Decimal("250.2501"), None, None, REASON),
        ("out", Decimal("-1000250.2501"), None, None, REASON),
    ]
    assert [(action, subject, reason) for action, subject, reason, *_ in audit_entries()] == [
        ("broker.transfer", "alice", REASON)
    ] * 2
    assert [(before["cash"], after["cash"]) for *_, before, after in audit_entries()] == [
        ("1000000.00", "1000250.2501"),
        ("1000250.2501", "0.00"),
    ]


def test_a_transfer_is_confirmed_with_the_balance_before_and_after(root: Client, alice: Broker) -> None:
    place(Side.BID, 5, "10", by="alice")
    place(Side.ASK, 300, "20", by="alice")
    cash_path, shares_path = (action_path(Broker, f"transfer-{kind}", "alice") for kind in ("cash", "shares"))
    assert impact(root.get(cash_path)) == [["alice", "1,000,000.00", "50.00", "999,950.00"]]
    assert impact(root.get(shares_path)) == [["AAPL", "10,000", "300", "9,700"]]
    before = stored_state()

    of_cash = root.post(cash_path, {"reason": REASON, "cash": "-0.5", "reference": "c"})
    of_shares = root.post(shares_path, {"reason": REASON, "symbol": "AAPL", "quantity": "100", "reference": "s"})

    assert impact(of_cash, "changes") == [
        ["Total", "1,000,000.00", "999,999.50"],
        ["Reserved", "50.00", "50.00"],
        ["Available", "999,950.00", "999,949.50"],
    ]
    assert impact(of_shares, "changes") == [
        ["Total", "10,000", "10,100"],
        ["Reserved", "300", "300"],
        ["Available", "9,700", "9,800"],
    ]
    assert stored_state() == before


def test_the_first_shares_of_an_instrument_start_at_zero(root: Client, alice: Broker) -> None:
    trading.instrument("GOOG")
    path = action_path(Broker, "transfer-shares", "alice")

    response = root.post(path, {"reason": REASON, "symbol": "GOOG", "quantity": "100", "reference": "s"})

    assert impact(response, "changes")[0] == ["Total", "0", "100"]


def test_shares_are_deposited_and_withdrawn(root: Client, alice: Broker) -> None:
    trading.instrument("GOOG")

    assert result_messages(shares(root, "1000000000000", "GOOG", "in")) == [
        ("success", "in booked: +1,000,000,000,000 shares of GOOG.")
    ]
    assert result_messages(shares(root, "-10000", "AAPL", "out")) == [
        ("success", "out booked: -10,000 shares of AAPL.")
    ]
    assert (trading.shares("alice", "GOOG"), trading.shares("alice")) == ((10**12, 0), (0, 0))
    assert len(audit_entries()) == 2


def test_a_repeated_transfer_is_reported_and_not_booked(root: Client, alice: Broker) -> None:
    cash(root, "5")
    booked, before = Transfer.objects.get(reference="wire-1"), stored_state()

    ((level, sentence),) = result_messages(cash(root, "5.00"))

    at = booked.created_at.isoformat(" ", "milliseconds").removesuffix("+00:00")
    assert (level, sentence) == ("warning", f"wire-1 was already booked at {at} UTC. Nothing was changed.")
    assert stored_state() == before


def test_a_reused_reference_is_rejected_with_the_differing_fields(root: Client, alice: Broker) -> None:
    trading.broker("bob")
    cash(root, "5")
    before = stored_state()

    differs = "Differs from the booked transfer."
    assert_rejected(cash(root, "6", reason="other"), before, cash=[differs], reason=[differs])
    other_kind = {"symbol": [differs], "quantity": [differs], "__all__": [f"cash: {differs}"]}
    assert_rejected(shares(root, "1", reference="wire-1"), before, **other_kind)
    of_bob = perform(root, Broker, "transfer-cash", "bob", cash="5", reference="wire-1")
    assert_rejected(of_bob, before, __all__=[f"broker_id: {differs}"])


def test_reserved_cash_and_shares_cannot_be_withdrawn(root: Client, alice: Broker) -> None:
    place(Side.BID, 10, "99.99", by="alice")
    place(Side.ASK, 9_000, "500", by="alice")
    before = stored_state()

    assert_rejected(cash(root, "-999000.11"), before, __all__=["Insufficient cash: 999000.10 available."])
    assert_rejected(shares(root, "-1001"), before, __all__=["Insufficient shares: 1000 AAPL available."])
    assert_rejected(shares(root, "1", "NONE"), before, __all__=["No instrument NONE is listed."])
    assert result_messages(cash(root, "-999000.10"))[0][0] == "success"
    assert result_messages(shares(root, "-1000"))[0][0] == "success"
    assert trading.balance("alice") == (Decimal("999.9"), Decimal("999.9"))


@pytest.mark.parametrize(
    ("action", "field", "value", "sentence"),
    [
        ("cash", "cash", "0", "Must be other than 0."),
        ("cash", "cash", "--1", "Enter a number below 10^16 with at most 4 decimals, such as 1000.50."),
        ("cash", "cash", "1" * 17, "Enter a number below 10^16 with at most 4 decimals, such as 1000.50."),
        ("cash", "reference", "a/b", "Use letters, digits, dots, colons, hyphens and underscores, at most 64."),
        ("cash", "reference", "", "This field is required."),
        ("cash", "reason", "", "This field is required."),
        ("shares", "quantity", "1.0", "Enter a whole number."),
        ("shares", "quantity", "true", "Enter a whole number."),
        ("shares", "quantity", "0", "Must be not 0, and from -1000000000000 to 1000000000000."),
        ("shares", "quantity", "-1000000000001", "Must be not 0, and from -1000000000000 to 1000000000000."),
        ("shares", "symbol", "aapl", "Use capital letters, digits and dots, at most 12, not starting with a dot."),
    ],
)
def test_errors_of_a_transfer_are_shown_per_field(
    root: Client, alice: Broker, action: str, field: str, value: str, sentence: str
) -> None:
    before = stored_state()
    book: Any = partial(cash, amount="1") if action == "cash" else partial(shares, quantity="1")
    fields = {"cash": "amount"} if action == "cash" else {}
    assert_rejected(book(root, **{fields.get(field, field): value}), before, **{field: [sentence]})


def test_a_locked_broker_is_reported_as_busy(root: Client, alice: Broker) -> None:
    held, done = Event(), Event()

    def hold() -> None:
        with transaction.atomic():
            Broker.objects.select_for_update().get(pk="alice")
            held.set()
            done.wait(trading.TIMEOUT_SECONDS)

    holding = start_thread(hold)
    held.wait(trading.TIMEOUT_SECONDS)
    before = stored_state()
    try:
        response = cash(root, "1")
    finally:
        done.set()
        holding.result(trading.TIMEOUT_SECONDS)
    assert_rejected(
        response, before, __all__=["The exchange is busy. The request was not executed; try again shortly."]
    )


def test_transfers_are_listed_and_found(root: Client, alice: Broker) -> None:
    trading.broker("bob", cash=7, holdings={"GOOG": 3})
    cash(root, "1", "wire-1")
    shares(root, "1", "GOOG", "move-1")
    all_, wire = Transfer.objects.order_by("-id"), Transfer.objects.get(reference="wire-1")

    def references(**filters: Any) -> list[str]:
        return [row.reference for row in listed_rows(root, Transfer, **filters)]

    assert listed_rows(root, Transfer) == list(all_)
    assert references()[:2] == ["move-1", "wire-1"]
    assert references(broker="bob") == ["initial/bob/GOOG", "initial/bob/cash"]
    assert references(kind="shares", broker="alice") == ["move-1", "initial/alice/AAPL"]
    assert references(symbol="GOOG") == ["move-1", "initial/bob/GOOG"]
    assert references(q="wire-1") == references(q=wire.pk) == ["wire-1"]
    assert references(q="wire-1", broker="bob") == references(q="wire") == []
    assert root.get(list_url(Transfer, symbol="?")).context["listing"].form.errors.keys() == {"symbol"}


def test_transfer_periods_include_their_start_and_exclude_their_end(root: Client, alice: Broker) -> None:
    cash(root, "1", "wire-1")
    cash(root, "2", "wire-2")
    first, second = Transfer.objects.filter(cash__lt=3).order_by("created_at")

    for filters in ({}, {"broker": "alice"}):
        since, until = first.created_at.isoformat(), second.created_at.isoformat()
        assert listed_rows(root, Transfer, since=since, **filters) == [second, first]
        assert listed_rows(root, Transfer, since=since, until=until, **filters) == [first]
        assert listed_rows(root, Transfer, until="2001-01-01T00:00", **filters) == []
        assert listed_rows(root, Transfer, since="9999-12-31T23:59:59", until="0001-01-01 00:00", **filters) == []


def test_the_page_of_a_transfer_links_to_its_broker_and_instrument(root: Client, alice: Broker) -> None:
    of_cash, of_shares = Transfer.objects.order_by("id")

    assert "1,000,000.00" in root.get(page(of_cash)).content.decode()
    text = root.get(page(of_shares)).content.decode()
    assert "10,000 of" in text
    assert page(alice) in text
    assert page_url(Instrument, "AAPL") in text


# --- Keys -----------------------------------------------------------------------------------------------------------


def issue(root: Client, **fields: str) -> Any:
    return perform(root, Broker, "issue-key", "alice", **{"scope": "trade"} | fields)


def answers(key: str) -> int:
    return ApiClient(key).get("/brokers/alice/balance").status


def test_a_key_is_issued_works_and_is_shown_once(root: Client, alice: Broker) -> None:
    key = secret_of(issue(root, name="night desk", expires_at="2099-01-01T00:00"))

    stored = ApiKey.objects.get(pk=key.split("_")[1])
    assert (stored.broker_id, stored.name, stored.scopes) == ("alice", "night desk", ["trade"])
    assert stored.expires_at == datetime(2099, 1, 1, tzinfo=UTC)
    assert api.place_order(ApiClient(key), api.limit("bid", 1, "10"))["status"] == "pending"
    for path in (
        page(alice),
        page(stored),
        list_url(ApiKey),
        list_url(AuditEntry),
        page(AuditEntry.objects.latest("id")),
    ):
        text = root.get(path).content.decode()
        assert key not in text
        assert key.split("_")[2] not in text
        assert bytes(stored.secret_hash).hex() not in text
    ((action, subject, reason, before, after),) = audit_entries()
    assert (action, subject, reason, before) == ("key.issue", stored.pk, REASON, None)
    assert (after["broker_id"], after["name"], after["scopes"]) == ("alice", "night desk", ["trade"])


def test_reloading_the_page_of_a_new_key_issues_no_other(root: Client, alice: Broker) -> None:
    keys = ApiKey.objects.count()
    shown = issue(root)
    key = secret_of(shown)
    ((url, status),) = shown.redirect_chain
    assert (status, ApiKey.objects.count()) == (302, keys + 1)

    reloaded = root.get(url, follow=True)

    sentence = "The key was shown once and cannot be shown again. If you lost it, issue another."
    assert result_messages(reloaded) == [("warning", sentence)]
    assert reloaded.redirect_chain == [(page(alice), 302)]
    assert key not in reloaded.content.decode()
    assert ApiKey.objects.count() == keys + 1


def test_a_new_key_is_in_clear_neither_in_the_session_nor_in_the_browser(root: Client, alice: Broker) -> None:
    issued: Any = root.post(action_path(Broker, "issue-key", "alice"), {"reason": REASON, "scope": "trade"})
    session, (cookie,) = str(dict(root.session)), [each for name, each in root.cookies.items() if "secret" in name]
    other = Client(headers={"cookie": "; ".join(f"{name}={each.value}" for name, each in root.cookies.items())})
    del root.cookies[cookie.key]

    hidden = root.get(issued["Location"], follow=True)  # without the cookie
    assert "brs_" not in hidden.content.decode()
    key = secret_of(other.get(issued["Location"]))

    assert (cookie["httponly"], cookie["samesite"], cookie["max-age"]) == (True, "Strict", 60)
    assert cookie["path"] == issued["Location"].partition("?")[0]
    for text in (issued["Location"], session, cookie.value):
        assert not any(part in text for part in (key, key.split("_")[2], key.encode().hex()))


def test_a_read_key_cannot_place_orders(root: Client, alice: Broker) -> None:
    key = secret_of(issue(root, scope="read"))

    stored = ApiKey.objects.get(pk=key.split("_")[1])
    assert (stored.name, stored.scopes, stored.expires_at) == ("", [Scope.READ], None)
    assert answers(key) == 200
    assert api.assert_rejected(ApiClient(key), "POST", "/orders", api.limit("bid", 1, "10")).code == "scope_missing"


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("scope", "operator", "Select a valid choice. operator is not one of the available choices."),
        ("scope", "", "This field is required."),
        ("name", "x" * 101, "Ensure this value has at most 100 characters (it has 101)."),
        ("expires_at", "2001-01-01T00:00", "Must be in the future."),
        ("expires_at", "tomorrow", "Enter a time such as 2026-02-16 16:29 (UTC)."),
        ("expires_at", "2027-02-30T00:00", "Enter a time such as 2026-02-16 16:29 (UTC)."),
        ("expires_at", "9999-12-31T23:59:59-05:00", "Enter a time such as 2026-02-16 16:29 (UTC)."),
        ("reason", "", "This field is required."),
    ],
)
def test_errors_of_a_key_are_shown_per_field(
    root: Client, alice: Broker, field: str, value: str, sentence: str
) -> None:
    before, keys = stored_state(), ApiKey.objects.count()
    assert_rejected(issue(root, **{field: value}), before, **{field: [sentence]})
    assert ApiKey.objects.count() == keys


def test_revoked_keys_stop_working(root: Client, alice: Broker) -> None:
    first, second, third = (secret_of(issue(root, name=name)) for name in ("a", "b", "c"))
    prefixes = [key.split("_")[1] for key in (first, second, third)]
    assert [answers(key) for key in (first, second, third)] == [200, 200, 200]

    one = perform(root, ApiKey, "revoke", prefixes[0])
    assert result_messages(one) == [("success", f"Key {prefixes[0]} revoked.")]
    assert one.context["row"].pk == prefixes[0]
    assert [answers(key) for key in (first, second, third)] == [401, 200, 200]
    revoked_at = ApiKey.objects.get(pk=prefixes[0]).revoked_at
    assert result_messages(perform(root, ApiKey, "revoke", *prefixes)) == [("success", "2 keys revoked.")]
    assert [answers(key) for key in (first, second, third)] == [401, 401, 401]
    assert ApiKey.objects.get(pk=prefixes[0]).revoked_at == revoked_at
    assert result_messages(perform(root, ApiKey, "revoke", *prefixes)) == [
        ("warning", "The selected keys were already revoked.")
    ]
    assert sorted(subject for action, subject, *_ in audit_entries() if action == "key.revoke") == sorted(prefixes)


def test_an_operators_key_is_revoked_too(root: Client) -> None:
    key, secret = exchange_services.issue_key(None, scopes=[Scope.OPERATOR], by=BY)

    assert ApiClient(secret).get("/brokers").status == 200
    assert result_messages(perform(root, ApiKey, "revoke", key.pk)) == [("success", f"Key {key.pk} revoked.")]
    assert ApiClient(secret).get("/brokers").status == 401


def test_keys_are_listed_and_found_by_state(root: Client, alice: Broker) -> None:
    secret_of(issue(root, name="gone", expires_at="2099-01-01T00:00"))
    secret_of(issue(root, name="desk"))
    first = ApiKey.objects.get(name="")
    gone = ApiKey.objects.get(name="gone")
    desk = ApiKey.objects.get(name="desk")
    ApiKey.objects.filter(pk=gone.pk).update(expires_at=timezone.now())
    perform(root, ApiKey, "revoke", first.pk)
    operators, _ = exchange_services.issue_key(None, name="desk of operators", scopes=[Scope.OPERATOR], by=BY)

    assert listed_rows(root, ApiKey) == [operators, desk, gone, first]
    assert listed_rows(root, ApiKey, broker="alice") == [desk, gone, first]
    assert listed_rows(root, ApiKey, state="live") == [operators, desk]
    assert listed_rows(root, ApiKey, state="expired") == [gone]
    assert listed_rows(root, ApiKey, state="revoked") == [first]
    assert listed_rows(root, ApiKey, q="desk") == [operators, desk]
    assert listed_rows(root, ApiKey, q=gone.pk) == [gone]
    assert [(key.pk, str(state), bool(url)) for key, state, url in root.get(page(alice)).context["keys"]] == [
        (desk.pk, "live", True),
        (gone.pk, "expired", True),
        (first.pk, "revoked", False),
    ]


def test_revoking_selected_keys_asks_for_a_reason(root: Client, alice: Broker) -> None:
    keys = [ApiKey.objects.get(), exchange_services.issue_key("alice", by=BY)[0]]
    chosen = {"action": "revoke", "index": "0", "_selected_action": [key.pk for key in keys]}

    response: Any = root.post(list_url(ApiKey, broker="alice", state="live"), chosen)
    viewers = sign_in(Client(), "viewer", ["exchange.view_apikey"]).post(list_url(ApiKey), chosen)

    path = action_path(ApiKey, "revoke", keys[1].pk, keys[0].pk)
    assert response["Location"] == f"{path}&_changelist_filters=broker%3Dalice%26state%3Dlive"
    assert (
        f'href="{escape(list_url(ApiKey, broker="alice", state="live"))}"'
        in root.get(response["Location"]).content.decode()
    )
    revoked: Any = root.post(response["Location"], {"reason": REASON})
    assert revoked["Location"] == list_url(ApiKey, broker="alice", state="live")
    assert 'name="_selected_action"' in root.get(list_url(ApiKey)).content.decode()
    assert (viewers.status_code, 'name="_selected_action"' in viewers.content.decode()) == (200, False)


def test_lists_cannot_be_filtered_by_secret_hash(root: Client, alice: Broker) -> None:
    assert root.get(f"{list_url(ApiKey)}?secret_hash__gte=a").status_code == 400


def test_the_last_use_of_a_key_is_shown_on_every_page(root: Client, alice: Broker) -> None:
    key = ApiKey.objects.get()
    ApiKey.objects.update(last_used_at=datetime(2020, 2, 3, 4, 5, 6, 789_999, tzinfo=UTC))

    for path in (list_url(ApiKey), page(key), page(alice)):
        assert ">2020-02-03 04:05:06.789 UTC<" in root.get(path).content.decode(), path


def test_the_pages_of_a_broker_and_of_a_key_refresh_automatically(root: Client, alice: Broker) -> None:
    assert live_parts(root.get(page(alice))) == [
        "balance", "holdings", "orders", "keys", "transfers", "subscriptions", "audit",
    ]  # fmt: skip
    assert live_parts(root.get(page(ApiKey.objects.get()))) == ["key", "audit"]


# --- Suspension and kill switch -------------------------------------------------------------------------------------


def test_suspending_rejects_new_orders_and_keeps_resting_ones(root: Client, alice: Broker) -> None:
    resting = place(Side.ASK, 5, "10", by="alice")

    assert result_messages(perform(root, Broker, "suspend", "alice")) == [("success", "alice suspended.")]
    assert isinstance(execute_one(order(Side.ASK, 5, "10", by="alice")), BrokerSuspended)
    resting.refresh_from_db()
    assert resting.status == OrderStatus.PENDING
    assert result_messages(perform(root, Broker, "reinstate", "alice")) == [("success", "alice reinstated.")]
    assert isinstance(execute_one(order(Side.ASK, 5, "10", by="alice")), Accepted)
    assert audit_entries() == [
        ("broker.suspend", "alice", REASON, {"status": "active"}, {"status": "suspended"}),
        ("broker.reinstate", "alice", REASON, {"status": "suspended"}, {"status": "active"}),
    ]


def test_buttons_depend_on_the_status_of_the_broker(root: Client, alice: Broker) -> None:
    offered = {action: has_button(root, action_path(Broker, action, "alice"), page(alice)) for action in ACTS}
    assert offered == dict.fromkeys(ACTS, True) | {"reinstate": False}
    perform(root, Broker, "suspend", "alice")
    offered = {action: has_button(root, action_path(Broker, action, "alice"), page(alice)) for action in ACTS}
    assert offered == dict.fromkeys(ACTS, True) | {"suspend": False}


def stop(root: Client, **fields: str) -> Any:
    return perform(root, Broker, "stop", "alice", **{"confirmation": "alice"} | fields)


@pytest.mark.parametrize("action", ["suspend", "stop"])
def test_the_page_of_a_suspension_shows_the_open_orders(root: Client, alice: Broker, action: str) -> None:
    trading.instrument("GOOG")
    trading.broker("bob")
    place(Side.BID, 3, "10", symbol="GOOG", by="alice")
    place(Side.ASK, 2, "20.50", by="alice")
    place(Side.BID, 9, "9", by="bob")

    assert impact(root.get(action_path(Broker, action, "alice"))) == [["alice", "active", "2", "71.00"]]


def test_the_kill_switch_suspends_the_broker_and_cancels_all_its_orders(root: Client, alice: Broker) -> None:
    trading.broker("bob")
    trading.instrument("GOOG")
    for number in range(3):
        place(Side.BID, 1, f"1{number}", by="alice")
        place(Side.BID, 1, f"1{number}", symbol="GOOG", by="alice")
    bobs = place(Side.BID, 1, "9", by="bob")

    assert result_messages(stop(root)) == [("success", "alice suspended, 6 orders cancelled.")]

    of_alice = Order.objects.filter(broker=alice)
    assert set(of_alice.values_list("status", "cancel_reason")) == {
        (OrderStatus.CANCELLED, CancelReason.BROKER_SUSPENDED)
    }
    assert trading.balance("alice") == (trading.CASH, 0)
    bobs.refresh_from_db()
    assert bobs.status == OrderStatus.PENDING
    assert isinstance(execute_one(order(Side.ASK, 5, "10", by="alice")), BrokerSuspended)
    assert {(action, subject, reason) for action, subject, reason, *_ in audit_entries()} == {
        ("broker.suspend", "alice", REASON),
        ("broker.cancel_orders", "alice", REASON),
    }
    assert result_messages(stop(root)) == [("success", "alice suspended, 0 orders cancelled.")]


@pytest.mark.parametrize("confirmation", ["", "Alice", "alice ", "bob"])
def test_the_kill_switch_needs_the_broker_id(root: Client, alice: Broker, confirmation: str) -> None:
    resting = place(Side.BID, 1, "10", by="alice")
    before = stored_state()

    sentence = "Does not match. Type alice exactly." if confirmation else "This field is required."
    assert_rejected(stop(root, confirmation=confirmation), before, confirmation=[sentence])
    assert Order.objects.get(pk=resting.pk).status == OrderStatus.PENDING


def test_no_concurrent_order_survives_the_kill_switch(root: Client, alice: Broker) -> None:
    trading.broker("bob")
    begun, refusals = Event(), count()

    def place_on(side: Side, price: str) -> int:
        """Place orders until the broker is suspended. Return the number of accepted orders."""
        for accepted in count():
            if accepted == 5:
                begun.set()
            outcome = execute_one(order(side, 1, price, by="alice"))
            if isinstance(outcome, BrokerSuspended):
                next(refusals)
                return accepted
            assert isinstance(outcome, Accepted)
        raise AssertionError

    def press() -> Any:
        begun.wait(trading.TIMEOUT_SECONDS)
        return stop(root)

    jobs: list[Any] = [partial(place_on, side, price) for side, price in [(Side.BID, "9"), (Side.ASK, "11")] * 4]
    results: list[Any] = run_concurrently([*jobs, press])
    *placed, response = results

    orders = Order.objects.filter(broker=alice)
    assert orders.count() == sum(placed) >= 8
    assert not orders.working().exists()
    assert result_messages(response) == [("success", f"alice suspended, {sum(placed):,} orders cancelled.")]
    assert trading.balance("alice")[1] == trading.shares("alice")[1] == 0
    assert next(refusals) == 8
    trading.assert_sound()


def test_an_interrupted_kill_switch_says_so_and_can_be_repeated(root: Client, alice: Broker) -> None:
    trading.instrument("GOOG")
    first = place(Side.BID, 1, "10", by="alice")
    second = place(Side.BID, 1, "10", symbol="GOOG", by="alice")
    held, done = Event(), Event()

    def hold() -> None:
        with transaction.atomic():
            Instrument.objects.select_for_update().get(pk="GOOG")
            held.set()
            done.wait(trading.TIMEOUT_SECONDS)

    holding = start_thread(hold)
    held.wait(trading.TIMEOUT_SECONDS)
    try:
        response = stop(root)
    finally:
        done.set()
        holding.result(trading.TIMEOUT_SECONDS)

    assert form_errors(response) == {
        "__all__": ["The broker is suspended, but some of its orders may still be open. Submit again to cancel them."]
    }
    assert Broker.objects.get(pk="alice").status == BrokerStatus.SUSPENDED
    assert [Order.objects.get(pk=each.pk).status for each in (first, second)] == ["cancelled", "pending"]
    assert result_messages(stop(root)) == [("success", "alice suspended, 1 order cancelled.")]
    assert not Order.objects.working().exists()


# --- Permissions ----------------------------------------------------------------------------------------------------

ACTS = {
    "transfer-cash": "exchange.book_transfer",
    "transfer-shares": "exchange.book_transfer",
    "issue-key": "exchange.issue_key",
    "suspend": "exchange.suspend_broker",
    "reinstate": "exchange.suspend_broker",
    "stop": "exchange.stop_broker",
}
FIELDS = {"cash": "1", "symbol": "AAPL", "quantity": "1", "reference": "r", "scope": "read", "confirmation": "alice"}


def test_viewers_see_no_button_and_are_refused(client: Client, alice: Broker) -> None:
    viewer = sign_in(client, "viewer", ["exchange.view_broker", "exchange.view_apikey"])
    key = ApiKey.objects.get()
    before = stored_state()

    paths = [action_path(Broker, action, "alice") for action in ACTS]
    paths += [action_path(Broker, "admit"), action_path(ApiKey, "revoke", key.pk)]
    for path in paths:
        assert viewer.get(path).status_code == 403
        assert viewer.post(path, FIELDS | ADMIT | {"reason": REASON}).status_code == 403
    for looked_at in (page(alice), list_url(Broker), page(key), list_url(ApiKey)):
        text = unescape(viewer.get(looked_at).content.decode())
        assert not any(path.partition("?")[0] in text for path in paths)
    assert stored_state() == before


@pytest.mark.parametrize("action", ACTS)
def test_each_action_needs_its_own_permission(client: Client, alice: Broker, action: str) -> None:
    user = sign_in(client, "specialist", ["exchange.view_broker", ACTS[action]])

    for other, permission in ACTS.items():
        response = user.get(action_path(Broker, other, "alice"))
        assert response.status_code == (200 if permission == ACTS[action] else 403)
    assert perform(user, Broker, action, "alice", **FIELDS).status_code == 200
    assert AuditEntry.objects.filter(actor="specialist").exists()


def test_signed_out_visitors_are_redirected_to_the_login(client: Client, alice: Broker) -> None:
    for path in (
        list_url(Broker),
        page(alice),
        action_path(Broker, "stop", "alice"),
        list_url(ApiKey),
        list_url(Transfer),
    ):
        response = client.get(path)
        assert (response.status_code, response["Location"].startswith("/admin/login/")) == (302, True)


def test_an_action_needs_existing_rows_within_its_limit(root: Client, alice: Broker) -> None:
    trading.broker("bob")

    assert root.get(action_path(Broker, "suspend", "nobody")).status_code == 404
    assert root.get(action_path(Broker, "suspend", "alice", "bob")).status_code == 404
    assert root.post(action_path(Broker, "suspend"), {"reason": REASON}, follow=True).redirect_chain != []
    assert Broker.objects.filter(status=BrokerStatus.SUSPENDED).count() == 0
