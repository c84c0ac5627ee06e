"""The audit log in the back office: list, filters, entry page and CSV export."""

import csv
import io
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.html import format_html

from backoffice import lists
from backoffice.audit import FieldChange, changes, latest_entries
from backoffice.links import list_url, page_url
from backoffice.templatetags.formatting import DASH, timestamp
from exchange import audit
from exchange import services as exchange_services
from exchange.audit import Action, Actor, ActorKind, Entry
from exchange.ids import first_id_at
from exchange.models import ApiKey, AuditEntry, Broker, Instrument
from exchange.rules import Scope
from orders.enums import Side
from orders.models import Order
from tests import trading
from tests.backoffice.admin_client import ADDRESS, REASON, action_path, listed_rows, page, perform, sign_in
from tests.exchange.client import Client as ApiClient
from tests.trading import BY, place

pytestmark = pytest.mark.django_db(transaction=True)

MAX_QUERIES = 20
MARY = Actor(ActorKind.USER, "mary", "192.0.2.7", "request-1")
ROBOT = Actor(ActorKind.KEY, "0123456789ab", "192.0.2.8", "request-2")


def write(by: Actor, action: Action, subject: str, **more: Any) -> AuditEntry:
    """Record an action as services do."""
    with transaction.atomic():
        audit.record(Entry.of(by, action, subject, **more))
    return AuditEntry.objects.latest("id")


def link(url: str, text: str) -> str:
    return format_html('<a class="o-link" href="{}">{}</a>', url, text)


# --- The list -------------------------------------------------------------------------------------------------------


def test_the_list_shows_time_actor_address_action_subject_and_reason(root: Client) -> None:
    by_user = write(MARY, Action.BROKER_SUSPEND, "alice", reason="margin call")
    by_key = write(ROBOT, Action.INSTRUMENT_HALT, "AAPL")
    by_command = write(BY, Action.KEY_ISSUE, "abcdefabcdef")

    lines = root.get(list_url(AuditEntry)).context["listing"].lines

    assert [row for row, _ in lines] == [by_command, by_key, by_user]
    assert [[value for _, value in cells] for _, cells in lines] == [
        [
            link(page(by_command), timestamp(by_command.at)),
            link(list_url(AuditEntry, actor="tests", kind="command"), "command tests"),
            DASH,
            "key.issue",
            link(page_url(ApiKey, "abcdefabcdef"), "abcdefabcdef"),
            DASH,
        ],
        [
            link(page(by_key), timestamp(by_key.at)),
            link(page_url(ApiKey, "0123456789ab"), "key 0123456789ab"),
            "192.0.2.8",
            "instrument.halt",
            link(page_url(Instrument, "AAPL"), "AAPL"),
            DASH,
        ],
        [
            link(page(by_user), timestamp(by_user.at)),
            link(list_url(AuditEntry, actor="mary", kind="user"), "user mary"),
            "192.0.2.7",
            "broker.suspend",
            link(page_url(Broker, "alice"), "alice"),
            "margin call",
        ],
    ]


def test_entries_are_found_by_each_filter(root: Client) -> None:
    first = write(MARY, Action.BROKER_SUSPEND, "alice")
    second = write(ROBOT, Action.BROKER_SUSPEND, "bob")
    third = write(MARY, Action.BROKER_REINSTATE, "alice")
    fourth = write(Actor(ActorKind.COMMAND, "mary"), Action.BROKER_REINSTATE, "alice")

    assert listed_rows(root, AuditEntry) == [fourth, third, second, first]
    assert listed_rows(root, AuditEntry, q="alice") == [fourth, third, first]
    assert listed_rows(root, AuditEntry, q="ali") == []
    assert listed_rows(root, AuditEntry, actor="mary") == [fourth, third, first]
    assert listed_rows(root, AuditEntry, actor="mary", kind="user") == [third, first]
    assert listed_rows(root, AuditEntry, kind="key") == [second]
    assert listed_rows(root, AuditEntry, action="broker.suspend") == [second, first]
    assert listed_rows(root, AuditEntry, action="broker.suspend", q="alice", actor="mary", kind="user") == [first]
    assert listed_rows(root, AuditEntry, actor="0123456789ab", action="broker.reinstate") == []
    since, until = second.at.isoformat(), fourth.at.isoformat()
    assert listed_rows(root, AuditEntry, since=since) == [fourth, third, second]
    assert listed_rows(root, AuditEntry, since=since, until=until) == [third, second]
    assert listed_rows(root, AuditEntry, until=until, q="alice") == [third, first]
    assert listed_rows(root, AuditEntry, since=until, actor="mary") == [fourth]


