"""Applies commands to books and balances, in plain Python, on rows that were read under the locks.

A `Market` holds the books, orders and brokers that a batch can touch. `Market.apply` changes them and returns an
outcome, without any I/O. `orders.matching.store` saves the changes that the market has collected.
"""

from bisect import insort
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

import msgspec
import uuid_utils.compat as uuid_utils

from exchange import errors
from exchange.audit import Action, Actor, Entry
from exchange.errors import ExchangeError, FieldError
from exchange.rules import BrokerStatus, InstrumentStatus, price_decimals, round_cash, rounded
from orders.enums import CancelReason, OrderStatus, OrderType, Side, TimeInForce
from orders.matching.commands import (
    Accepted,
    Cancelled,
    CancelOrder,
    CancelOrders,
    Command,
    ExpireOrders,
    Outcome,
    PlaceOrder,
    Replayed,
    Swept,
)
from orders.matching.events import OrderClosed, TradeExecuted
from orders.matching.rules import Fill, Maker, match
from orders.matching.state import BookState, BrokerState, OrderState, Position, TradeState
from webhooks.models import EventType
from webhooks.outbox import NewEvent


@dataclass(slots=True)
class Market:
    """The rows that a batch can touch, and the changes that it has made."""

    now: datetime
    books: dict[str, BookState]
    brokers: dict[str, BrokerState]
    orders: dict[UUID, OrderState]
    sweeps: dict[CancelOrders | ExpireOrders, list[OrderState]]
    earlier_trades: dict[UUID, list[TradeState]]  # for the orders to cancel
    max_open_orders: int
    skip_busy: bool = False  # a book or a broker that is missing here may be locked
    # The cost of each new order whose makers were not read.
    unread_costs: dict[UUID, Decimal] = field(default_factory=dict)

    new_orders: list[OrderState] = field(default_factory=list)
    changed_orders: dict[UUID, OrderState] = field(default_factory=dict)
    trades: list[TradeState] = field(default_factory=list)
    events: list[NewEvent] = field(default_factory=list)
    audit: list[Entry] = field(default_factory=list)
    changed_books: dict[str, BookState] = field(default_factory=dict)
    changed_brokers: dict[str, BrokerState] = field(default_factory=dict)
    changed_positions: dict[tuple[str, str], Position] = field(default_factory=dict)

    def apply(self, command: Command) -> Outcome:
        """Apply one command and return its outcome.

        A rejected command changes nothing, except that a cancel expires an order past its `expires_at`.
        """
        match command:
            case PlaceOrder():
                return self._place(command)
            case CancelOrder():
                return self._cancel(command)
            case CancelOrders() | ExpireOrders():
                return self._sweep(command)

    # --- Placing ----------------------------------------------------------------------------------------------------

    def _place(self, command: PlaceOrder) -> Outcome:
        book, broker = self.books.get(command.symbol), self.brokers.get(command.broker_id)
        if book is None:
            return self._missing_book(command.symbol)
        if broker is None:
            return errors.Overloaded() if self.skip_busy else errors.BrokerNotFound()
        if command.client_order_id in broker.used_client_order_ids:
            return _replay(command, broker.used_client_order_ids[command.client_order_id])
        error = (
            _check_rules(command, book, self.now)
            or _check_status(book, broker)
            or _check_open_orders(command, broker, self.max_open_orders)
            or _check_funds(command, broker)
        )
        if error:
            return error
        if command.order_id in self.unread_costs:
            # If funds arrived before the lock, the order may trade, but its makers were not read.
            return _check_cash(self.unread_costs[command.order_id], broker) or errors.Overloaded()
        fills = self._match(command, book)
        if not all(self.orders[fill.order_id].broker_id in self.brokers for fill in fills):
            return errors.Overloaded()  # it would trade with a broker that is locked
        error = _check_fill_count(command, book, fills) or _check_market_bid_cash(command, broker, fills)
        if error:
            return error
        return self._accept(command, book, broker, fills)

    def _missing_book(self, symbol: str) -> ExchangeError:
        return errors.Overloaded() if self.skip_busy else errors.SymbolNotFound(f"No instrument {symbol} is listed.")

    def _match(self, command: PlaceOrder, book: BookState) -> list[Fill]:
        makers = (
            Maker(order.id, order.limit, order.remaining_quantity)
            for order in book.resting[command.side.opposite]
            if order.is_working and not order.is_due(self.now)
        )
        return match(
            side=command.side,
            quantity=command.quantity,
            limit=command.price,
            time_in_force=command.time_in_force,
            pricing=book.pricing,
            book=makers,
        )

    def _accept(self, command: PlaceOrder, book: BookState, broker: BrokerState, fills: list[Fill]) -> Accepted:
        order = self._new_order(command, book)
        self.new_orders.append(order)
        self.changed_books[book.symbol] = book
        if command.client_order_id is not None:
            broker.used_client_order_ids[command.client_order_id] = order
        trades = [self._settle(fill, taker=order, book=book) for fill in fills]
        _drop_closed(book.resting[order.side.opposite])
        if order.remaining_quantity:
            self._rest_or_cancel(order, book)
        # A copy, because later commands of the batch may fill this order.
        return Accepted(copy(order), trades, price_decimals(book.tick_size))

    def _new_order(self, command: PlaceOrder, book: BookState) -> OrderState:
        is_day = command.time_in_force is TimeInForce.DAY
        return OrderState(
            id=command.order_id,
            client_order_id=command.client_order_id,
            broker_id=command.broker_id,
            document_number=command.document_number,
            symbol=command.symbol,
            sequence=book.next_sequence(),
            type=command.type,
            side=command.side,
            price=command.price,
            quantity=command.quantity,
            time_in_force=command.time_in_force,
            expires_at=_next_midnight(self.now) if is_day else command.expires_at,
            created_at=self.now,
        )

    def _rest_or_cancel(self, order: OrderState, book: BookState) -> None:
        """Rest the remainder in the book and reserve its cost, or cancel it if its time in force requires that."""
        if order.time_in_force is TimeInForce.FOK:
            order.cancel(self.now, CancelReason.FOK_NOT_FILLED)
        elif order.type is OrderType.MARKET:
            order.cancel(self.now, CancelReason.NO_LIQUIDITY)
        elif order.time_in_force is TimeInForce.IOC:
            order.cancel(self.now, CancelReason.IOC_REMAINDER)
        else:
            self._reserve(order, order.remaining_quantity)
            self._count_open(order, 1)
            self.orders[order.id] = order
            insort(book.resting[order.side], order, key=lambda resting: resting.priority)

    # --- Settling ---------------------------------------------------------------------------------------------------

    def _settle(self, fill: Fill, *, taker: OrderState, book: BookState) -> TradeState:
        """Execute one fill: move shares and cash, and publish the trade to both brokers."""
        maker = self.orders[fill.order_id]
        bid, ask = (taker, maker) if taker.side is Side.BID else (maker, taker)
        value = fill.price * fill.quantity
        self._reserve(maker, -fill.quantity)
        self._credit(bid.broker_id, book.symbol, cash=-value, shares=fill.quantity)
        self._credit(ask.broker_id, book.symbol, cash=value, shares=-fill.quantity)
        bid.fill(fill.quantity, value)
        ask.fill(fill.quantity, value)
        if not maker.is_working:
            self._count_open(maker, -1)
        self._mark_changed(maker, book)
        trade = TradeState(
            id=uuid_utils.uuid7(),
            symbol=book.symbol,
            price=fill.price,
            quantity=fill.quantity,
            taker_side=taker.side,
            bid_order_id=bid.id,
            ask_order_id=ask.id,
            bid_broker_id=bid.broker_id,
            ask_broker_id=ask.broker_id,
            executed_at=self.now,
        )
        self.trades.append(trade)
        price = rounded(trade.price, price_decimals(book.tick_size))
        for order in (maker, taker):
            self._add_event(order, EventType.TRADE_EXECUTED, self.now, TradeExecuted.of(trade, order, price))
        return trade

    def _reserve(self, order: OrderState, quantity: int) -> None:
        """Reserve the cash or shares for `quantity` of a resting order. A negative quantity releases them."""
        broker = self._broker_to_change(order.broker_id)
        if order.side is Side.BID:
            broker.reserved_cash += order.limit * quantity
        else:
            self._position_to_change(broker, order.symbol).reserved += quantity

    def _count_open(self, order: OrderState, change: int) -> None:
        """Count a resting order that is added (1) or removed (-1)."""
        self._position_to_change(self._broker_to_change(order.broker_id), order.symbol).open_orders += change

    def _credit(self, broker_id: str, symbol: str, *, cash: Decimal, shares: int) -> None:
        broker = self._broker_to_change(broker_id)
        broker.cash += cash
        self._position_to_change(broker, symbol).quantity += shares

    def _broker_to_change(self, broker_id: str) -> BrokerState:
        """The broker, which is going to be saved."""
        broker = self.changed_brokers[broker_id] = self.brokers[broker_id]
        return broker

    def _position_to_change(self, broker: BrokerState, symbol: str) -> Position:
        position = self.changed_positions[broker.id, symbol] = broker.position(symbol)
        return position

    def _mark_changed(self, order: OrderState, book: BookState) -> None:
        """Record that a resting order has changed, and with it the book."""
        book.next_sequence()
        self.changed_books[book.symbol] = book
        self.changed_orders[order.id] = order

    def _add_event(self, order: OrderState, type_: EventType, occurred_at: datetime, data: msgspec.Struct) -> None:
        broker = self._broker_to_change(order.broker_id)
        broker.event_sequence += 1
        self.events.append(NewEvent(broker.id, broker.event_sequence, type_, occurred_at, data))

    # --- Closing ----------------------------------------------------------------------------------------------------

    def _cancel(self, command: CancelOrder) -> Outcome:
        order = self.orders.get(command.order_id)
        if order is None or command.broker_id not in (None, order.broker_id):
            return errors.OrderNotFound()
        if order.symbol not in self.books or order.broker_id not in self.brokers:
            return errors.Overloaded()  # not read, because they are locked
        if order.is_working and order.is_due(self.now):
            self._expire_resting(order)
        if not order.is_working:
            return errors.OrderNotCancellable(f"The order is already {order.status}.")
        status = order.status
        self._cancel_resting(order, command.reason)
        if command.by is not None:
            self.audit.append(_cancel_audit_entry(order, status, command.by, command.audit_reason))
        return Cancelled(copy(order), self._trades_of(order), price_decimals(self.books[order.symbol].tick_size))

    def _trades_of(self, order: OrderState) -> list[TradeState]:
        now = [trade for trade in self.trades if order.id in (trade.bid_order_id, trade.ask_order_id)]
        return self.earlier_trades.get(order.id, []) + now

    def _sweep(self, command: CancelOrders | ExpireOrders) -> Swept:
        found = self.sweeps.get(command, [])
        targets = [order for order in found if order.is_working and order.broker_id in self.brokers]
        due = [order for order in targets if order.is_due(self.now)]
        for order in due:
            self._expire_resting(order)
        if isinstance(command, ExpireOrders):
            return Swept(closed=len(due), cancelled=0)
        for order in targets:
            if order.is_working:
                self._cancel_resting(order, command.reason)
        cancelled = len(targets) - len(due)
        if command.by is not None and cancelled:
            after = {"symbol": command.symbol, "side": command.side, "cancelled": cancelled}
            act = Action.BROKER_CANCEL_ORDERS
            self.audit.append(Entry.of(command.by, act, command.broker_id, reason=command.audit_reason, after=after))
        return Swept(closed=len(targets), cancelled=cancelled)

    def _cancel_resting(self, order: OrderState, reason: CancelReason) -> None:
        order.cancel(self.now, reason)
        self._close(order, EventType.ORDER_CANCELLED, self.now)

    def _expire_resting(self, order: OrderState) -> None:
        assert order.expires_at is not None
        order.expire()
        self._close(order, EventType.ORDER_EXPIRED, order.expires_at)

    def _close(self, order: OrderState, type_: EventType, occurred_at: datetime) -> None:
        book = self.books[order.symbol]
        self._reserve(order, -order.remaining_quantity)
        self._count_open(order, -1)
        self._mark_changed(order, book)
        price = rounded(order.limit, price_decimals(book.tick_size))
        self._add_event(order, type_, occurred_at, OrderClosed.of(order, price))


