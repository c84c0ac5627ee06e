"""Operator actions on instruments: list, edit, halt and resume."""

from collections.abc import Callable, Sequence
from typing import Any

from django import forms
from django.db import InterfaceError, OperationalError
from django.forms.utils import pretty_name

from backoffice import form_fields
from backoffice.links import list_url, page_url
from backoffice.operator_actions import MAX_SUBJECTS, ActionResult, Impact, OperatorAction, ReasonForm
from backoffice.orders import off_url
from backoffice.queries import market_watch, open_orders
from backoffice.templatetags.formatting import price
from exchange import services as exchange_services
from exchange.audit import Actor
from exchange.errors import ExchangeError
from exchange.models import Instrument
from exchange.rules import MAX_NAME_LENGTH, InstrumentStatus, Pricing, price_decimals, rounded
from orders import services

CONFIRMATION = "HALT"
SYMBOLS_IN_MESSAGE = 10  # in a message


class InstrumentRulesForm(ReasonForm):
    """The trading rules of an instrument that operators set."""

    name = forms.CharField(max_length=MAX_NAME_LENGTH, required=False, help_text="Leave blank to use the symbol.")
    tick_size = form_fields.tick_size(
        initial="0.01", help_text="Prices must be multiples of the tick size. At most 4 decimals."
    )
    lot_size = form_fields.shares(initial="1", help_text="Quantities must be multiples of the lot size.")
    pricing = forms.TypedChoiceField(
        choices=Pricing.choices(),
        coerce=Pricing,
        help_text="Price at which two limit orders trade: the seller's, or the maker's (the resting order's).",
    )
    field_order = ["symbol", "name", "tick_size", "lot_size", "pricing", "reason"]


class ListInstrumentForm(InstrumentRulesForm):
    symbol = form_fields.symbol(
        help_text="Capital letters, digits and dots, at most 12, not starting with a dot. Cannot be changed later."
    )


class ListInstrument(OperatorAction):
    name = "list"
    label = "List instrument"
    explanation = "Trading starts immediately."
    permission = "exchange.list_instrument"
    form_class = ListInstrumentForm
    max_subjects = 0

    def perform(self, by: Actor, subjects: Sequence[Any], *, symbol: str = "", **fields: Any) -> ActionResult:
        instrument = exchange_services.list_instrument(symbol, **fields, by=by)
        return ActionResult(f"{instrument} listed.", url=page_url(Instrument, instrument.pk))


class InstrumentAction(OperatorAction):
    """Base of the actions on listed instruments. Their pages show prices and open orders."""

    def impact(self, rows: Sequence[Instrument]) -> Impact:
        symbols = [row.pk for row in rows]
        figures, orders = market_watch.figures_of(symbols), open_orders.of_instruments(symbols)
        cells = [
            (symbol, *map(price, (now.last_price, now.best_bid, now.best_ask)), *orders[symbol].texts)
            for symbol, now in sorted(figures.items())
        ]
        return Impact("Market now", ("Instrument", "Last", "Bid", "Ask", "Open orders", "Value"), cells)


class EditInstrument(InstrumentAction):
    name = "edit"
    label = "Edit"
    explanation = "The rules apply to new orders. Open orders must match the new tick size and lot size."
    permission = "exchange.edit_instrument"
    form_class = InstrumentRulesForm
    is_reviewed = True

    def changes(self, rows: Sequence[Instrument], *, name: str = "", **fields: Any) -> Impact:
        (instrument,) = rows
        after = fields | {"name": name or instrument.pk}
        cells = [(pretty_name(each), value, after[each]) for each, value in self.initial(instrument).items()]
        return Impact("Changes", ("Rule", "Before", "After"), cells)

    def initial(self, row: Instrument) -> dict[str, Any]:
        return {
            "name": row.name,
            "tick_size": rounded(row.tick_size, price_decimals(row.tick_size)),
            "lot_size": row.lot_size,
            "pricing": row.pricing,
        }

    def error_url(self, row: Instrument, code: str, value: Any) -> str:
        return off_url(row.pk, code, value) if code in ("off_tick", "off_lot") else ""

    def perform(self, by: Actor, subjects: Sequence[Instrument], **fields: Any) -> ActionResult:
        (instrument,) = subjects
        services.edit_instrument(instrument.pk, **fields, by=by)
        return ActionResult(f"Rules of {instrument} changed.")


