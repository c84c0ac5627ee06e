"""Operations on many orders at once, and changes of an instrument's rules."""

from collections.abc import Iterator
from decimal import Decimal

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Count, F, Min, Value

from exchange import audit
from exchange import services as exchange_services
from exchange.audit import Action, Actor, Entry
from exchange.database import already_committed
from exchange.errors import FieldError, ValidationFailed
from exchange.models import Instrument
from exchange.rules import BrokerStatus, Pricing, price_decimals, rounded
from orders.enums import CancelReason, Side
from orders.matching import service
from orders.matching.commands import CancelOrders, Swept
from orders.models import Order

_log = structlog.get_logger(__name__)


def cancel_all(
    broker_id: str,
    *,
    reason: CancelReason,
    symbol: str | None = None,
    side: Side | None = None,
    by: Actor | None = None,
    audit_reason: str = "",
) -> int:
    """Cancel a broker's working orders, or those of one symbol or side, in batches. Return the number cancelled.

    Each batch that an operator cancels is audited.
    """
    working = Order.objects.working().filter(broker=broker_id, side__in=[side] if side else Side)
    symbols = [symbol] if symbol else sorted(working.values_list("instrument", flat=True).distinct())
    sweeps = (_sweep(CancelOrders(broker_id, each, reason, side, by, audit_reason)) for each in symbols)
    batches = (swept.cancelled for sweep in sweeps for swept in sweep)
    first = next(batches, 0)
    with already_committed():
        return first + sum(batches)


def _sweep(command: CancelOrders) -> Iterator[Swept]:
    """Repeat a sweep, with one transaction per batch, until a batch is not full.

    It does not continue to an empty batch, because a broker that keeps placing orders could occupy it forever.
    """
    closed = settings.SWEEP_BATCH
    while closed >= settings.SWEEP_BATCH:
        (outcome,) = service.execute([command])
        assert isinstance(outcome, Swept)
        closed = outcome.closed
        if closed:
            yield outcome


def suspend(broker_id: str, *, cancel_orders: bool, reason: str = "", by: Actor) -> int:
    """Reject the broker's new orders and, with `cancel_orders`, cancel its resting ones. Return the number cancelled.

    The suspension commits first. New orders are checked under the broker's lock, so none rests after the cancels.
    """
    exchange_services.set_broker_status(broker_id, BrokerStatus.SUSPENDED, reason=reason, by=by)
    _log.info("broker_suspended", broker=broker_id, reason=reason)
    if not cancel_orders:
        return 0
    with already_committed():
        return cancel_all(broker_id, reason=CancelReason.BROKER_SUSPENDED, by=by, audit_reason=reason)


def reinstate(broker_id: str, *, reason: str = "", by: Actor) -> None:
    """Let a suspended broker place orders again."""
    exchange_services.set_broker_status(broker_id, BrokerStatus.ACTIVE, reason=reason, by=by)
    _log.info("broker_reinstated", broker=broker_id, reason=reason)


def edit_instrument(
    symbol: str, *, name: str, tick_size: Decimal, lot_size: int, pricing: Pricing, by: Actor, reason: str = ""
) -> Instrument:
    """Change an instrument's rules. Reject changes that its working orders would violate."""
    exchange_services.require_possible_orders(tick_size, lot_size)
    with transaction.atomic(durable=True):
        instrument = exchange_services.lock_instrument(symbol)
        before = exchange_services.instrument_rules(instrument)
        field_errors = [*_tick_errors(instrument, tick_size), *_lot_errors(instrument, lot_size)]
        if field_errors:
            raise ValidationFailed(errors=field_errors)
        instrument.name = name or symbol
        instrument.tick_size, instrument.lot_size, instrument.pricing = tick_size, lot_size, pricing
        after = exchange_services.instrument_rules(instrument)
        Instrument.objects.filter(pk=symbol).update(**after)
        audit.record(Entry.of(by, Action.INSTRUMENT_EDIT, symbol, reason=reason, before=before, after=after))
        return instrument


def _tick_errors(instrument: Instrument, tick_size: Decimal) -> Iterator[FieldError]:
    if instrument.tick_size % tick_size == 0:
        return  # every price on the old tick is on the new one
    decimals = price_decimals(instrument.tick_size)
    if instrument.sequence and price_decimals(tick_size) < decimals:
        detail = f"Past prices have {decimals} decimals. Choose a tick size with as many decimals."
        yield FieldError("tick_size", "off_tick", detail)
        return
    over = F("price") % Value(tick_size)
    off = Order.objects.working().filter(instrument=instrument).alias(over=over).exclude(over=0)
    found = off.aggregate(count=Count("pk"), example=Min("price"))
    if found["count"]:
        detail = _cancel_first("tick", found["count"], rounded(found["example"], decimals))
        yield FieldError("tick_size", "off_tick", detail)


def _lot_errors(instrument: Instrument, lot_size: int) -> Iterator[FieldError]:
    if instrument.lot_size % lot_size == 0:
        return
    left = F("quantity") - F("filled_quantity")
    off = Order.objects.working().filter(instrument=instrument).alias(over=left % lot_size).exclude(over=0)
    found = off.aggregate(count=Count("pk"), example=Min(left))
    if found["count"]:
        yield FieldError("lot_size", "off_lot", _cancel_first("lot", found["count"], f"{found['example']} remaining"))


def _cancel_first(rule: str, count: int, example: object) -> str:
    if count == 1:
        return f"1 open order is off this {rule} ({example}). Cancel it first."
    return f"{count:,} open orders are off this {rule} (for example {example}). Cancel them first."