def _cancel_audit_entry(order: OrderState, status: OrderStatus, by: Actor, audit_reason: str) -> Entry:
    """The audit entry of an operator's cancel; `status` is the order's status before it."""
    after = {
        "status": order.status,
        "broker_id": order.broker_id,
        "symbol": order.symbol,
        "filled_quantity": order.filled_quantity,
        "remaining_quantity": order.remaining_quantity,
    }
    return Entry.of(by, Action.ORDER_CANCEL, order.id, reason=audit_reason, before={"status": status}, after=after)


# --- Checks of a new order ------------------------------------------------------------------------------------------


def _replay(command: PlaceOrder, earlier: OrderState) -> Outcome:
    """The earlier order, if the command has the same fields; otherwise, a conflict that names each difference."""
    names = ["document_number", "side", "symbol", "type", "price", "quantity", "time_in_force"]
    if TimeInForce.GTD in (command.time_in_force, earlier.time_in_force):
        names.append("expires_at")  # a day order's was computed, not sent
    differing = [name for name in names if getattr(command, name) != getattr(earlier, name)]
    if not differing:
        return Replayed(earlier.id)
    return errors.ClientOrderIdConflict(
        errors=[
            FieldError(name, "differs", f"The earlier order with this client_order_id has another {name}.")
            for name in differing
        ]
    )


