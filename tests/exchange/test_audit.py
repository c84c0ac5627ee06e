"""Every action of an operator has an audit entry, written by its transaction, and audit entries never change."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from config.local.processes import wait_until
from exchange import audit, services
from exchange.audit import Action, Actor, ActorKind, Entry
from exchange.errors import ExchangeError
from exchange.models import ApiKey, AuditEntry, Instrument, Transfer
from exchange.rules import InstrumentStatus, Pricing, Scope
from orders import services as orders_services
from tests import trading
from tests.exchange.client import Client
from tests.trading import BY, new_audit_entries

pytestmark = pytest.mark.django_db(transaction=True)

OLGA = Actor(ActorKind.USER, "olga", "192.0.2.7", "r-1")
CASH, SHARES = Decimal(250), {"symbol": "AAPL", "quantity": -40}
RULES = {"name": "Apple", "tick_size": "0.05", "lot_size": 10, "pricing": "maker"}
PLAIN_RULES = {"name": "PETR4", "tick_size": "0.01", "lot_size": 1, "pricing": "seller"}
TRADING, HALTED = {"status": "trading", "halt_reason": ""}, {"status": "halted", "halt_reason": "news"}
BALANCE = {"cash": "1000.00", "reserved_cash": "0.00"}
HOLDING = {"symbol": "AAPL", "quantity": 100, "reserved_quantity": 0}


def newest_key() -> str:
    return ApiKey.objects.latest("created_at").prefix


def old_key() -> str:
    """Return the prefix of alice's first key."""
    return ApiKey.objects.filter(broker="alice").earliest("created_at").prefix


def halted() -> None:
    services.halt("AAPL", "news", by=BY)


def unused() -> None:
    services.list_instrument("UNUSED", by=BY)


def suspended() -> None:
    orders_services.suspend("alice", cancel_orders=False, by=BY)


def nothing() -> None:
    pass


class AuditedAction(NamedTuple):
    """An action over REST and by the services, with its audit entry."""

    action: Action
    request: Callable[[], tuple[str, str, Any]]
    call: Callable[[Actor], Any]
    subject: Callable[[], str]
    before: dict[str, Any] | None
    after: Callable[[], dict[str, Any] | None]
    reason: str = ""
    first: Callable[[], None] = nothing


