"""Operator actions on brokers, instruments and keys: one transaction each, under the lock of the row that it changes.

Transfers and suspensions lock only the broker, halts only the instrument. Times are read from the database's clock
after locking. Each action is recorded in the audit log in the same transaction, also if it changes nothing (`before`
and `after` are then equal).
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import structlog
from django.conf import settings
from django.db import IntegrityError, InterfaceError, OperationalError, connection, transaction
from django.db.models import F, ProtectedError

from exchange import audit, errors
from exchange.audit import Action, Actor, Entry
from exchange.database import database_now, lock_timeout
from exchange.errors import FieldError
from exchange.keys import invalidate_key, new_key
from exchange.models import ApiKey, Broker, Holding, Instrument, Transfer
from exchange.rules import (
    MAX_NOTIONAL,
    BrokerStatus,
    InstrumentStatus,
    Pricing,
    Scope,
    price_decimals,
    round_cash,
    rounded,
)

_log = structlog.get_logger(__name__)


def create_broker(
    broker_id: str, *, initial_cash: Decimal, initial_holdings: Mapping[str, int], by: Actor, reason: str = ""
) -> tuple[Broker, str]:
    """Admit a broker. Returns it and its first key, which is shown once; the initial funds are booked as transfers."""
    with transaction.atomic(durable=True):
        now = database_now()
        broker = Broker(id=broker_id, cash=initial_cash, created_at=now, updated_at=now)
        try:
            broker.save(force_insert=True)  # waits for a concurrent transaction with the same id
        except IntegrityError as error:
            raise errors.BrokerAlreadyExists(f"Broker {broker_id} already exists.") from error
        shares = sorted(initial_holdings.items())
        while unlisted := initial_holdings.keys() - _lock_against_removal(initial_holdings):
            instruments = [_new_instrument(symbol, now) for symbol in sorted(unlisted)]  # sorted, to prevent deadlocks
            Instrument.objects.bulk_create(instruments, ignore_conflicts=True)
        Holding.objects.bulk_create(Holding(broker=broker, instrument_id=symbol, quantity=n) for symbol, n in shares)
        Transfer.objects.bulk_create(_initial_transfers(broker, shares, now))
        api_key, key = _add_key(broker_id, "", (Scope.TRADE,), None, now)
        listed = Instrument.objects.filter(pk__in=initial_holdings, created_at=now)  # by this transaction
        admitted = {
            "status": broker.status,
            "cash": round_cash(broker.cash),
            "holdings": dict(shares),
            "listed": sorted(listed.values_list("symbol", flat=True)),
            "key": api_key.prefix,
        }
        audit.record(Entry.of(by, Action.BROKER_ADMIT, broker_id, reason=reason, after=admitted))
        return broker, key


def _initial_transfers(broker: Broker, shares: Iterable[tuple[str, int]], now: datetime) -> Iterable[Transfer]:
    """Yield the transfers of a broker's initial funds. Their references have a slash, which the API does not allow."""
    reference, common = f"initial/{broker.pk}/", {"broker": broker, "created_at": now}
    if broker.cash:
        yield Transfer(reference=f"{reference}cash", cash=broker.cash, reason="initial cash", **common)
    for symbol, n in shares:
        yield Transfer(
            reference=f"{reference}{symbol}", instrument_id=symbol, quantity=n, reason="initial holding", **common
        )


def set_broker_status(broker_id: str, status: BrokerStatus, *, reason: str, by: Actor) -> None:
    """Suspend or reinstate a broker, with effect on all orders placed afterwards."""
    action = Action.BROKER_SUSPEND if status is BrokerStatus.SUSPENDED else Action.BROKER_REINSTATE
    with transaction.atomic(durable=True):
        broker = _lock_broker(broker_id)
        Broker.objects.filter(pk=broker_id).update(status=status)
        before, after = {"status": broker.status}, {"status": status}
        audit.record(Entry.of(by, action, broker_id, reason=reason, before=before, after=after))


def _lock_broker(broker_id: str) -> Broker:
    broker = Broker.objects.select_for_update(no_key=True, of=("self",)).filter(pk=broker_id).first()
    if broker is None:
        raise errors.BrokerNotFound(f"Broker {broker_id} does not exist.")
    return broker