def test_invalid_filters_are_reported(root: Client) -> None:
    write(MARY, Action.BROKER_SUSPEND, "alice")

    response = root.get(list_url(AuditEntry, kind="god", action="x", since="now", until="0", q="\0"))

    listing = response.context["listing"]
    assert (response.status_code, listing.page.rows) == (200, [])
    assert listing.form.errors.keys() == {"kind", "action", "since", "until", "q"}


def test_each_filter_uses_an_index(root: Client) -> None:
    with transaction.atomic():
        audit.record(*(Entry.of(MARY, Action.BROKER_SUSPEND, f"b{n % 50}") for n in range(5_000)))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE exchange_auditentry")

    def plan(**filters: Any) -> str:
        with CaptureQueriesContext(connection) as queries:
            listed_rows(root, AuditEntry, **filters)
        (statement,) = [each["sql"] for each in queries if 'FROM "exchange_auditentry"' in each["sql"]][-1:]
        with connection.cursor() as cursor:
            cursor.execute("EXPLAIN " + statement.replace("%", "%%"))
            return "\n".join(line for (line,) in cursor.fetchall())

    assert "audit_newest_of_subject" in plan(q="b7")
    assert "audit_newest_of_actor" in plan(actor="nobody")
    for filters in ({}, {"since": "2026-01-01T00:00"}, {"kind": "user"}):
        found = plan(**filters)
        assert "exchange_auditentry_pkey" in found
        assert "Sort" not in found


def test_an_entry_s_id_begins_with_its_time() -> None:
    entry = write(MARY, Action.BROKER_SUSPEND, "alice")
    second = timedelta(seconds=1)
    assert first_id_at(entry.at, shift=-second) < entry.pk < first_id_at(entry.at, shift=second)


# --- The page of an entry -------------------------------------------------------------------------------------------


def test_values_before_and_after_are_shown_side_by_side(root: Client) -> None:
    before = {"status": "active", "cash": "10.00", "gone": 1, "same": [1, 2], "empty": ""}
    after = {"status": "suspended", "cash": "10.00", "same": [1, 2], "empty": "", "new": {"a": None}, "flag": True}
    entry = write(MARY, Action.BROKER_SUSPEND, "alice", before=before, after=after, reason="<b>why</b>")

    response = root.get(page(entry))

    assert sorted(response.context["changes"], key=lambda change: change.name) == [
        FieldChange("cash", "10.00", "10.00"),
        FieldChange("empty", "", ""),
        FieldChange("flag", None, "true"),
        FieldChange("gone", "1", None),
        FieldChange("new", None, '{"a": null}'),
        FieldChange("same", "[1, 2]", "[1, 2]"),
        FieldChange("status", "active", "suspended"),
    ]
    text = response.content.decode()
    assert "<del>active</del>" in text
    assert "<ins>suspended</ins>" in text
    assert text.count("<ins>") == 3
    assert text.count("<del>") == 2
    for expected in ("mary", "192.0.2.7", "request-1", "broker.suspend", page_url(Broker, "alice"), "&lt;b&gt;why"):
        assert expected in text


def test_an_entry_without_values_has_a_page(root: Client) -> None:
    assert changes(None, None) == []
    assert "No field values were recorded." in root.get(page(write(BY, Action.USER_ADD, "mary"))).content.decode()


def test_entries_of_an_operator_key_link_to_the_key(root: Client) -> None:
    trading.broker("alice")
    key, secret = exchange_services.issue_key(None, name="robot", scopes=[Scope.OPERATOR], by=BY)
    operator = ApiClient(secret)
    operator.post("/brokers/alice/suspend", {"reason": "over REST"})
    operator.post("/brokers/alice/transfers", {"reference": "r", "cash": "5", "reason": "paid in"})

    transfer, suspension = listed_rows(root, AuditEntry, actor=key.pk, kind="key")

    assert (suspension.action, suspension.subject, suspension.reason) == ("broker.suspend", "alice", "over REST")
    assert (transfer.action, transfer.subject, transfer.reason) == ("broker.transfer", "alice", "paid in")
    text = root.get(page(suspension)).content.decode()
    assert f'href="{page(key)}"' in text
    assert secret not in text
    assert list_url(AuditEntry, actor=key.pk, kind="key").replace("&", "&amp;") in root.get(page(key)).content.decode()


def test_actions_of_a_user_are_recorded_with_user_and_address(root: Client) -> None:
    trading.broker("alice")
    perform(root, Broker, "suspend", "alice")

    entry = AuditEntry.objects.latest("id")
    assert (entry.actor_kind, entry.actor, entry.address, entry.reason) == ("user", "root", ADDRESS, REASON)
    assert entry.request_id != ""


# --- Latest entries -------------------------------------------------------------------------------------------------