ACTIONS = [
    AuditedAction(
        Action.BROKER_ADMIT,
        lambda: (
            "POST",
            "/brokers",
            {
                "broker_id": "carol",
                "initial_cash": "10.5",
                "initial_holdings": [{"symbol": s, "quantity": 7} for s in ("GOOG", "AAPL")],
            },
        ),
        lambda by: services.create_broker(
            "carol", initial_cash=Decimal("10.5"), initial_holdings={"GOOG": 7, "AAPL": 7}, by=by
        ),
        lambda: "carol",
        None,
        lambda: {
            "status": "active",
            "cash": "10.50",
            "holdings": {"AAPL": 7, "GOOG": 7},
            "listed": ["GOOG"],
            "key": newest_key(),
        },
    ),
    AuditedAction(
        Action.BROKER_SUSPEND,
        lambda: ("POST", "/brokers/alice/suspend", {"reason": "late"}),
        lambda by: orders_services.suspend("alice", cancel_orders=False, reason="late", by=by),
        lambda: "alice",
        {"status": "active"},
        lambda: {"status": "suspended"},
        "late",
    ),
    AuditedAction(
        Action.BROKER_REINSTATE,
        lambda: ("POST", "/brokers/alice/reinstate", {"reason": "paid"}),
        lambda by: orders_services.reinstate("alice", reason="paid", by=by),
        lambda: "alice",
        {"status": "suspended"},
        lambda: {"status": "active"},
        "paid",
        suspended,
    ),
    AuditedAction(
        Action.BROKER_TRANSFER,
        lambda: ("POST", "/brokers/alice/transfers", {"reference": "r", "cash": "250", "reason": "in"}),
        lambda by: services.transfer("alice", reference="r", cash=CASH, reason="in", by=by),
        lambda: "alice",
        BALANCE,
        lambda: BALANCE | {"cash": "1250.00", "reference": "r"},
        "in",
    ),
    AuditedAction(
        Action.BROKER_TRANSFER,
        lambda: ("POST", "/brokers/alice/transfers", {"reference": "r", "reason": "out"} | SHARES),
        lambda by: services.transfer("alice", reference="r", symbol="AAPL", quantity=-40, reason="out", by=by),
        lambda: "alice",
        HOLDING,
        lambda: HOLDING | {"quantity": 60, "reference": "r"},
        "out",
    ),
    AuditedAction(
        Action.KEY_ISSUE,
        lambda: ("POST", "/brokers/alice/keys", {"name": "desk", "scopes": ["read"]}),
        lambda by: services.issue_key("alice", name="desk", scopes=[Scope.READ], by=by),
        newest_key,
        None,
        lambda: {"broker_id": "alice", "name": "desk", "scopes": ["read"], "expires_at": None},
    ),
    AuditedAction(
        Action.KEY_REVOKE,
        lambda: ("DELETE", f"/brokers/alice/keys/{old_key()}", None),
        lambda by: services.revoke_key("alice", old_key(), by=by),
        old_key,
        {"broker_id": "alice", "name": "", "revoked_at": None},
        lambda: {"broker_id": "alice", "name": "", "revoked_at": _json_time(ApiKey.objects.get(pk=old_key()))},
    ),
    AuditedAction(
        Action.INSTRUMENT_LIST,
        lambda: ("POST", "/stocks", {"symbol": "PETR4"} | RULES),
        lambda by: services.list_instrument(
            "PETR4", name="Apple", tick_size=Decimal("0.05"), lot_size=10, pricing=Pricing.MAKER, by=by
        ),
        lambda: "PETR4",
        None,
        lambda: RULES,
    ),
    AuditedAction(
        Action.INSTRUMENT_LIST,
        lambda: ("POST", "/stocks", {"symbol": "PETR4"}),
        lambda by: services.list_instrument("PETR4", by=by),
        lambda: "PETR4",
        None,
        lambda: PLAIN_RULES,
    ),
    AuditedAction(
        Action.INSTRUMENT_REMOVE,
        lambda: ("DELETE", "/stocks/UNUSED", None),
        lambda by: services.remove_instrument("UNUSED", by=by),
        lambda: "UNUSED",
        PLAIN_RULES | {"name": "UNUSED"},
        lambda: None,
        first=unused,
    ),
    AuditedAction(
        Action.INSTRUMENT_HALT,
        lambda: ("POST", "/stocks/AAPL/halt", {"reason": "news"}),
        lambda by: services.halt("AAPL", "news", by=by),
        lambda: "AAPL",
        TRADING,
        lambda: HALTED,
        "news",
    ),
    AuditedAction(
        Action.INSTRUMENT_HALT,  # changes nothing
        lambda: ("POST", "/stocks/AAPL/halt", {"reason": "news"}),
        lambda by: services.halt("AAPL", "news", by=by),
        lambda: "AAPL",
        HALTED,
        lambda: HALTED,
        "news",
        halted,
    ),
    AuditedAction(
        Action.INSTRUMENT_RESUME,
        lambda: ("POST", "/stocks/AAPL/resume", None),
        lambda by: services.resume("AAPL", by=by),
        lambda: "AAPL",
        HALTED,
        lambda: TRADING,
        "",
        halted,
    ),
]
IDS = [f"{number}-{action.action}" for number, action in enumerate(ACTIONS)]


def _json_time(key: ApiKey) -> str:
    assert key.revoked_at is not None
    return key.revoked_at.isoformat().replace("+00:00", "Z")


def content_of(entry: AuditEntry) -> tuple[Any, ...]:
    return entry.action, entry.subject, entry.reason, entry.before, entry.after


def origin_of(entry: AuditEntry) -> tuple[str, ...]:
    return entry.actor_kind, entry.actor, entry.address, entry.request_id


@pytest.mark.parametrize("action", ACTIONS, ids=IDS)
def test_an_action_over_rest_has_one_audit_entry(operator: Client, alice: Client, action: AuditedAction) -> None:
    action.first()
    sent_at = timezone.now()
    with new_audit_entries() as entries:
        response = operator.request(*action.request())

    assert response.status < 300, response
    (entry,) = entries
    assert content_of(entry) == (action.action, action.subject(), action.reason, action.before, action.after())
    assert origin_of(entry) == ("key", str(operator.key).split("_")[1], "127.0.0.1", response.headers["X-Request-Id"])
    assert sent_at - timedelta(seconds=1) < entry.at < timezone.now() + timedelta(seconds=1)


@pytest.mark.parametrize("action", ACTIONS, ids=IDS)
def test_an_action_by_the_services_has_the_same_audit_entry(alice: Client, action: AuditedAction) -> None:
    action.first()
    with new_audit_entries() as entries:
        action.call(OLGA)

    (entry,) = entries
    assert content_of(entry) == (action.action, action.subject(), action.reason, action.before, action.after())
    assert origin_of(entry) == ("user", "olga", "192.0.2.7", "r-1")


