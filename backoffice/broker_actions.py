"""Operator actions on brokers: admission, transfers, keys, suspension and the kill switch."""

from collections.abc import Sequence
from typing import Any

from django import forms

from backoffice import form_fields
from backoffice.links import page_url
from backoffice.operator_actions import ActionResult, Impact, OperatorAction, ReasonForm
from backoffice.queries import open_orders
from backoffice.templatetags.formatting import utc
from exchange import services as exchange_services
from exchange.audit import Actor
from exchange.errors import FieldError, OutcomeUnknown, ValidationFailed
from exchange.models import Broker, Holding, Instrument, Transfer
from exchange.rules import MAX_NAME_LENGTH, BrokerStatus, Scope
from orders import services

MAX_HOLDINGS_LENGTH = 64 * 1024  # characters of the form field, as the limit of a request body
HOLDING_ROWS = 100


class HoldingsField(forms.CharField):
    """Symbols and quantities, one pair per line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_length=MAX_HOLDINGS_LENGTH, widget=forms.Textarea(attrs={"rows": 4}), **options)
        self._symbol, self._shares = form_fields.symbol(), form_fields.shares()

    def clean(self, value: Any) -> dict[str, int]:
        holdings: dict[str, int] = {}
        errors: list[str] = []
        for number, line in enumerate(super().clean(value).splitlines(), start=1):
            if line.strip():
                errors += [f"Line {number}: {each}" for each in self._read(line, holdings)]
        if errors:
            raise forms.ValidationError(errors)
        return holdings

    def _read(self, line: str, holdings: dict[str, int]) -> list[str]:
        """Add a line's shares to `holdings`, or return its errors."""
        symbol, _, quantity = line.strip().partition(" ")
        try:
            symbol, shares = self._symbol.clean(symbol), self._shares.clean(quantity)
        except forms.ValidationError as error:
            return error.messages
        if symbol in holdings:
            return [f"Enter {symbol} only once."]
        holdings[symbol] = shares
        return []


class AdmitBrokerForm(ReasonForm):
    broker_id = form_fields.broker_id(label="Broker ID", help_text="Letters, digits, - and _. Cannot be changed later.")
    initial_cash = form_fields.amount(initial="0", help_text="0 to 10^15, at most 4 decimals.")
    initial_holdings = HoldingsField(
        required=False,
        help_text="One per line: SYMBOL quantity. Symbols that are not listed must be confirmed.",
    )
    field_order = ["broker_id", "initial_cash", "initial_holdings", "reason"]


class AdmitBroker(OperatorAction):
    name = "admit"
    label = "Admit broker"
    explanation = (
        "The broker can trade immediately. Its cash and shares are booked as transfers. Its first API key is shown on "
        "the next page, only once."
    )
    permission = "exchange.admit_broker"
    form_class = AdmitBrokerForm
    max_subjects = 0

    def changes(self, rows: Sequence[Any], **fields: Any) -> Impact | None:
        """Return the symbols that are not listed: instruments to list, or typing errors."""
        holdings: dict[str, int] = fields["initial_holdings"]
        unlisted = sorted(
            holdings.keys() - set(Instrument.objects.filter(pk__in=holdings).values_list("pk", flat=True))
        )
        if not unlisted:
            return None
        cells = [(symbol, holdings[symbol]) for symbol in unlisted]
        return Impact("New instruments, not listed yet", ("Symbol", "Shares"), cells)

    def perform(self, by: Actor, subjects: Sequence[Any], **fields: Any) -> ActionResult:
        broker, key = exchange_services.create_broker(**fields, by=by)
        return ActionResult(f"{broker} admitted. First API key (scope: trade):", key, url=page_url(Broker, broker.pk))


# --- Transfers ------------------------------------------------------------------------------------------------------


class TransferForm(ReasonForm):
    reference = form_fields.reference(help_text="Unique id of the transfer. The same reference is never booked twice.")


class TransferCashForm(TransferForm):
    cash = form_fields.amount(signed=True, label="Amount", help_text="1000.00 is a deposit, -1000.00 a withdrawal.")
    field_order = ["reference", "cash", "reason"]