def test_the_latest_entries_are_of_the_same_kind_only() -> None:
    trading.broker("AAPL", holdings={"AAPL": 1})  # a broker ID can equal a symbol
    broker, instrument = Broker.objects.get(), Instrument.objects.get()
    key = ApiKey.objects.get()
    halted = write(MARY, Action.INSTRUMENT_HALT, "AAPL")
    suspended = write(MARY, Action.BROKER_SUSPEND, "AAPL")
    revoked = write(MARY, Action.KEY_REVOKE, key.pk)

    assert latest_entries(instrument) == [halted]
    admitted = AuditEntry.objects.get(action="broker.admit")
    assert latest_entries(broker) == [suspended, admitted]
    assert latest_entries(broker, key) == [revoked, suspended, admitted]
    for _ in range(20):
        last = write(MARY, Action.BROKER_SUSPEND, "AAPL")
    assert len(latest_entries(broker, key)) == 10
    assert latest_entries(broker, key)[0] == last


def test_the_latest_entries_of_an_order_include_its_cancellation() -> None:
    trading.broker("alice")
    order = place(Side.BID, 1, "10", by="alice")
    entry = write(MARY, Action.ORDER_CANCEL, str(order.pk))

    assert latest_entries(Order.objects.get()) == [entry]


# --- Read-only ------------------------------------------------------------------------------------------------------


def test_entries_cannot_be_changed(root: Client) -> None:
    entry = write(MARY, Action.BROKER_SUSPEND, "alice")

    for action in ("add", "delete", "change"):
        for path in (action_path(AuditEntry, action), page(entry).replace("change", action)):
            root.post(path, {"reason": "x", "post": "yes"})
    assert list(AuditEntry.objects.values()) == list(AuditEntry.objects.filter(pk=entry.pk).values())
    context = root.get(list_url(AuditEntry)).context
    assert context["bulk_actions"] == []
    assert root.get(page(entry)).context["action_buttons"] == []


def test_users_without_view_permission_are_refused(client: Client) -> None:
    entry = write(MARY, Action.BROKER_SUSPEND, "alice")
    user = sign_in(client, "teller", ["exchange.view_broker"])

    for path in (list_url(AuditEntry), page(entry), action_path(AuditEntry, "export")):
        assert user.get(path).status_code == 403


# --- CSV export -----------------------------------------------------------------------------------------------------


def exported(client: Client, **filters: Any) -> list[dict[str, str]]:
    query = list_url(AuditEntry, **filters).partition("?")[2]
    response: Any = client.get(f"{action_path(AuditEntry, 'export')}?{query}")
    assert response.status_code == 200
    assert response.streaming
    assert response["Content-Type"] == "text/csv; charset=utf-8"
    assert response["Content-Disposition"].startswith('attachment; filename="audit-entries-')
    return list(csv.DictReader(io.StringIO(b"".join(response.streaming_content).decode("utf-8-sig"))))


def test_the_export_contains_every_field_of_the_matching_entries(root: Client) -> None:
    first = write(MARY, Action.BROKER_SUSPEND, "alice", reason='a "b", c', before={"x": "1"}, after={"x": "2"})
    write(ROBOT, Action.INSTRUMENT_HALT, "AAPL")

    (line,) = exported(root, actor="mary")

    assert line == {
        "id": str(first.pk),
        "number": "1",
        "hash": first.hash.hex(),
        "at": first.at.isoformat().replace("+00:00", "Z"),
        "actor_kind": "user",
        "actor": "mary",
        "address": "192.0.2.7",
        "request_id": "request-1",
        "action": "broker.suspend",
        "subject": "alice",
        "reason": 'a "b", c',
        "before": '{"x": "1"}',
        "after": '{"x": "2"}',
    }
    assert [each["subject"] for each in exported(root)] == ["audit-entries", "audit-entries", "AAPL", "alice"]


def test_the_export_contains_every_entry_once(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MAX_SCANNED_ROWS", 70)
    monkeypatch.setattr(lists, "BATCH_ROWS", 300)
    with transaction.atomic():
        audit.record(*(Entry.of((MARY, ROBOT)[n % 2], Action.BROKER_SUSPEND, f"b{n}") for n in range(2_500)))

    lines = exported(root)  # including the entry of this export
    assert [line["id"] for line in lines] == [str(entry.pk) for entry in AuditEntry.objects.order_by("-id")]
    assert [line["subject"] for line in exported(root, kind="key")] == [f"b{n}" for n in range(2_499, 0, -2)]


def test_pages_take_few_queries_however_many_entries_there_are(root: Client) -> None:
    with transaction.atomic():
        audit.record(*(Entry.of(MARY, Action.BROKER_SUSPEND, "alice") for _ in range(300)))
    for path in (list_url(AuditEntry), list_url(AuditEntry, last=1), page(AuditEntry.objects.latest("id"))):
        with CaptureQueriesContext(connection) as queries:
            assert root.get(path).status_code == 200
        assert len(queries) < MAX_QUERIES
        assert not any("count(*)" in query["sql"].lower() for query in queries)
