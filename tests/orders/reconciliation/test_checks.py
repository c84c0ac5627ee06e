"""`manage.py reconcile` finds every inconsistency in one snapshot, even without the database's constraints."""
# ruff: noqa: S608 (the SQL is built from constants in this file)

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import InternalError, connection, transaction

from bench import history
from exchange.models import AuditHead
from orders.reconciliation import checks
from tests import celery_processes
from tests.trading import TIMEOUT_SECONDS, start_thread

pytestmark = pytest.mark.django_db(transaction=True)

# Reconcile must also find violations that constraints prevent.
DROP_CONSTRAINTS = """
DO $$ DECLARE rule record; BEGIN
  FOR rule IN SELECT conrelid::regclass AS place, conname FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'u', 'f')
  LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', rule.place, rule.conname); END LOOP;
  DROP INDEX order_client_order_id_unique;
END $$
"""

A_TRADE = "id = (SELECT id FROM orders_trade ORDER BY id LIMIT 1)"
FILLED = "id = (SELECT id FROM orders_order WHERE status = 'filled' ORDER BY id LIMIT 1)"
NEVER_FILLED = (
    "id = (SELECT id FROM orders_order WHERE status = 'cancelled' AND filled_quantity = 0 ORDER BY id LIMIT 1)"
)
PARTLY_FILLED = (
    "id = (SELECT id FROM orders_order WHERE status = 'expired' AND filled_quantity > 0 ORDER BY id LIMIT 1)"
)
RESTING = (
    "id = (SELECT id FROM orders_order WHERE status = 'pending' AND side = 'bid' AND symbol = 'S1' ORDER BY id LIMIT 1)"
)
A_HOLDING = "broker_id = 'bench-1' AND symbol = 'S1'"
FORGET_LAST = "UPDATE exchange_broker SET event_sequence = event_sequence - 1 WHERE id = 'bench-1'"
LAST_EVENT = "broker_id = 'bench-1' AND sequence = (SELECT event_sequence FROM exchange_broker WHERE id = 'bench-1')"