def require_broker(broker_id: str) -> None:
    """Raise `BrokerNotFound` if the broker does not exist. Brokers are never deleted."""
    if not Broker.objects.filter(pk=broker_id).exists():
        raise errors.BrokerNotFound(f"Broker {broker_id} does not exist.")


def issue_key(
    broker_id: str | None,
    *,
    name: str = "",
    scopes: Iterable[Scope] = (Scope.TRADE,),
    expires_at: datetime | None = None,
    by: Actor,
    reason: str = "",
) -> tuple[ApiKey, str]:
    """Issue a key to a broker, or to an operator without `broker_id`. The key itself is returned once, not stored."""
    with transaction.atomic(durable=True):
        if broker_id is not None:
            require_broker(broker_id)
        now = database_now()
        if expires_at is not None and expires_at <= now:
            raise errors.ValidationFailed(errors=[FieldError("expires_at", "in_the_past", "Must be in the future.")])
        api_key, key = _add_key(broker_id, name, scopes, expires_at, now)
        issued = {"broker_id": broker_id, "name": name, "scopes": api_key.scopes, "expires_at": expires_at}
        audit.record(Entry.of(by, Action.KEY_ISSUE, api_key.prefix, reason=reason, after=issued))
        return api_key, key


def _add_key(
    broker_id: str | None, name: str, scopes: Iterable[Scope], expires_at: datetime | None, now: datetime
) -> tuple[ApiKey, str]:
    key, prefix, secret_hash = new_key()
    api_key = ApiKey.objects.create(
        prefix=prefix,
        secret_hash=secret_hash,
        broker_id=broker_id,
        name=name,
        scopes=sorted(set(scopes)),
        created_at=now,
        expires_at=expires_at,
    )
    return api_key, key


def revoke_key(broker_id: str | None, prefix: str, *, by: Actor, reason: str = "") -> None:
    """Revoke a key of a broker, or of an operator without `broker_id`. Revoking it again changes nothing."""
    with transaction.atomic(durable=True):
        if broker_id is not None:
            require_broker(broker_id)
        keys = ApiKey.objects.filter(broker_id=broker_id, prefix=prefix)
        api_key = keys.select_for_update(no_key=True, of=("self",)).first()
        if api_key is None:
            raise errors.KeyNotFound(f"Broker {broker_id} has no key {prefix}." if broker_id else "")
        revoked_at = api_key.revoked_at or database_now()
        keys.update(revoked_at=revoked_at)
        before = {"broker_id": broker_id, "name": api_key.name, "revoked_at": api_key.revoked_at}
        after = before | {"revoked_at": revoked_at}
        audit.record(Entry.of(by, Action.KEY_REVOKE, prefix, reason=reason, before=before, after=after))
    invalidate_key(prefix)  # after the commit: a lookup before it would cache the key again


# --- Transfers ------------------------------------------------------------------------------------------------------


def transfer(
    broker_id: str,
    *,
    reference: str,
    cash: Decimal | None = None,
    symbol: str | None = None,
    quantity: int | None = None,
    reason: str,
    by: Actor,
) -> tuple[Transfer, bool]:
    """Book a transfer of cash or shares, once per `reference`. Returns the transfer, and whether it is new."""
    wanted = Transfer(
        reference=reference, broker_id=broker_id, cash=cash, instrument_id=symbol, quantity=quantity, reason=reason
    )
    try:
        return _book_once(wanted, by)
    except _ReferenceJustTaken:
        return _book_once(wanted, by)  # finds the transfer that took the reference


class _ReferenceJustTaken(Exception):
    """A transfer of another broker, which another lock protects, took the reference concurrently."""


def _book_once(wanted: Transfer, by: Actor) -> tuple[Transfer, bool]:
    with transaction.atomic(durable=True):
        broker = _lock_broker(wanted.broker_id)
        booked = Transfer.objects.filter(reference=wanted.reference).first()
        if booked is not None:
            _require_same(booked, wanted)
            return booked, False
        wanted.created_at = database_now()
        try:
            wanted.save(force_insert=True)
        except IntegrityError as error:
            raise _ReferenceJustTaken from error
        before, after = _move_cash(broker, wanted.cash) if wanted.cash is not None else _move_shares(wanted)
        Broker.objects.filter(pk=broker.pk).update(updated_at=wanted.created_at)
        after |= {"reference": wanted.reference}
        audit.record(Entry.of(by, Action.BROKER_TRANSFER, broker.pk, reason=wanted.reason, before=before, after=after))
        return wanted, True