class TransferSharesForm(TransferForm):
    symbol = form_fields.symbol()
    quantity = form_fields.shares(signed=True, label="Shares", help_text="100 is a deposit, -100 a withdrawal.")
    field_order = ["reference", "symbol", "quantity", "reason"]


class BookTransfer(OperatorAction):
    """Base of the transfer actions; the form determines cash or shares."""

    permission = "exchange.book_transfer"
    is_reviewed = True

    def changes(self, rows: Sequence[Broker], *, reference: str = "", **fields: Any) -> Impact | None:
        """Return the balance before and after, unless the reference is already booked, so that nothing changes."""
        if Transfer.objects.filter(reference=reference).exists():
            return None
        total, reserved, moved = self.balance(rows[0], **fields)
        cells = [
            ("Total", total, total + moved),
            ("Reserved", reserved, reserved),
            ("Available", total - reserved, total - reserved + moved),
        ]
        return Impact(f"Balance of {rows[0]}", ("", "Before", "After"), cells)

    def balance(self, broker: Broker, **fields: Any) -> tuple[Any, Any, Any]:
        """Return the total and reserved balance, and the amount of the transfer."""
        raise NotImplementedError

    def perform(self, by: Actor, subjects: Sequence[Broker], **fields: Any) -> ActionResult:
        values = {"cash": None, "symbol": None, "quantity": None} | fields
        transfer, is_new = exchange_services.transfer(subjects[0].pk, **values, by=by)
        if is_new:
            return ActionResult(f"{transfer} booked: {_amount(transfer)}.")
        return ActionResult(
            f"{transfer} was already booked at {utc(transfer.created_at)}. Nothing was changed.",
            is_warning=True,
        )


def _amount(transfer: Transfer) -> str:
    if transfer.cash is not None:
        return f"{transfer.cash:+,.4f}".removesuffix("00") + " cash"
    return f"{transfer.quantity:+,} shares of {transfer.instrument_id}"


class TransferCash(BookTransfer):
    name = "transfer-cash"
    label = "Transfer cash"
    label_format = "Transfer cash for {}"
    explanation = "Deposits or withdraws cash, once per reference. Cash reserved by open orders cannot be withdrawn."
    form_class = TransferCashForm

    def impact(self, rows: Sequence[Broker]) -> Impact:
        (broker,) = rows
        cells = [(broker.pk, broker.cash, broker.reserved_cash, broker.cash - broker.reserved_cash)]
        return Impact("Cash now", ("Broker", "Total", "Reserved", "Available"), cells)

    def balance(self, broker: Broker, **fields: Any) -> tuple[Any, Any, Any]:
        return broker.cash, broker.reserved_cash, fields["cash"]


class TransferShares(BookTransfer):
    name = "transfer-shares"
    label = "Transfer shares"
    label_format = "Transfer shares for {}"
    explanation = (
        "Deposits or withdraws shares, once per reference. Shares reserved by open orders cannot be withdrawn."
    )
    form_class = TransferSharesForm

    def impact(self, rows: Sequence[Broker]) -> Impact:
        holdings = Holding.objects.filter(broker=rows[0], quantity__gt=0).order_by("instrument")[:HOLDING_ROWS]
        cells = [
            (each.instrument_id, int(each.quantity), int(each.reserved), int(each.quantity - each.reserved))
            for each in holdings
        ]
        return Impact("Shares now", ("Symbol", "Total", "Reserved", "Available"), cells)

    def balance(self, broker: Broker, **fields: Any) -> tuple[Any, Any, Any]:
        holding = Holding.objects.filter(broker=broker, instrument=fields["symbol"]).first() or Holding()
        return int(holding.quantity), int(holding.reserved), fields["quantity"]


# --- Keys -----------------------------------------------------------------------------------------------------------

_SCOPES = ((Scope.TRADE.value, "trade: place and cancel orders, read"), (Scope.READ.value, "read: read only"))


