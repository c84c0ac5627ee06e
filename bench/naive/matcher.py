"""Place and cancel as transactions on the product's tables, with the ORM only."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.core.serializers.json import DjangoJSONEncoder
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from exchange.models import Broker, Holding, Instrument
from orders.models import Order, Trade
from webhooks.models import Event

WORKING = ["pending", "partially_filled"]
TICK = Decimal("0.01")


class Rejected(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


@transaction.atomic
def place(broker_id: str, form: dict[str, Any]) -> tuple[Order, list[Trade]]:
    """Match a new order with the book; its remainder rests, if it may."""
    order = _validated(broker_id, form)
    instrument = Instrument.objects.select_for_update().get(symbol=form["symbol"])
    makers = list(_makers(order))
    brokers = _locked({broker_id, *(maker.broker_id for maker in makers)})
    holdings = {each.broker_id: each for each in Holding.objects.filter(instrument=instrument, broker__in=brokers)}
    for each in brokers:
        holdings.setdefault(each, Holding(broker=brokers[each], instrument=instrument))
    _require_funds(order, makers, brokers[broker_id], holdings[broker_id])
    instrument.sequence += 1
    instrument.save()
    order.sequence, trades = instrument.sequence, []
    for maker in makers:
        if order.remaining_quantity == 0:
            break
        trades.append(_trade(order, maker, brokers, holdings))
    if order.remaining_quantity and (order.type == "market" or order.time_in_force == "ioc"):
        order.status, order.cancelled_at = "cancelled", order.created_at
        order.cancel_reason = "no_liquidity" if order.type == "market" else "ioc_remainder"
    if order.status in WORKING:
        _reserve(order, brokers[broker_id], holdings[broker_id], order.remaining_quantity)
        holdings[broker_id].open_orders += 1
        brokers[broker_id].save()
        holdings[broker_id].save()
    order.save()
    return order, trades


@transaction.atomic
def cancel(broker_id: str, order_id: UUID) -> Order:
    """Cancel a working order."""
    found = Order.objects.filter(pk=order_id, broker=broker_id).first()
    if found is None:
        raise Rejected(404, "order_not_found")
    instrument = Instrument.objects.select_for_update().get(pk=found.instrument_id)
    order = Order.objects.get(pk=order_id)
    if order.status not in WORKING:
        raise Rejected(409, "order_not_cancellable")
    broker = _locked({broker_id})[broker_id]
    holding = Holding.objects.get(broker=broker, instrument=instrument)
    order.status, order.cancel_reason, order.cancelled_at = "cancelled", "by_broker", timezone.now()
    order.save()
    instrument.sequence += 1
    instrument.save()
    _reserve(order, broker, holding, -order.remaining_quantity)
    holding.open_orders -= 1
    holding.save()
    _publish(broker, "order.cancelled", order, order.cancelled_at)
    broker.save()
    return order


def _validated(broker_id: str, form: dict[str, Any]) -> Order:
    now, price = timezone.now(), form.get("price")
    if form["broker_id"] != broker_id:
        raise Rejected(403, "broker_mismatch")
    if form["quantity"] <= 0 or form["side"] not in ("bid", "ask") or (price and price % TICK):
        raise Rejected(400, "validation_error")
    expires_at = parse_datetime(form["expires_at"]) if "expires_at" in form else None
    if form.get("time_in_force") == "day":
        expires_at = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return Order(
        client_order_id=form.get("client_order_id"),
        broker_id=broker_id,
        document_number=form["document_number"],
        instrument_id=form["symbol"],
        type=form.get("type", "limit"),
        side=form["side"],
        price=price,
        quantity=form["quantity"],
        status="pending",
        time_in_force=form.get("time_in_force", "gtd" if price else "ioc"),
        expires_at=expires_at,
        created_at=now,
    )


def _makers(order: Order) -> Any:
    """Return the opposite orders that cross the order, best first."""
    crossing = Order.objects.working().filter(Q(expires_at=None) | Q(expires_at__gt=order.created_at))
    crossing = crossing.filter(instrument=order.instrument_id, side="ask" if order.side == "bid" else "bid")
    if order.price is not None:
        crossing = crossing.filter(rank__lte=order.price if order.side == "bid" else -order.price)
    return crossing.order_by("rank", "sequence")


def _locked(broker_ids: set[str]) -> dict[str, Broker]:
    """Lock brokers in the order of their ids, so that orders in two symbols cannot deadlock."""
    return {each.pk: each for each in Broker.objects.select_for_update().filter(pk__in=broker_ids).order_by("pk")}


def _require_funds(order: Order, makers: list[Order], broker: Broker, holding: Holding) -> None:
    if order.side == "ask" and holding.quantity - holding.reserved < order.quantity:
        raise Rejected(409, "insufficient_holdings")
    cost, left = (order.price or Decimal(0)) * order.quantity, order.quantity
    if order.price is None:
        for maker in makers:
            cost += maker.price * min(left, maker.remaining_quantity)  # type: ignore[operator]
            left -= min(left, maker.remaining_quantity)
    if order.side == "bid" and broker.cash - broker.reserved_cash < cost:
        raise Rejected(409, "insufficient_balance")


def _trade(order: Order, maker: Order, brokers: dict[str, Broker], holdings: dict[str, Holding]) -> Trade:
    """Store one fill at the seller's price, with all its effects."""
    quantity = min(order.remaining_quantity, maker.remaining_quantity)
    bid, ask = (order, maker) if order.side == "bid" else (maker, order)
    price = maker.price if ask.price is None else ask.price
    assert price is not None
    _reserve(maker, brokers[maker.broker_id], holdings[maker.broker_id], -quantity)
    for each, sign in ((bid, 1), (ask, -1)):
        broker, holding = brokers[each.broker_id], holdings[each.broker_id]
        broker.cash -= sign * price * quantity
        holding.quantity += sign * quantity
        each.filled_quantity += quantity
        each.filled_value += price * quantity
        each.status = "partially_filled" if each.remaining_quantity else "filled"
    maker.save()
    if maker.status == "filled":
        holdings[maker.broker_id].open_orders -= 1
    trade = Trade.objects.create(
        instrument_id=order.instrument_id,
        price=price,
        quantity=quantity,
        taker_side=order.side,
        bid_order=bid,
        ask_order=ask,
        bid_broker_id=bid.broker_id,
        ask_broker_id=ask.broker_id,
        executed_at=order.created_at,
    )
    for each in (bid, ask):
        _publish(brokers[each.broker_id], "trade.executed", each, trade.executed_at)
        brokers[each.broker_id].save()
        holdings[each.broker_id].save()
    return trade


def _reserve(order: Order, broker: Broker, holding: Holding, quantity: int) -> None:
    """Reserve funds for `quantity` of the order; a negative quantity releases them."""
    if order.side == "bid":
        assert order.price is not None
        broker.reserved_cash += order.price * quantity
    else:
        holding.reserved += quantity


def _publish(broker: Broker, event: str, order: Order, at: datetime) -> None:
    broker.event_sequence += 1
    body = {"event": event, "data": {"order_id": order.pk, "symbol": order.symbol, "status": order.status}}
    text = DjangoJSONEncoder().encode(body)
    Event.objects.create(broker=broker, sequence=broker.event_sequence, type=event, occurred_at=at, body=text)