_COMPARED = {
    "broker_id": "broker_id",
    "cash": "cash",
    "symbol": "instrument_id",
    "quantity": "quantity",
    "reason": "reason",
}


def _require_same(booked: Transfer, wanted: Transfer) -> None:
    differing = [name for name, column in _COMPARED.items() if getattr(booked, column) != getattr(wanted, column)]
    if differing:
        raise errors.TransferReferenceConflict(
            errors=[FieldError(name, "differs", "Differs from the booked transfer.") for name in differing]
        )


def _move_cash(broker: Broker, cash: Decimal) -> tuple[dict[str, Any], dict[str, Any]]:
    """Change the cash balance. Returns it before and after, for the audit log."""
    if cash < 0 and broker.cash + cash < broker.reserved_cash:
        available = round_cash(broker.cash - broker.reserved_cash)
        raise errors.InsufficientBalance(f"Insufficient cash: {available} available.")
    Broker.objects.filter(pk=broker.pk).update(cash=F("cash") + cash)
    before = {"cash": round_cash(broker.cash), "reserved_cash": round_cash(broker.reserved_cash)}
    return before, before | {"cash": round_cash(broker.cash + cash)}


def _move_shares(wanted: Transfer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Change the holding. Returns it before and after, for the audit log."""
    assert wanted.quantity is not None
    assert wanted.instrument_id is not None
    if not _lock_against_removal([wanted.instrument_id]):
        raise errors.SymbolNotFound(f"No instrument {wanted.instrument_id} is listed.")
    holding = Holding.objects.filter(broker_id=wanted.broker_id, instrument_id=wanted.instrument_id).first()
    owned, reserved = (int(holding.quantity), int(holding.reserved)) if holding else (0, 0)
    available = owned - reserved
    if wanted.quantity < 0 and available + wanted.quantity < 0:
        raise errors.InsufficientHoldings(f"Insufficient shares: {available} {wanted.instrument_id} available.")
    if holding:
        Holding.objects.filter(pk=holding.pk).update(quantity=F("quantity") + wanted.quantity)
    else:
        Holding.objects.create(broker_id=wanted.broker_id, instrument_id=wanted.instrument_id, quantity=wanted.quantity)
    before = {"symbol": wanted.instrument_id, "quantity": owned, "reserved_quantity": reserved}
    return before, before | {"quantity": owned + wanted.quantity}


# --- Instruments ----------------------------------------------------------------------------------------------------


def list_instrument(
    symbol: str,
    *,
    name: str = "",
    tick_size: Decimal = Decimal("0.01"),
    lot_size: int = 1,
    pricing: Pricing = Pricing.SELLER,
    by: Actor,
    reason: str = "",
) -> Instrument:
    """List a new instrument. Its name defaults to the symbol."""
    require_possible_orders(tick_size, lot_size)
    with transaction.atomic(durable=True):
        instrument = _new_instrument(symbol, database_now())
        instrument.name = name or symbol
        instrument.tick_size, instrument.lot_size, instrument.pricing = tick_size, lot_size, pricing
        try:
            instrument.save(force_insert=True)
        except IntegrityError as error:
            raise errors.SymbolAlreadyListed(f"Instrument {symbol} is already listed.") from error
        after = instrument_rules(instrument)
        audit.record(Entry.of(by, Action.INSTRUMENT_LIST, symbol, reason=reason, after=after))
        return instrument


def require_possible_orders(tick_size: Decimal, lot_size: int) -> None:
    """Raise `ValidationFailed` if even the smallest limit order would exceed the largest value of an order."""
    if tick_size * lot_size > MAX_NOTIONAL:
        detail = "tick_size times lot_size may be at most 10^15, the largest value of an order."
        raise errors.ValidationFailed(errors=[FieldError("tick_size", "notional_too_large", detail)])


def remove_instrument(symbol: str, *, by: Actor, reason: str = "") -> None:
    """Remove an instrument that was never ordered or held."""
    with transaction.atomic(durable=True):
        instrument = lock_instrument(symbol, for_removal=True)
        if instrument.sequence:  # the number of changes of its book: orders have no foreign key in the database
            raise errors.InstrumentInUse
        before = instrument_rules(instrument)
        try:
            instrument.delete()
        except ProtectedError as error:
            raise errors.InstrumentInUse from error
        audit.record(Entry.of(by, Action.INSTRUMENT_REMOVE, symbol, reason=reason, before=before))


def _lock_against_removal(symbols: Iterable[str]) -> set[str]:
    """Lock the listed ones of these instruments against removal only, and return their symbols.

    It does not wait for books. Checking the foreign keys at the commit would be too late: the audit log is locked then,
    for which a removal waits.
    """
    statement = "SELECT symbol FROM exchange_instrument WHERE symbol = ANY(%s) ORDER BY symbol FOR KEY SHARE"
    with connection.cursor() as cursor:
        cursor.execute(statement, [list(symbols)])
        return {symbol for (symbol,) in cursor.fetchall()}


def instrument_rules(instrument: Instrument) -> dict[str, Any]:
    """Return the rules of an instrument that operators set, for the audit log."""
    return {
        "name": instrument.name,
        "tick_size": rounded(instrument.tick_size, price_decimals(instrument.tick_size)),
        "lot_size": instrument.lot_size,
        "pricing": instrument.pricing,
    }


def get_instrument(symbol: str) -> Instrument:
    """Return the instrument with this symbol, or raise `SymbolNotFound`."""
    instrument = Instrument.objects.filter(pk=symbol).first()
    if instrument is None:
        raise errors.SymbolNotFound(f"No instrument {symbol} is listed.")
    return instrument


def lock_instrument(symbol: str, *, for_removal: bool = False) -> Instrument:
    """Return the instrument, with its book locked until the transaction ends."""
    locked = Instrument.objects.select_for_update(no_key=not for_removal, of=("self",))
    instrument = locked.filter(pk=symbol).first()
    if instrument is None:
        raise errors.SymbolNotFound(f"No instrument {symbol} is listed.")
    return instrument


def _new_instrument(symbol: str, now: datetime) -> Instrument:
    return Instrument(symbol=symbol, name=symbol, created_at=now)


def halt(symbol: str, reason: str = "", *, by: Actor) -> Instrument:
    """Halt trading: new orders are rejected, cancels and expiry continue."""
    return _set_instrument_status(symbol, InstrumentStatus.HALTED, reason, by)


def resume(symbol: str, reason: str = "", *, by: Actor) -> Instrument:
    """Resume trading in an instrument."""
    return _set_instrument_status(symbol, InstrumentStatus.TRADING, reason, by)


def halt_all(reason: str, *, by: Actor) -> tuple[list[str], list[str]]:
    """Halt all trading instruments. Returns the symbols that were halted, and those that could not be.

    Each has its own transaction. Locked books do not delay the others: they are retried at the end.
    """
    trading = Instrument.objects.filter(status=InstrumentStatus.TRADING).order_by("symbol")
    symbols = list(trading.values_list("symbol", flat=True))
    with lock_timeout(settings.HALT_LOCK_TIMEOUT):
        locked = [symbol for symbol in symbols if not _try_halt(symbol, reason, by)]
    failed = [symbol for symbol in locked if not _try_halt(symbol, reason, by)]
    return [symbol for symbol in symbols if symbol not in failed], failed


def _try_halt(symbol: str, reason: str, by: Actor) -> bool:
    """Halt an instrument; False if its lock could not be taken in time or the connection failed."""
    try:
        halt(symbol, reason, by=by)
    except (OperationalError, InterfaceError) as error:
        _log.warning("halt_failed", symbol=symbol, error=str(error))
        return False
    return True


def _set_instrument_status(symbol: str, status: InstrumentStatus, reason: str, by: Actor) -> Instrument:
    action = Action.INSTRUMENT_HALT if status is InstrumentStatus.HALTED else Action.INSTRUMENT_RESUME
    with transaction.atomic(durable=True):
        instrument = lock_instrument(symbol)
        before = {"status": instrument.status, "halt_reason": instrument.halt_reason}
        Instrument.objects.filter(pk=symbol).update(status=status, halt_reason=reason)
        instrument.status, instrument.halt_reason = status, reason
        after = {"status": status, "halt_reason": reason}
        audit.record(Entry.of(by, action, symbol, reason=reason, before=before, after=after))
        return instrument
