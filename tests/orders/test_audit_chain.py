"""The audit log is a hash chain that `manage.py reconcile` verifies, even if its trigger was disabled."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.db.migrations.executor import MigrationExecutor

from config.local.processes import wait_until
from exchange import audit, services
from exchange.audit import Action, Entry
from exchange.models import AuditEntry, AuditHead
from exchange.rules import BrokerStatus
from orders.enums import Side
from orders.reconciliation import checks
from tests import trading
from tests.trading import BY, TIMEOUT_SECONDS, place, start_thread

pytestmark = pytest.mark.django_db(transaction=True)

SYMBOLS = ["S1", "S2", "S3", "S4"]
CHECK = "the audit log is complete and unchanged"
REWRITE = """
DO $$ DECLARE entry exchange_auditentry; last bytea := ''; BEGIN
  FOR entry IN SELECT * FROM exchange_auditentry ORDER BY number LOOP
    last := exchange_audit_hash(last, entry);
    UPDATE exchange_auditentry SET hash = last WHERE number = entry.number;
  END LOOP;
  UPDATE exchange_audithead SET hash = last;
END $$
"""


@pytest.fixture(autouse=True)
def five_entries(transactional_db: None) -> None:
    with transaction.atomic():
        audit.record(*(_entry(f"b{number}") for number in range(1, 6)))


def _entry(subject: str) -> Entry:
    return Entry.of(BY, Action.BROKER_SUSPEND, subject, before={"x": "1", "long": 1.50}, after={"x": "2"})


@contextmanager
def _trigger_disabled() -> Iterator[None]:
    """Let statements of the table's owner change entries."""
    _run("ALTER TABLE exchange_auditentry DISABLE TRIGGER audit_only_grows")
    try:
        yield
    finally:
        _run("ALTER TABLE exchange_auditentry ENABLE TRIGGER audit_only_grows")


def _run(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def _reconcile(*arguments: str) -> list[str]:
    """Run `manage.py reconcile`, which must succeed, and return its lines."""
    out = io.StringIO()
    call_command("reconcile", *arguments, stdout=out)
    return out.getvalue().splitlines()


def _faults(*arguments: str) -> list[str]:
    """Run `manage.py reconcile`, which must fail, and return its lines about the audit."""
    out = io.StringIO()
    with pytest.raises(CommandError):
        call_command("reconcile", *arguments, stdout=out)
    _, _, after = out.getvalue().partition(f"  {CHECK}\n")
    return re.findall(r"^ +- (.*)$", after, re.MULTILINE)


def _id(number: int) -> str:
    return str(AuditEntry.objects.get(number=number).pk)


# --- Verification ---------------------------------------------------------------------------------------------------


def test_entries_are_numbered_and_chained_by_hash() -> None:
    entries = list(AuditEntry.objects.order_by("id"))

    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5]
    assert len({bytes(entry.hash) for entry in entries}) == 5
    assert str(AuditHead.objects.get()) == f"5:{bytes(entries[-1].hash).hex()}"
    lines = _reconcile()
    assert lines[-2:] == [f"The audit log ends with {AuditHead.objects.get()}.", "No differences."]
    assert f"       0  {CHECK}" in lines


def test_a_hash_does_not_depend_on_the_session() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SET LOCAL TIME ZONE 'Asia/Kathmandu'; SET LOCAL DateStyle = German; SET LOCAL bytea_output = escape"
        )
        assert [each.count for each in checks.findings(cursor)] == [0] * len(checks.CHECKS)


@pytest.mark.parametrize(
    "change",
    [
        "id = uuidv7()",
        "at = at + interval '1 microsecond'",
        "actor_kind = 'user'",
        "actor = 'olga'",
        "address = '192.0.2.7'",
        "request_id = 'r'",
        "action = 'broker.reinstate'",
        "subject = 'b4'",
        "reason = 'another'",
        "before = NULL",
        """before = '{"x": "1", "long": 1.51}'""",
        """after = '{"x": "3"}'""",
        "hash = sha256('')",
    ],
)
def test_a_changed_entry_is_reported(change: str) -> None:
    with _trigger_disabled():
        _run(f"UPDATE exchange_auditentry SET {change} WHERE number = 3")  # noqa: S608

    assert _faults()[0] == f"entry 3, {_id(3)}, is not as it was written"


def test_a_changed_entry_with_a_matching_hash_breaks_the_next_one() -> None:
    with _trigger_disabled():
        _run("UPDATE exchange_auditentry SET reason = 'another' WHERE number = 3")
        _run(
            "UPDATE exchange_auditentry entry SET hash = exchange_audit_hash(before.hash, entry)"
            " FROM exchange_auditentry before WHERE entry.number = 3 AND before.number = 2"
        )

    assert _faults() == [f"entry 4, {_id(4)}, is not as it was written"]


