"""Random operations on PostgreSQL: every step keeps every invariant and conserves cash and shares."""

from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from exchange import services as exchange_services
from exchange.errors import ExchangeError, InsufficientBalance
from exchange.models import Broker, Holding
from orders import expiry, services
from orders.enums import CancelReason, OrderType, Side, TimeInForce
from orders.matching import service
from orders.matching.commands import Accepted, CancelOrder, PlaceOrder
from orders.models import Order
from tests import trading
from tests.trading import BY

BROKERS = ("alice", "bob", "carol")
SYMBOLS = ("AAPL", "PETR4")

brokers, symbols = st.sampled_from(BROKERS), st.sampled_from(SYMBOLS)
limit_shapes = st.tuples(
    st.integers(95, 105).map(lambda ticks: Decimal(ticks) / 10),
    st.sampled_from([TimeInForce.GTC, TimeInForce.GTC, TimeInForce.GTD, TimeInForce.IOC, TimeInForce.FOK]),
)
market_shapes = st.tuples(st.none(), st.sampled_from([TimeInForce.IOC, TimeInForce.FOK]))


@st.composite
def orders(draw: st.DrawFn) -> PlaceOrder:
    price, time_in_force = draw(st.one_of(limit_shapes, limit_shapes, market_shapes))
    return PlaceOrder(
        broker_id=draw(brokers),
        document_number="1",
        side=draw(st.sampled_from(Side)),
        symbol=draw(symbols),
        quantity=draw(st.integers(1, 12)),
        type=OrderType.MARKET if price is None else OrderType.LIMIT,
        price=price,
        time_in_force=time_in_force,
        expires_at=timezone.now() + timedelta(hours=1) if time_in_force is TimeInForce.GTD else None,
        client_order_id=draw(st.none() | st.sampled_from(["a", "b", "c"])),
    )


class Exchange(RuleBasedStateMachine):
    """Random orders, batches, cancels, expiries, transfers and suspensions."""

    placed = Bundle("placed")

    @initialize()
    def open(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "TRUNCATE exchange_broker, exchange_instrument, orders_order, orders_trade, webhooks_event,"
                " webhooks_delivery CASCADE"
            )
        for broker_id in BROKERS:
            trading.broker(broker_id, cash=500, holdings=dict.fromkeys(SYMBOLS, 30))
        self.totals = self._totals()

    @rule(target=placed, commands=st.lists(orders(), min_size=1, max_size=6))
    def place(self, commands: list[PlaceOrder]) -> object:
        outcomes = service.execute(commands)
        return multiple(*(outcome.order.id for outcome in outcomes if isinstance(outcome, Accepted)))

    @rule(order_id=placed)
    def cancel(self, order_id: UUID) -> None:
        order = Order.objects.get(pk=order_id)
        outcome = trading.cancel(order)
        is_expired = order.expires_at is not None and order.expires_at <= timezone.now()
        is_working = order.status in ("pending", "partially_filled") and not is_expired
        assert isinstance(outcome, ExchangeError) != is_working

    @rule(order_ids=st.lists(placed, max_size=3), commands=st.lists(orders(), max_size=3))
    def cancel_and_place_in_one_batch(self, order_ids: list[UUID], commands: list[PlaceOrder]) -> None:
        service.execute([*(CancelOrder(order_id, None) for order_id in order_ids), *commands])

    @rule(order_id=placed)
    def let_expire(self, order_id: UUID) -> None:
        past = timezone.now() - timedelta(seconds=1)
        Order.objects.filter(pk=order_id, expires_at__isnull=False, status="pending").update(expires_at=past)

    @rule()
    def sweep(self) -> None:
        expiry.expire_due_orders()
        assert not Order.objects.due(timezone.now()).exists()

    @rule(broker_id=brokers)
    def suspend_and_reinstate(self, broker_id: str) -> None:
        services.suspend(broker_id, cancel_orders=True, by=BY)
        assert not Order.objects.working().filter(broker=broker_id).exists()
        services.reinstate(broker_id, by=BY)

    @rule(broker_id=brokers)
    def cancel_all(self, broker_id: str) -> None:
        services.cancel_all(broker_id, reason=CancelReason.BY_OPERATOR)

    @rule(broker_id=brokers, cash=st.integers(-200, 200).filter(bool))
    def transfer(self, broker_id: str, cash: int) -> None:
        reference = str(uuid4())
        with suppress(InsufficientBalance):
            exchange_services.transfer(broker_id, reference=reference, cash=Decimal(cash), reason="test", by=BY)
            self.totals["cash"] += cash

    @invariant()
    def every_invariant_holds(self) -> None:
        if hasattr(self, "totals"):
            trading.assert_sound()
            assert self._totals() == self.totals

    def _totals(self) -> dict[str, Decimal]:
        shares = {symbol: Decimal(0) for symbol in SYMBOLS}
        for holding in Holding.objects.all():
            shares[holding.instrument_id] += holding.quantity
        return {"cash": sum((broker.cash for broker in Broker.objects.all()), Decimal(0)), **shares}


@pytest.mark.django_db(transaction=True)
def test_random_operations_keep_every_invariant() -> None:
    Exchange.TestCase.settings = settings(
        max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    Exchange.TestCase().runTest()
