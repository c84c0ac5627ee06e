"""What is done to brokers: admitted, paid in and out, given keys, and stopped."""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.db.models import Sum

from backoffice import form_fields
from backoffice.links import page_url
from backoffice.operator_actions import ActionResult, OperatorAction, ReasonForm
from exchange import services as exchange_services
from exchange.audit import Actor
from exchange.errors import FieldError, OutcomeUnknown, ValidationFailed
from exchange.models import Broker, Transfer
from exchange.rules import MAX_NAME_LENGTH, BrokerStatus, Scope
from orders import services

MAX_HOLDINGS_LENGTH = 64 * 1024  # of what is written into one form, as of a request's body


class HoldingsField(forms.CharField):
    """Symbols and quantities, a line each."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_length=MAX_HOLDINGS_LENGTH, widget=forms.Textarea(attrs={"rows": 4}), **options)
        self._symbol, self._shares = form_fields.symbol(), form_fields.shares()

    def clean(self, value: Any) -> dict[str, int]:
        holdings: dict[str, int] = {}
        wrong: list[str] = []
        for number, line in enumerate(super().clean(value).splitlines(), start=1):
            if line.strip():
                wrong += [f"Line {number}: {each}" for each in self._read(line, holdings)]
        if wrong:
            raise forms.ValidationError(wrong)
        return holdings

    def _read(self, line: str, holdings: dict[str, int]) -> list[str]:
        """Add a line's shares to `holdings`, or say what is wrong with it."""
        symbol, _, quantity = line.strip().partition(" ")
        try:
            symbol, shares = self._symbol.clean(symbol), self._shares.clean(quantity)
        except forms.ValidationError as error:
            return error.messages
        if symbol in holdings:
            return [f"{symbol} may be named only once."]
        holdings[symbol] = shares
        return []


class AdmitBrokerForm(ReasonForm):
    broker_id = form_fields.broker_id(label="Broker id", help_text="Letters, digits, - and _. It cannot be changed.")
    initial_cash = form_fields.amount(initial="0", help_text="0 to 10^15, with 4 decimals at most.")
    initial_holdings = HoldingsField(
        required=False,
        help_text="A line each: SYMBOL quantity. Instruments that are not listed yet are listed.",
    )
    field_order = ["broker_id", "initial_cash", "initial_holdings", "reason"]


class AdmitBroker(OperatorAction):
    name = "admit"
    label = "Admit a broker"
    explanation = (
        "The broker may trade at once, with this cash and these shares; both are booked as transfers. "
        "Its first key is shown next, once."
    )
    permission = "exchange.admit_broker"
    form_class = AdmitBrokerForm
    max_subjects = 0

    def perform(self, by: Actor, subjects: Sequence[Any], **fields: Any) -> ActionResult:
        broker, key = exchange_services.create_broker(**fields, by=by)
        return ActionResult(
            f"{broker} is admitted. Its first key, which may trade:", key, url=page_url(Broker, broker.pk)
        )


# --- Transfers ------------------------------------------------------------------------------------------------------


class TransferForm(ReasonForm):
    reference = form_fields.reference(
        help_text="What the transfer is known by. With the same reference nothing is booked twice."
    )


class TransferCashForm(TransferForm):
    cash = form_fields.amount(signed=True, label="Amount", help_text="1000.00 comes in, -1000.00 goes out.")
    field_order = ["reference", "cash", "reason"]


class TransferSharesForm(TransferForm):
    symbol = form_fields.symbol()
    quantity = form_fields.shares(signed=True, label="Shares", help_text="100 come in, -100 go out.")
    field_order = ["reference", "symbol", "quantity", "reason"]


class BookTransfer(OperatorAction):
    """Cash or shares, as the form says."""

    permission = "exchange.book_transfer"

    def perform(self, by: Actor, subjects: Sequence[Broker], **fields: Any) -> ActionResult:
        wanted = {"cash": None, "symbol": None, "quantity": None} | fields
        transfer, is_new = exchange_services.transfer(subjects[0].pk, **wanted, by=by)
        if is_new:
            return ActionResult(f"{_amount(transfer)} booked as {transfer}.")
        return ActionResult(
            f"{transfer} was booked before, at {transfer.created_at:%Y-%m-%d %H:%M:%S} UTC. Nothing was booked now.",
            is_warning=True,
        )


def _amount(transfer: Transfer) -> str:
    if transfer.cash is not None:
        return f"{transfer.cash:+,.4f}".removesuffix("00") + " of cash is"
    return f"{transfer.quantity:+,} shares of {transfer.instrument_id} are"