@pytest.mark.parametrize("action", ACTIONS, ids=IDS)
def test_an_action_writes_its_audit_entry_last(alice: Client, action: AuditedAction) -> None:
    """The lock of the audit log is taken after all others and held as briefly as possible."""
    action.first()
    with CaptureQueriesContext(connection) as queries:
        action.call(BY)

    statements = [query["sql"] for query in queries]
    records = [n for n, statement in enumerate(statements) if "exchange_record_audit" in statement]
    assert records
    assert all("COMMIT" in statements[n] or statements[n + 1] == "COMMIT" for n in records)


@pytest.mark.parametrize(
    "tables", [["exchange_auditentry"], ["exchange_broker", "exchange_instrument", "exchange_apikey"]]
)
@pytest.mark.parametrize("action", ACTIONS, ids=IDS)
def test_an_action_and_its_audit_entry_are_one_transaction(
    alice: Client, action: AuditedAction, tables: list[str]
) -> None:
    action.first()
    before = trading.snapshot()
    with trading.failing_commits(*tables), pytest.raises(DatabaseError, match="not this one"):
        action.call(BY)

    assert trading.snapshot() == before


REJECTED: list[Callable[[], Any]] = [
    lambda: services.create_broker("alice", initial_cash=Decimal(0), initial_holdings={"NEW": 1}, by=BY),
    lambda: orders_services.suspend("nobody", cancel_orders=True, by=BY),
    lambda: orders_services.reinstate("nobody", by=BY),
    lambda: services.transfer("alice", reference="r", cash=Decimal(-1001), reason="out", by=BY),
    lambda: services.transfer("alice", reference="r", symbol="AAPL", quantity=-101, reason="out", by=BY),
    lambda: services.transfer("alice", reference="r", symbol="NONE", quantity=1, reason="in", by=BY),
    lambda: services.transfer("nobody", reference="r", cash=CASH, reason="in", by=BY),
    lambda: services.issue_key("nobody", by=BY),
    lambda: services.issue_key("alice", expires_at=timezone.now(), by=BY),
    lambda: services.revoke_key("alice", "0" * 12, by=BY),
    lambda: services.revoke_key(None, old_key(), by=BY),
    lambda: services.list_instrument("AAPL", by=BY),
    lambda: services.halt("NONE", by=BY),
    lambda: services.resume("NONE", by=BY),
]


@pytest.mark.parametrize("action", REJECTED)
def test_a_rejected_action_writes_nothing(alice: Client, action: Callable[[], Any]) -> None:
    before = trading.snapshot()
    with pytest.raises(ExchangeError):
        action()

    assert trading.snapshot() == before


def test_a_repeated_transfer_has_one_audit_entry_and_a_rejected_one_none(operator: Client, alice: Client) -> None:
    body = {"reference": "r", "cash": "1", "reason": "in"}
    with new_audit_entries() as entries:
        responses = [operator.post("/brokers/alice/transfers", body | more) for more in ({}, {}, {"cash": "2"})]

    assert [response.status for response in responses] == [201, 200, 409]
    assert (len(entries), Transfer.objects.filter(reference="r").count()) == (1, 1)


def test_an_operators_key_can_be_revoked(operator: Client) -> None:
    prefix = str(operator.key).split("_")[1]
    with new_audit_entries() as entries:
        services.revoke_key(None, prefix, by=OLGA, reason="left")

    assert operator.get("/stocks").status == 401
    assert [(each.action, each.subject, each.reason) for each in entries] == [("key.revoke", prefix, "left")]


def test_the_audit_log_contains_no_key_and_no_hash(operator: Client) -> None:
    with new_audit_entries() as entries:
        admitted = operator.post("/brokers", {"broker_id": "carol", "initial_cash": "0"}).body["api_key"]
        issued = operator.post("/brokers/carol/keys", {"name": "desk"}).body["api_key"]

    recorded = str([(each.subject, each.before, each.after) for each in entries])
    for key in (admitted, issued):
        _, prefix, secret = key.split("_")
        assert prefix in recorded
        assert secret not in recorded
        assert bytes(ApiKey.objects.get(pk=prefix).secret_hash).hex() not in recorded


# --- Halting everything ---------------------------------------------------------------------------------------------


def test_halt_all_halts_every_trading_instrument_and_audits_each(db: None) -> None:
    for symbol in ("GOOG", "AAPL", "PETR4"):
        trading.instrument(symbol)
    services.halt("GOOG", "earlier", by=BY)
    with new_audit_entries() as entries:
        assert services.halt_all("fire", by=OLGA) == (["AAPL", "PETR4"], [])

    halted = {"status": "halted", "halt_reason": "fire"}
    assert [content_of(each) for each in entries] == [
        ("instrument.halt", symbol, "fire", TRADING, halted) for symbol in ("AAPL", "PETR4")
    ]
    assert {origin_of(each) for each in entries} == {("user", "olga", "192.0.2.7", "r-1")}
    assert Instrument.objects.get(pk="GOOG").halt_reason == "earlier"


