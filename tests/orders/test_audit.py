"""Operators' changes of orders are audited in their transaction; brokers' changes are not."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from django.db import DatabaseError
from django.utils import timezone
from pytest_django import Settings

from exchange.audit import Actor, ActorKind
from exchange.models import AuditEntry
from orders import services
from orders.enums import CancelReason, OrderStatus, Side, TimeInForce
from orders.matching import service
from orders.matching.commands import Cancelled, CancelOrder, CancelOrders
from orders.models import Order
from tests import api, trading
from tests.exchange.client import Client
from tests.trading import execute_one, new_audit_entries, place

pytestmark = pytest.mark.django_db(transaction=True)

OLGA = Actor(ActorKind.USER, "olga", "192.0.2.7", "r-1")


def action_of(entry: AuditEntry) -> tuple[Any, ...]:
    return entry.action, entry.subject, entry.reason, entry.before, entry.after


def actor_of(entry: AuditEntry) -> tuple[str, ...]:
    return entry.actor_kind, entry.actor, entry.address, entry.request_id


def by_operator(order: Order, reason: str = "") -> CancelOrder:
    return CancelOrder(order.pk, None, CancelReason.BY_OPERATOR, OLGA, reason)


def cancelled(filled: int, remaining: int) -> dict[str, Any]:
    return {
        "status": "cancelled",
        "broker_id": "alice",
        "symbol": "AAPL",
        "filled_quantity": filled,
        "remaining_quantity": remaining,
    }


# --- Single cancels -------------------------------------------------------------------------------------------------


def test_a_cancel_by_an_operator_is_audited(alice: Client, bob: Client, operator: Client) -> None:
    untouched, partly = place(Side.BID, 5, "10"), place(Side.ASK, 5, "11")
    place(Side.BID, 2, "11", by="bob")
    with new_audit_entries() as entries:
        responses = [operator.delete(f"/orders/{order.pk}") for order in (untouched, partly)]

    assert [response.status for response in responses] == [200, 200]
    assert [action_of(each) for each in entries] == [
        ("order.cancel", str(untouched.pk), "", {"status": "pending"}, cancelled(0, 5)),
        ("order.cancel", str(partly.pk), "", {"status": "partially_filled"}, cancelled(2, 3)),
    ]
    key = str(operator.key).split("_")[1]
    assert [actor_of(each) for each in entries] == [
        ("key", key, "127.0.0.1", response.headers["X-Request-Id"]) for response in responses
    ]


def test_each_successful_cancel_of_a_batch_is_audited(alice: Client) -> None:
    first, second = place(Side.BID, 1, "10"), place(Side.BID, 2, "10")
    with new_audit_entries() as entries:
        service.execute(
            [
                by_operator(first, "error"),
                by_operator(first, "twice"),
                by_operator(second, "error"),
                trading.order(Side.BID, 1, "9"),
            ]
        )

    assert [(each.subject, each.reason, actor_of(each)) for each in entries] == [
        (str(order.pk), "error", ("user", "olga", "192.0.2.7", "r-1")) for order in (first, second)
    ]


def test_cancels_by_brokers_are_not_audited(alice: Client) -> None:
    orders = [place(Side.BID, 1, "10") for _ in range(3)]
    with new_audit_entries() as entries:
        assert alice.delete(f"/orders/{orders[0].pk}").status == 200
        assert alice.delete("/orders?all=true").body == {"cancelled": 2}

    assert entries == []


def test_a_rejected_cancel_is_not_audited(alice: Client, operator: Client) -> None:
    ended, due = place(Side.BID, 1, "10"), place(Side.BID, 1, "10")
    trading.cancel(ended)
    Order.objects.filter(pk=due.pk).update(expires_at=timezone.now(), time_in_force=TimeInForce.GTD)
    api.assert_rejected(operator, "DELETE", f"/orders/{ended.pk}")
    api.assert_rejected(operator, "DELETE", f"/orders/{UUID(int=1)}")
    with new_audit_entries() as entries:
        assert operator.delete(f"/orders/{due.pk}").code == "order_not_cancellable"  # it has expired

    assert Order.objects.get(pk=due.pk).status == OrderStatus.EXPIRED
    assert entries == []


# --- Mass cancels ---------------------------------------------------------------------------------------------------


def test_each_batch_of_a_mass_cancel_by_an_operator_is_audited(
    alice: Client, bob: Client, operator: Client, settings: Settings
) -> None:
    settings.SWEEP_BATCH = 2
    trading.instrument("PETR4")
    for symbol, count in (("AAPL", 3), ("PETR4", 1)):
        for _ in range(count):
            place(Side.BID, 1, "10", symbol=symbol)
    place(Side.ASK, 1, "11")
    with new_audit_entries() as entries:
        response = operator.delete("/orders?broker_id=alice&side=bid")

    assert response.body == {"cancelled": 4}
    assert [action_of(each) for each in entries] == [
        ("broker.cancel_orders", "alice", "", None, {"symbol": symbol, "side": "bid", "cancelled": count})
        for symbol, count in (("AAPL", 2), ("AAPL", 1), ("PETR4", 1))
    ]
    key = str(operator.key).split("_")[1]
    assert {actor_of(each) for each in entries} == {("key", key, "127.0.0.1", response.headers["X-Request-Id"])}


def test_a_suspension_with_cancels_is_audited_with_its_reason(alice: Client, operator: Client) -> None:
    for side, price in ((Side.BID, "10"), (Side.ASK, "11")):
        place(side, 1, price)
    body = {"cancel_orders": True, "reason": "default"}
    with new_audit_entries() as entries:
        assert operator.post("/brokers/alice/suspend", body).body["cancelled_orders"] == 2

    assert [action_of(each) for each in entries] == [
        ("broker.suspend", "alice", "default", {"status": "active"}, {"status": "suspended"}),
        ("broker.cancel_orders", "alice", "default", None, {"symbol": "AAPL", "side": None, "cancelled": 2}),
    ]


def test_a_mass_cancel_of_no_orders_is_not_audited(alice: Client) -> None:
    place(Side.BID, 1, "10")
    ivan = Actor(ActorKind.USER, "ivan")
    sweeps = [CancelOrders("alice", "AAPL", CancelReason.BY_OPERATOR, None, by, "error") for by in (OLGA, ivan)]
    with new_audit_entries() as entries:
        assert [getattr(outcome, "cancelled", None) for outcome in service.execute(sweeps)] == [1, 0]

    assert [each.actor for each in entries] == ["olga"]


def test_orders_expired_by_a_mass_cancel_are_not_audited_as_cancelled(alice: Client) -> None:
    place(Side.BID, 1, "10")
    Order.objects.update(expires_at=timezone.now() - timedelta(seconds=1), time_in_force=TimeInForce.GTD)
    with new_audit_entries() as entries:
        assert services.cancel_all("alice", reason=CancelReason.BY_OPERATOR, by=OLGA) == 0

    assert Order.objects.get().status == OrderStatus.EXPIRED
    assert entries == []


# --- Atomicity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["exchange_auditentry", "orders_order"])
@pytest.mark.parametrize("command", ["one", "all"])
def test_a_cancel_and_its_audit_entry_are_atomic(alice: Client, table: str, command: str) -> None:
    order = place(Side.BID, 1, "10")
    commands: dict[str, Callable[[], Any]] = {
        "one": partial(execute_one, by_operator(order)),
        "all": partial(services.cancel_all, "alice", reason=CancelReason.BY_OPERATOR, by=OLGA),
    }
    before = trading.snapshot()
    with trading.failing_commits(table), pytest.raises(DatabaseError, match="not this one"):
        commands[command]()

    assert trading.snapshot() == before
    with new_audit_entries() as entries:
        assert isinstance(execute_one(by_operator(order)), Cancelled)
    assert len(entries) == 1