def _check_rules(command: PlaceOrder, book: BookState, now: datetime) -> ExchangeError | None:
    """Check the tick, the lot and that the expiry is in the future; the error names all violations."""
    broken = []
    if command.expires_at is not None and command.expires_at <= now:
        broken.append(FieldError("expires_at", "in_the_past", "Must be in the future."))
    if command.price is not None and command.price % book.tick_size:
        broken.append(
            FieldError("price", "off_tick", f"Must be a multiple of the tick size, {book.tick_size.normalize():f}.")
        )
    if command.quantity % book.lot_size:
        broken.append(FieldError("quantity", "off_lot", f"Must be a multiple of the lot size, {book.lot_size}."))
    return errors.ValidationFailed(errors=broken) if broken else None


def _check_status(book: BookState, broker: BrokerState) -> ExchangeError | None:
    if book.status is InstrumentStatus.HALTED:
        return errors.InstrumentHalted(f"Trading in {book.symbol} is halted.")
    if broker.status is BrokerStatus.SUSPENDED:
        return errors.BrokerSuspended()
    return None


def _check_open_orders(command: PlaceOrder, broker: BrokerState, limit: int) -> ExchangeError | None:
    """Check the limit of open orders. It applies to every order that could rest, even if the order would be filled."""
    if command.time_in_force in (TimeInForce.IOC, TimeInForce.FOK):
        return None
    if broker.position(command.symbol).open_orders < limit:
        return None
    return errors.TooManyOpenOrders(f"The broker has {limit} open orders in {command.symbol}; cancel some first.")