def test_halt_all_leaves_the_connection_with_its_lock_timeout(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        before = cursor.fetchone()
        services.halt_all("fire", by=OLGA)
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == before


def test_halt_all_reports_a_locked_book_and_halts_the_others(db: None) -> None:
    for symbol in ("AAPL", "GOOG"):
        trading.instrument(symbol)
    with transaction.atomic(), new_audit_entries() as entries:
        Instrument.objects.select_for_update().get(pk="AAPL")
        halting = trading.start_thread(lambda: services.halt_all("fire", by=BY))
        assert wait_until(lambda: Instrument.objects.get(pk="GOOG").status == InstrumentStatus.HALTED, 1.5)
        assert not halting.done()
        assert halting.result(trading.TIMEOUT_SECONDS) == (["GOOG"], ["AAPL"])

    assert [each.subject for each in entries] == ["GOOG"]
    assert Instrument.objects.get(pk="AAPL").status == InstrumentStatus.TRADING


# --- The audit log --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE exchange_auditentry SET reason = 'another'",
        "UPDATE exchange_auditentry SET reason = 'another' WHERE false",
        "DELETE FROM exchange_auditentry",
        "TRUNCATE exchange_auditentry",
        "TRUNCATE exchange_auditentry, exchange_broker CASCADE",
    ],
)
def test_the_database_rejects_changes_of_audit_entries(alice: Client, statement: str) -> None:
    before = trading.snapshot()
    with connection.cursor() as cursor:
        cursor.execute("SELECT usesuper FROM pg_user WHERE usename = current_user")
        assert cursor.fetchone() == (True,)  # other accounts have fewer rights
        with pytest.raises(DatabaseError, match="The audit only grows"):
            cursor.execute(statement)

    assert trading.snapshot() == before


def test_an_audit_entry_needs_a_transaction(db: None) -> None:
    with pytest.raises(AssertionError):
        audit.record(Entry.of(BY, Action.KEY_ISSUE, "x"))


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, None, "192.0.2.1"),
        (0, "198.51.100.1", "192.0.2.1"),  # forged by the client
        (1, "198.51.100.1", "198.51.100.1"),
        (1, "203.0.113.9, 198.51.100.1", "198.51.100.1"),  # the first was sent by the client
        (2, "203.0.113.9,198.51.100.1 , 10.0.0.1", "198.51.100.1"),
        (1, None, "192.0.2.1"),
        (2, "198.51.100.1", "192.0.2.1"),  # it came through one proxy only
        (1, "x" * 65, "x" * 64),
    ],
)
def test_the_client_address_comes_from_the_outermost_trusted_proxy(
    settings: Settings, proxies: int, forwarded: str | None, address: str
) -> None:
    settings.TRUSTED_PROXIES = proxies
    environ = {"REMOTE_ADDR": "192.0.2.1"} | ({} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded})

    assert audit.address_of(environ) == address


def test_actions_of_commands_are_audited(db: None, tmp_path: Path) -> None:
    with new_audit_entries() as entries:
        call_command("create_operator_key", name="desk", stdout=StringIO())
        call_command("demo", credentials=tmp_path / "credentials.json", base_url="http://localhost")

    assert [(each.action, *origin_of(each)) for each in entries] == [
        ("key.issue", "command", "manage.py create_operator_key", "", ""),
        ("broker.admit", "command", "manage.py demo", "", ""),
        ("broker.admit", "command", "manage.py demo", "", ""),
        ("key.issue", "command", "manage.py demo", "", ""),
    ]


@pytest.mark.parametrize("header", ["HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED"])
def test_an_untrusted_proxy_is_logged_once(settings: Settings, caplog: pytest.LogCaptureFixture, header: str) -> None:
    audit._warn_of_untrusted_proxy.cache_clear()
    audit.address_of({"REMOTE_ADDR": "192.0.2.1"})
    settings.TRUSTED_PROXIES = 1
    audit.address_of({"REMOTE_ADDR": "192.0.2.1", header: "198.51.100.1"})
    assert "proxy_not_trusted" not in caplog.text
    settings.TRUSTED_PROXIES = 0
    for _ in range(3):
        assert audit.address_of({"REMOTE_ADDR": "192.0.2.1", header: "198.51.100.1"}) == "192.0.2.1"
    assert caplog.text.count("proxy_not_trusted") == 1