class IssueKeyForm(ReasonForm):
    name = forms.CharField(
        max_length=MAX_NAME_LENGTH, required=False, help_text="The person or system that will use the key."
    )
    scope = forms.ChoiceField(choices=_SCOPES)
    expires_at = form_fields.utc_datetime(required=False, label="Expires (UTC)", help_text="Leave blank for no expiry.")
    field_order = ["name", "scope", "expires_at", "reason"]


class IssueKey(OperatorAction):
    name = "issue-key"
    label = "Issue key"
    label_format = "Issue key for {}"
    explanation = (
        "The new API key works immediately; existing keys stay valid. It is shown on the next page, only once."
    )
    permission = "exchange.issue_key"
    form_class = IssueKeyForm

    def perform(self, by: Actor, subjects: Sequence[Broker], *, scope: str = "", **fields: Any) -> ActionResult:
        key, secret = exchange_services.issue_key(subjects[0].pk, **fields, scopes=(Scope(scope),), by=by)
        return ActionResult(f"API key {key} for {subjects[0]} (scope: {scope}):", secret)


# --- Suspension -----------------------------------------------------------------------------------------------------


class SuspensionAction(OperatorAction):
    """Base of the actions that suspend a broker. Their pages show its open orders."""

    def impact(self, rows: Sequence[Broker]) -> Impact:
        orders = open_orders.of_brokers([row.pk for row in rows])
        cells = [(row.pk, row.status, *orders[row.pk].texts) for row in rows]
        return Impact("Broker now", ("Broker", "Status", "Open orders", "Value"), cells)


class SuspendBroker(SuspensionAction):
    name = "suspend"
    label = "Suspend"
    explanation = (
        "New orders of the broker are rejected. Its resting orders stay in the book and can trade; it can still cancel "
        "them."
    )
    permission = "exchange.suspend_broker"

    def applies_to(self, row: Broker) -> bool:
        return row.status == BrokerStatus.ACTIVE

    def perform(self, by: Actor, subjects: Sequence[Broker], **fields: Any) -> ActionResult:
        services.suspend(subjects[0].pk, cancel_orders=False, **fields, by=by)
        return ActionResult(f"{subjects[0]} suspended.")


class ReinstateBroker(OperatorAction):
    name = "reinstate"
    label = "Reinstate"
    explanation = "The broker can place orders again."
    permission = "exchange.suspend_broker"

    def applies_to(self, row: Broker) -> bool:
        return row.status == BrokerStatus.SUSPENDED

    def perform(self, by: Actor, subjects: Sequence[Broker], **fields: Any) -> ActionResult:
        services.reinstate(subjects[0].pk, **fields, by=by)
        return ActionResult(f"{subjects[0]} reinstated.")


class StopBrokerForm(ReasonForm):
    confirmation = forms.CharField(
        max_length=64,
        strip=False,
        label="Type the broker ID to confirm",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    field_order = ["confirmation", "reason"]


class StopBroker(SuspensionAction):
    name = "stop"
    label = "Suspend and cancel all orders"
    label_format = "Suspend {} and cancel all orders"
    explanation = (
        "Kill switch: rejects new orders of the broker, then cancels all its open orders in all instruments. This "
        "cannot be undone. The page responds after the last cancel, which takes some seconds to a minute for many "
        "thousands of orders. If it fails, submit it again to cancel the remaining orders."
    )
    permission = "exchange.stop_broker"
    form_class = StopBrokerForm
    is_dangerous = True

    def perform(self, by: Actor, subjects: Sequence[Broker], *, confirmation: str = "", **fields: Any) -> ActionResult:
        (broker,) = subjects
        if confirmation != broker.pk:
            raise ValidationFailed(
                errors=[FieldError("confirmation", "differs", f"Does not match. Type {broker.pk} exactly.")]
            )
        try:
            cancelled = services.suspend(broker.pk, cancel_orders=True, **fields, by=by)
        except OutcomeUnknown as error:
            raise OutcomeUnknown(
                "The broker is suspended, but some of its orders may still be open. Submit again to cancel them."
            ) from error
        return ActionResult(f"{broker} suspended, {_orders(cancelled)} cancelled.")


def _orders(count: int) -> str:
    return "1 order" if count == 1 else f"{count:,} orders"