class TransferCash(BookTransfer):
    name = "transfer-cash"
    label = "Transfer cash"
    explanation = "Cash comes in or goes out, once per reference. What open orders hold cannot go out."
    form_class = TransferCashForm


class TransferShares(BookTransfer):
    name = "transfer-shares"
    label = "Transfer shares"
    explanation = "Shares come in or go out, once per reference. What open orders hold cannot go out."
    form_class = TransferSharesForm


# --- Keys -----------------------------------------------------------------------------------------------------------

_SCOPES = ((Scope.TRADE.value, "trade: place, cancel and read"), (Scope.READ.value, "read: look only"))


class IssueKeyForm(ReasonForm):
    name = forms.CharField(max_length=MAX_NAME_LENGTH, required=False, help_text="Who or what will use it.")
    scope = forms.ChoiceField(choices=_SCOPES)
    expires_at = form_fields.utc_datetime(
        required=False, label="Expires (UTC)", help_text="Nothing: it works until it is revoked."
    )
    field_order = ["name", "scope", "expires_at", "reason"]


class IssueKey(OperatorAction):
    name = "issue-key"
    label = "Issue a key"
    explanation = "A new key of the broker works at once, beside those it has. It is shown next, once."
    permission = "exchange.issue_key"
    form_class = IssueKeyForm

    def perform(self, by: Actor, subjects: Sequence[Broker], *, scope: str = "", **fields: Any) -> ActionResult:
        key, secret = exchange_services.issue_key(subjects[0].pk, **fields, scopes=(Scope(scope),), by=by)
        return ActionResult(f"A new key of {subjects[0]}, which may {scope}, known by its prefix {key}:", secret)


# --- Stopped and started --------------------------------------------------------------------------------------------


class SuspendBroker(OperatorAction):
    name = "suspend"
    label = "Suspend"
    explanation = (
        "The broker's new orders are refused from now on. Those that rest stay and trade, and it may cancel them."
    )
    permission = "exchange.suspend_broker"

    def applies_to(self, row: Broker) -> bool:
        return row.status == BrokerStatus.ACTIVE

    def perform(self, by: Actor, subjects: Sequence[Broker], **fields: Any) -> ActionResult:
        services.suspend(subjects[0].pk, cancel_orders=False, **fields, by=by)
        return ActionResult(f"{subjects[0]} is suspended.")


class ReinstateBroker(OperatorAction):
    name = "reinstate"
    label = "Reinstate"
    explanation = "The broker may place orders again."
    permission = "exchange.suspend_broker"

    def applies_to(self, row: Broker) -> bool:
        return row.status == BrokerStatus.SUSPENDED

    def perform(self, by: Actor, subjects: Sequence[Broker], **fields: Any) -> ActionResult:
        services.reinstate(subjects[0].pk, **fields, by=by)
        return ActionResult(f"{subjects[0]} is reinstated.")


class StopBrokerForm(ReasonForm):
    confirmation = forms.CharField(
        max_length=64,
        strip=False,
        label="The broker's id, to confirm",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    field_order = ["confirmation", "reason"]


class StopBroker(OperatorAction):
    name = "stop"
    label = "Suspend and cancel everything"
    explanation = (
        "The kill switch. The broker's new orders are refused from now on, and then all its open orders are cancelled, "
        "in every instrument; that cannot be undone. It answers when the last is cancelled: with many thousands of "
        "orders that takes some seconds to a minute. If it fails on the way, press again: it goes on with what is left."
    )
    permission = "exchange.stop_broker"
    form_class = StopBrokerForm
    is_dangerous = True

    def describe(self, row: Broker) -> str:
        open_orders = row.holdings.aggregate(total=Sum("open_orders", default=0))["total"]
        return f"{row}: {row.status}, {_orders(int(open_orders))} open"

    def perform(self, by: Actor, subjects: Sequence[Broker], *, confirmation: str = "", **fields: Any) -> ActionResult:
        (broker,) = subjects
        if confirmation != broker.pk:
            raise ValidationFailed(errors=[FieldError("confirmation", "differs", "This is not the broker's id.")])
        try:
            cancelled = services.suspend(broker.pk, cancel_orders=True, **fields, by=by)
        except OutcomeUnknown as error:
            raise OutcomeUnknown(
                "The broker is suspended, but this broke off while its orders were being cancelled: some may still be "
                "open. Press again, and it goes on with what is left."
            ) from error
        were = "was" if cancelled == 1 else "were"
        return ActionResult(f"{broker} is suspended, and {_orders(cancelled)} {were} cancelled.")


def _orders(count: int) -> str:
    return "1 order" if count == 1 else f"{count:,} orders"