class RemoveInstrument(InstrumentAction):
    name = "remove"
    label = "Remove"
    explanation = "Removes an instrument that was never ordered or held. It can be listed again."
    permission = "exchange.list_instrument"

    def applies_to(self, row: Instrument) -> bool:
        return not row.sequence  # without orders; the service also checks that it was never held

    def perform(self, by: Actor, subjects: Sequence[Instrument], **fields: Any) -> ActionResult:
        (instrument,) = subjects
        exchange_services.remove_instrument(instrument.pk, **fields, by=by)
        return ActionResult(f"{instrument} removed.", url=list_url(Instrument))


# --- Halt and resume ------------------------------------------------------------------------------------------------


class HaltInstruments(InstrumentAction):
    name = "halt"
    label = "Halt"
    explanation = "New orders are rejected. Orders in the book stay; they can be cancelled and they expire."
    permission = "exchange.halt_instrument"
    max_subjects = MAX_SUBJECTS
    is_dangerous = True

    def applies_to(self, row: Instrument) -> bool:
        return row.status == InstrumentStatus.TRADING

    def perform(self, by: Actor, subjects: Sequence[Instrument], *, reason: str = "", **fields: Any) -> ActionResult:
        return _halt_result(
            "halted", *_apply_to_each(subjects, lambda symbol: exchange_services.halt(symbol, reason, by=by))
        )


class ResumeInstruments(InstrumentAction):
    name = "resume"
    label = "Resume"
    explanation = "New orders are accepted again."
    permission = "exchange.halt_instrument"
    max_subjects = MAX_SUBJECTS

    def applies_to(self, row: Instrument) -> bool:
        return row.status == InstrumentStatus.HALTED

    def perform(self, by: Actor, subjects: Sequence[Instrument], *, reason: str = "", **fields: Any) -> ActionResult:
        return _halt_result(
            "resumed", *_apply_to_each(subjects, lambda symbol: exchange_services.resume(symbol, reason, by=by))
        )


class HaltAllForm(ReasonForm):
    confirmation = forms.CharField(
        max_length=len(CONFIRMATION),
        label=f"Type {CONFIRMATION} to confirm",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    field_order = ["confirmation", "reason"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trading = Instrument.objects.filter(status=InstrumentStatus.TRADING).count()
        self.fields["confirmation"].help_text = f"{_instruments(trading)} trading."

    def clean_confirmation(self) -> None:
        if self.cleaned_data["confirmation"] != CONFIRMATION:
            raise forms.ValidationError(f"Does not match. Type {CONFIRMATION} exactly.")


class HaltAllInstruments(OperatorAction):
    name = "halt-all"
    label = "Halt all instruments"
    explanation = (
        "New orders are rejected in all instruments. Orders in the books stay; they can be cancelled and they expire. "
        "Resume instruments one by one or select several in the list."
    )
    permission = "exchange.halt_market"
    form_class = HaltAllForm
    max_subjects = 0
    is_dangerous = True

    def perform(self, by: Actor, subjects: Sequence[Any], *, reason: str = "", **fields: Any) -> ActionResult:
        return _halt_result("halted", *exchange_services.halt_all(reason, by=by))


def _apply_to_each(subjects: Sequence[Instrument], action: Callable[[str], object]) -> tuple[list[str], list[str]]:
    """Apply the action to one after another; return the succeeded and the failed symbols. Raise if all fail."""
    succeeded: list[str] = []
    failed: list[str] = []
    for instrument in subjects:
        try:
            action(instrument.pk)
        except (ExchangeError, OperationalError, InterfaceError):
            if not succeeded and instrument is subjects[-1]:
                raise
            failed.append(instrument.pk)
        else:
            succeeded.append(instrument.pk)
    return succeeded, failed


def _halt_result(verb: str, done: Sequence[str], failed: Sequence[str]) -> ActionResult:
    if failed:
        message = f"Could not confirm: {_join_symbols(failed)}. Check the status, then try again."
        return ActionResult(f"{_join_symbols(done)} {verb}. {message}" if done else message, is_warning=True)
    if not done:
        return ActionResult("No instruments were trading.", is_warning=True)
    return ActionResult(f"{_join_symbols(done)} {verb}.")


def _join_symbols(symbols: Sequence[str]) -> str:
    """Join the symbols; beyond `SYMBOLS_IN_MESSAGE`, give the number of the others."""
    names = ", ".join(symbols[:SYMBOLS_IN_MESSAGE])
    more = "" if len(symbols) <= SYMBOLS_IN_MESSAGE else f" and {len(symbols) - SYMBOLS_IN_MESSAGE:,} more"
    return f"{names}{more}"


def _instruments(count: int) -> str:
    return "1 instrument is" if count == 1 else f"{count:,} instruments are"
