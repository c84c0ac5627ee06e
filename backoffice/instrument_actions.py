"""What is done to instruments: listed, edited, halted and resumed, one, several or all of them."""

from collections.abc import Callable, Sequence
from typing import Any

from django import forms
from django.db import InterfaceError, OperationalError

from backoffice import form_fields
from backoffice.links import page_url
from backoffice.operator_actions import MAX_SUBJECTS, ActionResult, OperatorAction, ReasonForm
from exchange import services as exchange_services
from exchange.audit import Actor
from exchange.errors import ExchangeError
from exchange.models import Instrument
from exchange.rules import MAX_NAME_LENGTH, InstrumentStatus, Pricing, price_decimals, rounded
from orders import services

CONFIRMATION = "HALT"
MAX_NAMED_SYMBOLS = 10  # in a message


class InstrumentRulesForm(ReasonForm):
    """What an operator may choose of an instrument."""

    name = forms.CharField(max_length=MAX_NAME_LENGTH, required=False, help_text="Nothing: its symbol.")
    tick_size = form_fields.tick_size(initial="0.01", help_text="Prices are multiples of it. 4 decimals at most.")
    lot_size = form_fields.shares(initial="1", help_text="Quantities are multiples of it.")
    pricing = forms.TypedChoiceField(
        choices=Pricing.choices(),
        coerce=Pricing,
        help_text="Two limit orders trade at the seller's price, or at the maker's: of the order that was there first.",
    )
    field_order = ["symbol", "name", "tick_size", "lot_size", "pricing", "reason"]


class ListInstrumentForm(InstrumentRulesForm):
    symbol = form_fields.symbol(help_text="Capital letters, digits and dots, 12 at most. It cannot be changed.")


class ListInstrument(OperatorAction):
    name = "list"
    label = "List an instrument"
    explanation = "It trades at once, under these rules. It cannot be taken off the list again, but halted."
    permission = "exchange.list_instrument"
    form_class = ListInstrumentForm
    max_subjects = 0

    def perform(self, by: Actor, subjects: Sequence[Any], *, symbol: str = "", **fields: Any) -> ActionResult:
        instrument = exchange_services.list_instrument(symbol, **fields, by=by)
        return ActionResult(f"{instrument} is listed.", url=page_url(Instrument, instrument.pk))


class EditInstrument(OperatorAction):
    name = "edit"
    label = "Edit"
    explanation = (
        "Orders placed from now on obey these rules. A tick or a lot that orders in the book would break is refused."
    )
    permission = "exchange.edit_instrument"
    form_class = InstrumentRulesForm

    def initial(self, row: Instrument) -> dict[str, Any]:
        return {
            "name": row.name,
            "tick_size": rounded(row.tick_size, price_decimals(row.tick_size)),
            "lot_size": row.lot_size,
            "pricing": row.pricing,
        }

    def perform(self, by: Actor, subjects: Sequence[Instrument], **fields: Any) -> ActionResult:
        (instrument,) = subjects
        services.edit_instrument(instrument.pk, **fields, by=by)
        return ActionResult(f"The rules of {instrument} are changed.")


# --- Halted and resumed ---------------------------------------------------------------------------------------------


class HaltInstruments(OperatorAction):
    name = "halt"
    label = "Halt"
    explanation = "New orders are refused from now on. Those in the book stay; they may be cancelled, and they expire."
    permission = "exchange.halt_instrument"
    max_subjects = MAX_SUBJECTS
    is_dangerous = True

    def applies_to(self, row: Instrument) -> bool:
        return row.status == InstrumentStatus.TRADING

    def perform(self, by: Actor, subjects: Sequence[Instrument], *, reason: str = "", **fields: Any) -> ActionResult:
        return _halt_result(
            "halted", *_apply_to_each(subjects, lambda symbol: exchange_services.halt(symbol, reason, by=by))
        )


class ResumeInstruments(OperatorAction):
    name = "resume"
    label = "Resume"
    explanation = "New orders are taken again from now on."
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
        label=f"Write {CONFIRMATION}, to confirm",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    field_order = ["confirmation", "reason"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trading = Instrument.objects.filter(status=InstrumentStatus.TRADING).count()
        self.fields["confirmation"].help_text = f"{_instruments(trading)} trading now."

    def clean_confirmation(self) -> None:
        if self.cleaned_data["confirmation"] != CONFIRMATION:
            raise forms.ValidationError(f"Write {CONFIRMATION}, in capital letters.")


class HaltAllInstruments(OperatorAction):
    name = "halt-all"
    label = "Halt everything"
    explanation = (
        "New orders are refused in every instrument, from now on. Orders in the books stay; they may be cancelled, and "
        "they expire. Each instrument is resumed by itself, or with others that are selected in the list."
    )
    permission = "exchange.halt_market"
    form_class = HaltAllForm
    max_subjects = 0
    is_dangerous = True

    def perform(self, by: Actor, subjects: Sequence[Any], *, reason: str = "", **fields: Any) -> ActionResult:
        return _halt_result("halted", *exchange_services.halt_all(reason, by=by))


def _apply_to_each(subjects: Sequence[Instrument], action: Callable[[str], object]) -> tuple[list[str], list[str]]:
    """Do it to one after the other; those it was done to, and those it was not, unless that is all of them."""
    done: list[str] = []
    failed: list[str] = []
    for instrument in subjects:
        try:
            action(instrument.pk)
        except (ExchangeError, OperationalError, InterfaceError):
            if not done and instrument is subjects[-1]:
                raise
            failed.append(instrument.pk)
        else:
            done.append(instrument.pk)
    return done, failed


def _halt_result(word: str, done: Sequence[str], failed: Sequence[str]) -> ActionResult:
    if failed:
        message = f"{_join_symbols(failed)} not {word} for certain: look, and press again."
        return ActionResult(f"{_join_symbols(done)} {word}. {message}" if done else message, is_warning=True)
    if not done:
        return ActionResult(f"Nothing was {word}: nothing was trading.", is_warning=True)
    return ActionResult(f"{_join_symbols(done)} {word}.")


def _join_symbols(symbols: Sequence[str]) -> str:
    """How many, and which: the first of them, when they are many."""
    names = ", ".join(symbols[:MAX_NAMED_SYMBOLS])
    more = "" if len(symbols) <= MAX_NAMED_SYMBOLS else f" and {len(symbols) - MAX_NAMED_SYMBOLS:,} more"
    return f"{names}{more} {'is' if len(symbols) == 1 else 'are'}"


def _instruments(count: int) -> str:
    return "1 instrument is" if count == 1 else f"{count:,} instruments are"
