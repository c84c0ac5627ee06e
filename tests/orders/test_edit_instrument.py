"""Edits of an instrument's rules, which existing orders and prices must not violate."""

from decimal import Decimal
from typing import Any

import pytest

from exchange.errors import SymbolNotFound, ValidationFailed
from exchange.models import Instrument
from exchange.rules import Pricing
from orders import services
from orders.enums import Side
from tests import trading
from tests.exchange.client import Client
from tests.trading import BY, new_audit_entries, place

pytestmark = pytest.mark.django_db(transaction=True)

RULES: dict[str, Any] = {"name": "AAPL", "tick_size": Decimal("0.01"), "lot_size": 1, "pricing": Pricing.SELLER}


def edit(**changed: Any) -> Instrument:
    return services.edit_instrument("AAPL", **(RULES | changed), by=BY, reason="review")


def refused(**changed: Any) -> dict[str, str]:
    """Try an edit that must be rejected and change nothing. Return each field's error."""
    before = trading.snapshot()
    with pytest.raises(ValidationFailed) as refusal:
        edit(**changed)
    assert trading.snapshot() == before
    return {error.field: error.detail for error in refusal.value.errors}


def test_an_edit_changes_only_the_given_fields_and_is_audited(alice: Client) -> None:
    place(Side.BID, 20, "10.05")
    before = Instrument.objects.values().get(pk="AAPL")
    changed = {"name": "Apple", "tick_size": Decimal("0.05"), "lot_size": 10, "pricing": Pricing.MAKER}
    with new_audit_entries() as entries:
        edited = edit(**changed)

    after = Instrument.objects.values().get(pk="AAPL")
    assert after == before | changed
    assert {name: getattr(edited, name) for name in changed} == changed
    (entry,) = entries
    assert (entry.action, entry.subject, entry.reason) == ("instrument.edit", "AAPL", "review")
    assert entry.before == {"name": "AAPL", "tick_size": "0.01", "lot_size": 1, "pricing": "seller"}
    assert entry.after == {"name": "Apple", "tick_size": "0.05", "lot_size": 10, "pricing": "maker"}


def test_an_empty_name_becomes_the_symbol(alice: Client) -> None:
    assert edit(name="").name == "AAPL"


def test_an_unlisted_instrument_cannot_be_edited(db: None) -> None:
    with pytest.raises(SymbolNotFound):
        edit()


def test_rules_that_allow_no_order_are_rejected(alice: Client) -> None:
    largest = "tick_size times lot_size may be at most 10^15, the largest value of an order."
    assert refused(tick_size=Decimal(10**15) + Decimal("0.0001")) == {"tick_size": largest}
    assert refused(tick_size=Decimal(1_001), lot_size=10**12) == {"tick_size": largest}
    assert edit(tick_size=Decimal(1_000), lot_size=10**12).lot_size == 10**12


def test_a_tick_that_a_working_order_violates_is_rejected(alice: Client) -> None:
    place(Side.BID, 1, "10.05")
    ended = place(Side.BID, 1, "10.01")
    assert refused(tick_size=Decimal("0.05")) == {
        "tick_size": "1 open order is off this tick (10.01). Cancel it first."
    }
    trading.cancel(ended)
    other = place(Side.BID, 1, "9.95")
    plural = "2 open orders are off this tick (for example 9.95). Cancel them first."
    assert refused(tick_size=Decimal("0.10")) == {"tick_size": plural}
    trading.cancel(other)

    assert edit(tick_size=Decimal("0.05")).tick_size == Decimal("0.05")
    assert edit(tick_size=Decimal("0.001")).tick_size == Decimal("0.001")
    assert alice.get("/stocks/AAPL/book").body["bids"][0]["price"] == Decimal("10.050")


def test_a_lot_that_a_remaining_quantity_violates_is_rejected(alice: Client, bob: Client) -> None:
    place(Side.ASK, 25, "10")
    place(Side.BID, 10, "10", by="bob")
    assert refused(lot_size=10) == {"lot_size": "1 open order is off this lot (15 remaining). Cancel it first."}

    assert edit(lot_size=15).lot_size == 15
    place(Side.BID, 15, "10", by="bob")
    assert edit(lot_size=7).lot_size == 7  # no order is left


def test_each_invalid_field_is_listed(alice: Client) -> None:
    place(Side.BID, 3, "10.01")
    assert refused(tick_size=Decimal("0.10"), lot_size=2).keys() == {"tick_size", "lot_size"}


def test_decimals_used_by_past_prices_cannot_be_removed(alice: Client, bob: Client) -> None:
    assert edit(tick_size=Decimal("0.0005")).tick_size == Decimal("0.0005")
    assert edit(tick_size=Decimal("0.01")).tick_size == Decimal("0.01")  # no order exists yet
    edit(tick_size=Decimal("0.0005"))
    place(Side.ASK, 1, "10.0005")
    place(Side.BID, 1, "10.0005", by="bob")
    refusal = {"tick_size": "Past prices have 4 decimals. Choose a tick size with as many decimals."}
    assert refused(tick_size=Decimal("0.01")) == refusal
    assert refused(tick_size=Decimal("0.001")) == refusal

    assert edit(tick_size=Decimal("1.0025")).tick_size == Decimal("1.0025")
    assert alice.get("/stocks/AAPL/trades").body["trades"][0]["price"] == Decimal("10.0005")