INCONSISTENCIES = {
    "cash equals transfers plus sales minus purchases": [
        "UPDATE exchange_broker SET cash = cash + 0.0001 WHERE id = 'bench-1'",
        "UPDATE exchange_transfer SET cash = cash - 1 WHERE broker_id = 'bench-1' AND cash IS NOT NULL",
        "DELETE FROM exchange_transfer WHERE broker_id = 'bench-1' AND cash IS NOT NULL",
        f"UPDATE orders_trade SET price = price + 0.0001 WHERE {A_TRADE}",
        f"DELETE FROM orders_trade WHERE {A_TRADE}",
    ],
    "shares equal transfers plus purchases minus sales": [
        f"UPDATE exchange_holding SET quantity = quantity + 1 WHERE {A_HOLDING}",
        f"DELETE FROM exchange_holding WHERE {A_HOLDING}",
        f"DELETE FROM exchange_transfer WHERE {A_HOLDING}",
        f"UPDATE orders_trade SET quantity = quantity + 1 WHERE {A_TRADE}",
        "INSERT INTO exchange_holding (broker_id, symbol, quantity, reserved) VALUES ('bench-1', 'NEW', 1, 0)",
    ],
    "reserved cash equals the cost of working bids": [
        "UPDATE exchange_broker SET reserved_cash = reserved_cash + 0.0001 WHERE id = 'bench-1'",
        "UPDATE exchange_broker SET reserved_cash = 0 WHERE id = 'bench-1'",
        f"UPDATE orders_order SET quantity = quantity + 1 WHERE {RESTING}",
    ],
    "reserved shares equal the remainder of working asks": [
        f"UPDATE exchange_holding SET reserved = reserved + 1 WHERE {A_HOLDING}",
        f"DELETE FROM exchange_holding WHERE {A_HOLDING}",
        "UPDATE orders_order SET quantity = quantity + 1 WHERE side = 'ask' AND status = 'pending'",
    ],
    "open order counts are correct": [
        f"UPDATE exchange_holding SET open_orders = open_orders + 1 WHERE {A_HOLDING}",
        f"DELETE FROM exchange_holding WHERE {A_HOLDING}",
        f"DELETE FROM orders_order WHERE {RESTING}",
    ],
    "balances and reservations are not negative, and balances cover reservations": [
        "UPDATE exchange_broker SET reserved_cash = -0.0001 WHERE id = 'bench-1'",
        "UPDATE exchange_broker SET reserved_cash = cash + 0.0001 WHERE id = 'bench-1'",
        f"UPDATE exchange_holding SET reserved = -1 WHERE {A_HOLDING}",
        f"UPDATE exchange_holding SET reserved = quantity + 1 WHERE {A_HOLDING}",
    ],
    "filled quantities and values equal those of the orders' trades": [
        f"UPDATE orders_order SET filled_quantity = filled_quantity + 1 WHERE {PARTLY_FILLED}",
        f"UPDATE orders_order SET filled_value = filled_value + 0.0001 WHERE {FILLED}",
        f"UPDATE orders_order SET filled_value = 1 WHERE {NEVER_FILLED}",
        f"UPDATE orders_order SET filled_quantity = 0, filled_value = 0 WHERE {FILLED}",
        f"DELETE FROM orders_order WHERE {FILLED}",
        f"DELETE FROM orders_trade WHERE {A_TRADE}",
        f"UPDATE orders_trade SET ask_order_id = uuidv7() WHERE {A_TRADE}",
    ],
    "trades have a bid and an ask of their instrument, at a price within both limits": [
        f"UPDATE orders_trade SET bid_order_id = uuidv7() WHERE {A_TRADE}",
        f"UPDATE orders_trade SET ask_order_id = uuidv7() WHERE {A_TRADE}",
        f"UPDATE orders_trade SET bid_order_id = ask_order_id, bid_broker_id = ask_broker_id WHERE {A_TRADE}",
        f"UPDATE orders_trade SET ask_order_id = bid_order_id, ask_broker_id = bid_broker_id WHERE {A_TRADE}",
        f"UPDATE orders_trade SET symbol = 'S2' WHERE {A_TRADE}",
        f"UPDATE orders_order SET symbol = 'S2' WHERE {FILLED}",
        f"UPDATE orders_trade SET bid_broker_id = 'nobody' WHERE {A_TRADE}",
        f"UPDATE orders_trade SET ask_broker_id = 'nobody' WHERE {A_TRADE}",
        f"UPDATE orders_trade SET price = 1000 WHERE {A_TRADE}",
        f"UPDATE orders_trade SET price = 1 WHERE {A_TRADE}",
    ],
    "orders, trades and events refer to existing brokers and instruments": [
        f"UPDATE orders_order SET broker_id = 'nobody' WHERE {NEVER_FILLED}",
        f"UPDATE orders_order SET symbol = 'NONE' WHERE {NEVER_FILLED}",
        f"UPDATE orders_trade SET bid_broker_id = 'nobody' WHERE {A_TRADE}",
        f"UPDATE orders_trade SET ask_broker_id = 'nobody' WHERE {A_TRADE}",
        f"UPDATE orders_trade SET symbol = 'NONE' WHERE {A_TRADE}",
        f"UPDATE webhooks_event SET broker_id = 'nobody' WHERE {LAST_EVENT}",
        "DELETE FROM exchange_broker WHERE id = 'bench-1'",
        "DELETE FROM exchange_instrument WHERE symbol = 'S1'",
    ],
    "deliveries refer to existing events and subscriptions": [
        "UPDATE webhooks_delivery SET event_id = uuidv7()",
        "UPDATE webhooks_delivery SET subscription_id = uuidv7()",
        "DELETE FROM webhooks_event WHERE broker_id = 'bench-1' AND sequence = 1",
        "DELETE FROM webhooks_subscription WHERE broker_id = 'bench-1'",
    ],
    "no book is crossed": [
        f"UPDATE orders_order SET price = 1000 WHERE {RESTING}",
        f"UPDATE orders_order SET price = 100.01 WHERE {RESTING}",
    ],
    "statuses match filled quantities, and only orders that can rest are working": [
        f"UPDATE orders_order SET status = 'pending' WHERE {FILLED}",
        f"UPDATE orders_order SET status = 'partially_filled' WHERE {FILLED}",
        f"UPDATE orders_order SET status = 'partially_filled' WHERE {RESTING}",
        f"UPDATE orders_order SET status = 'filled' WHERE {NEVER_FILLED}",
        f"UPDATE orders_order SET status = 'cancelled', cancelled_at = created_at WHERE {FILLED}",
        f"UPDATE orders_order SET status = 'expired', expired_at = created_at WHERE {FILLED}",
        f"UPDATE orders_order SET cancelled_at = NULL WHERE {NEVER_FILLED}",
        f"UPDATE orders_order SET expired_at = NULL WHERE {PARTLY_FILLED}",
        f"UPDATE orders_order SET type = 'market' WHERE {RESTING}",
        f"UPDATE orders_order SET time_in_force = 'ioc' WHERE {RESTING}",
        f"UPDATE orders_order SET time_in_force = 'fok' WHERE {RESTING}",
    ],
    "arrival numbers are unique and within the sequence of their book": [
        f"UPDATE orders_order SET sequence = 1 WHERE {RESTING}",
        f"UPDATE orders_order SET sequence = 0 WHERE {RESTING}",
        f"UPDATE orders_order SET sequence = 1 + (SELECT sequence FROM exchange_instrument WHERE symbol = 'S1') "
        f"WHERE {RESTING}",
        "UPDATE exchange_instrument SET sequence = sequence - 1 WHERE symbol = 'S1'",
    ],
    "client_order_ids are unique": [
        "UPDATE orders_order SET client_order_id = 'same', broker_id = 'bench-1' WHERE status = 'pending'",
    ],
    "transfer references are unique": [
        "UPDATE exchange_transfer SET reference = 'same' WHERE broker_id = 'bench-1'",
    ],
    "events of a broker are numbered from 1 without gaps": [
        "DELETE FROM webhooks_event WHERE broker_id = 'bench-1' AND sequence = 1",
        "DELETE FROM webhooks_event WHERE broker_id = 'bench-1' AND sequence = 2",
        f"DELETE FROM webhooks_event WHERE {LAST_EVENT}",
        "DELETE FROM webhooks_event WHERE broker_id = 'bench-1'",
        "UPDATE webhooks_event SET sequence = 3 WHERE broker_id = 'bench-1' AND sequence = 2",  # one twice, one missing
        "UPDATE webhooks_event SET sequence = sequence - 1 WHERE broker_id = 'bench-1'",
        "UPDATE exchange_broker SET event_sequence = event_sequence + 1 WHERE id = 'bench-1'",
    ],
    "trades, cancels and expiries have events, and events have causes": [
        f"DELETE FROM webhooks_event WHERE {LAST_EVENT}; {FORGET_LAST}",
        f"UPDATE webhooks_event SET type = 'order.none' WHERE {LAST_EVENT}",
        f"DELETE FROM orders_trade WHERE {A_TRADE}",
        f"UPDATE orders_order SET status = 'cancelled' WHERE {PARTLY_FILLED}",
        f"UPDATE orders_order SET cancel_reason = 'fok_not_filled' WHERE {NEVER_FILLED}",
        f"UPDATE orders_order SET cancel_reason = 'by_broker' WHERE {PARTLY_FILLED}",
    ],
    "the audit log is complete and unchanged": [  # more in test_audit_chain.py
        "UPDATE exchange_audithead SET number = 1",
        "UPDATE exchange_audithead SET hash = sha256('')",
        "DELETE FROM exchange_audithead",
    ],
}