def _check_fill_count(command: PlaceOrder, book: BookState, fills: list[Fill]) -> ExchangeError | None:
    """Reject a taker that would fill more resting orders than one transaction reads."""
    if command.side.opposite not in book.truncated_sides:
        return None
    filled = sum(fill.quantity for fill in fills)
    return errors.TooManyFills() if filled < command.quantity else None


def _check_funds(command: PlaceOrder, broker: BrokerState) -> ExchangeError | None:
    """Check that all shares of an ask, or the full value of a limit bid, are available."""
    if command.side is Side.BID:
        return None if command.price is None else _check_cash(command.price * command.quantity, broker)
    available = broker.position(command.symbol).available
    if command.quantity <= available:
        return None
    return errors.InsufficientHoldings(
        f"The order needs {command.quantity} {command.symbol}; {available} are available."
    )


def _check_market_bid_cash(command: PlaceOrder, broker: BrokerState, fills: list[Fill]) -> ExchangeError | None:
    """Check that the cost of a market bid's fills is available."""
    if command.side is Side.ASK or command.price is not None:
        return None
    return _check_cash(sum((fill.price * fill.quantity for fill in fills), Decimal(0)), broker)


def _check_cash(cash: Decimal, broker: BrokerState) -> ExchangeError | None:
    if cash <= broker.available_cash:
        return None
    return errors.InsufficientBalance(
        f"The order needs {round_cash(cash)}; {round_cash(broker.available_cash)} is available."
    )


def _drop_closed(side: list[OrderState]) -> None:
    """Remove closed orders from the front, so that the next taker does not iterate over them."""
    done = next((index for index, order in enumerate(side) if order.is_working), len(side))
    del side[:done]


def _next_midnight(now: datetime) -> datetime:
    return (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