@pytest.mark.parametrize(
    ("removed", "next_entry", "before"),
    [("1", 2, 0), ("3", 4, 2), ("3, 4", 5, 2), ("5", 6, 4), ("1, 2, 3, 4, 5", 6, 0)],
)
def test_removed_entries_are_reported(removed: str, next_entry: int, before: int) -> None:
    with _trigger_disabled():
        _run(f"DELETE FROM exchange_auditentry WHERE number IN ({removed})")  # noqa: S608

    assert _faults() == [f"entry {next_entry}, {_id(next_entry)}, follows entry {before}"]  # 6 is the run itself


@pytest.mark.parametrize("number", [3, 6])
def test_an_inserted_entry_is_reported(number: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO exchange_auditentry SELECT (jsonb_populate_record(entry, jsonb_build_object("
            "'id', uuidv7(), 'number', %s))).* FROM exchange_auditentry entry WHERE number = 5",
            [number],
        )
    forged = AuditEntry.objects.latest("id").pk

    assert str(forged) in _faults()[0]


def test_a_changed_head_is_reported() -> None:
    _run("UPDATE exchange_audithead SET number = 7")
    assert _faults() == [f"entry 8, {_id(8)}, follows entry 5"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("UPDATE exchange_audithead SET hash = sha256('')", "the head is entry 5, the last one is entry 5"),
        ("UPDATE exchange_audithead SET number = 4", "the head is entry 4, the last one is entry 5"),
        ("DELETE FROM exchange_audithead", "the head is entry missing, the last one is entry 5"),
    ],
)
def test_the_head_is_compared_with_the_last_entry(change: str, fault: str) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(change)
        assert [example for each in checks.findings(cursor) for example in each.examples] == [fault]
        transaction.set_rollback(True)


def test_no_entry_is_written_without_the_head() -> None:
    with transaction.atomic():
        _run("DELETE FROM exchange_audithead")
        with pytest.raises(DatabaseError, match="The audit has lost its head"), transaction.atomic():
            audit.record(_entry("b6"))
        transaction.set_rollback(True)


def test_a_rewritten_chain_is_detected_by_its_anchor() -> None:
    anchor = str(AuditHead.objects.get())
    assert _reconcile("--anchor", anchor)[-1] == "No differences."
    with _trigger_disabled():
        _run("UPDATE exchange_auditentry SET reason = 'another' WHERE number = 2")
        _run(REWRITE)

    assert _reconcile()[-1] == "No differences."
    with pytest.raises(CommandError, match="no longer contains the --anchor entry"):
        _reconcile("--anchor", anchor)


# --- Writes ---------------------------------------------------------------------------------------------------------


def test_concurrent_entries_form_one_chain() -> None:
    for symbol in SYMBOLS:
        trading.instrument(symbol)
    halts = [start_thread(partial(_halt_and_resume, symbol)) for symbol in SYMBOLS]
    for halt in halts:
        halt.result(TIMEOUT_SECONDS)

    assert AuditEntry.objects.filter(action__in=[Action.INSTRUMENT_HALT, Action.INSTRUMENT_RESUME]).count() == 40
    assert _reconcile()[-1] == "No differences."


def _halt_and_resume(symbol: str) -> None:
    for _ in range(5):
        services.halt(symbol, "news", by=BY)
        services.resume(symbol, by=BY)


def test_an_entry_waits_for_the_previous_one_but_orders_do_not() -> None:
    for broker_id in ("alice", "bob"):
        trading.broker(broker_id)
    with transaction.atomic():
        audit.record(_entry("b6"))
        suspension = start_thread(
            partial(services.set_broker_status, "alice", BrokerStatus.SUSPENDED, reason="", by=BY)
        )
        assert wait_until(_is_lock_awaited, TIMEOUT_SECONDS)
        start_thread(partial(place, Side.BID, 1, "10", by="bob")).result(TIMEOUT_SECONDS)
        assert not suspension.done()

    suspension.result(TIMEOUT_SECONDS)
    assert _reconcile()[-1] == "No differences."


def _is_lock_awaited() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_locks WHERE NOT granted")
        return bool(cursor.rowcount)


def test_a_rolled_back_entry_leaves_no_gap() -> None:
    with transaction.atomic():
        audit.record(_entry("b6"))
        transaction.set_rollback(True)

    assert AuditHead.objects.get().number == 5
    assert _reconcile()[-1] == "No differences."


def test_the_migration_chains_existing_entries() -> None:
    before = list(AuditEntry.objects.order_by("id").values())
    MigrationExecutor(connection).migrate([("exchange", "0003_add_audit")])
    try:
        _run("SELECT exchange_record_audit(NULL)")
    finally:
        MigrationExecutor(connection).migrate([("exchange", "0004_chain_audit")])

    assert list(AuditEntry.objects.order_by("id").values()) == before
    assert _reconcile()[-1] == "No differences."