@pytest.fixture
def sound_history(transactional_db: None) -> None:
    """A small history without inconsistencies."""
    history.load_history(
        celery_processes.environment()["DATABASE_URL"],
        orders=100,
        trades=80,
        deliveries=20,
        resting=16,
        brokers=3,
        symbols=2,
    )


@contextmanager
def rolled_back() -> Iterator[None]:
    """Roll back every change of the `with` block."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def run(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def failed_checks() -> set[str]:
    """The checks with findings, each with an example."""
    with connection.cursor() as cursor:
        found = [finding for finding in checks.findings(cursor) if finding.count]
    assert all(finding.examples for finding in found)
    return {finding.check for finding in found}


def failed_checks_after(sql: str) -> set[str]:
    with rolled_back():
        for statement in sql.split("; "):
            run(statement)
        return failed_checks()


def test_each_inconsistency_is_found_by_its_check(sound_history: None) -> None:
    assert INCONSISTENCIES.keys() == checks.CHECKS.keys()
    with rolled_back():
        run(DROP_CONSTRAINTS)
        assert failed_checks() == set()
        pairs = [(check, sql) for check, changes in INCONSISTENCIES.items() for sql in changes]
        missed = [(check, sql) for check, sql in pairs if check not in failed_checks_after(sql)]
    assert missed == []


def test_checks_read_one_snapshot_and_change_nothing(sound_history: None) -> None:
    give = "UPDATE exchange_broker SET cash = cash + 1 WHERE id = 'bench-1'"
    take = give.replace("+", "-")
    with checks.snapshot() as cursor:
        first = list(checks.findings(cursor))
        start_thread(partial(run, give)).result(TIMEOUT_SECONDS)
        second = list(checks.findings(cursor))
        with pytest.raises(InternalError, match="read-only transaction"), transaction.atomic():
            cursor.execute(give)

    assert [finding.count for finding in first + second] == [0] * 2 * len(checks.CHECKS)
    assert failed_checks() == {"cash equals transfers plus sales minus purchases"}
    run(take)


def test_checks_have_their_own_session_settings(transactional_db: None) -> None:
    before = session()
    with checks.snapshot():
        during = session()

    assert during["statement_timeout"] == f"{settings.RECONCILE_STATEMENT_TIMEOUT_MS // 60_000}min"
    assert during["work_mem"] == settings.RECONCILE_WORK_MEM
    assert session() == before
    assert before["statement_timeout"] == f"{settings.DATABASE_STATEMENT_TIMEOUT_MS // 1_000}s"


def session() -> dict[str, str]:
    """All settings of this connection."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW ALL")
        return {name: value for name, value, _ in cursor.fetchall()}


def test_the_command_reports_success_and_timings(sound_history: None) -> None:
    lines = output("--timings")

    *checked, end_of_audit, verdict = lines
    assert verdict == "No differences."
    assert end_of_audit == f"The audit log ends with {AuditHead.objects.get()}."
    assert [re.sub(r"^ +0 +\d+\.\d\d s  ", "", line) for line in checked] == list(checks.CHECKS)
    assert output()[:-2] == [f"{0:>8}  {check}" for check in checks.CHECKS]


def test_the_command_fails_on_differences(sound_history: None) -> None:
    count_one_more = "UPDATE exchange_broker SET event_sequence = event_sequence + 1 WHERE id IN ('bench-1', 'bench-2')"
    run(count_one_more)

    with pytest.raises(CommandError, match="2 differences") as caught:
        output()
    assert caught.value.returncode == 1
    run(count_one_more.replace("+", "-"))


def output(*arguments: str) -> list[str]:
    out = io.StringIO()
    call_command("reconcile", *arguments, stdout=out)
    return out.getvalue().splitlines()
