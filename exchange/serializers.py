"""What comes in."""

from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail

from exchange.fields import Amount, Choice, Quantity, StrictSerializer, Text, Timestamp
from exchange.rules import (
    BROKER_ID,
    MAX_INITIAL_CASH,
    MAX_NAME_LENGTH,
    MAX_REASON_LENGTH,
    SYMBOL,
    TRANSFER_REFERENCE,
    Pricing,
    Scope,
)


class InitialHoldingForm(StrictSerializer):
    symbol = Text(SYMBOL)
    quantity = Quantity()


class CreateBrokerForm(StrictSerializer):
    broker_id = Text(BROKER_ID)
    initial_cash = Amount(zero=True, maximum=MAX_INITIAL_CASH)
    initial_holdings = serializers.ListField(child=InitialHoldingForm(), default=list)

    def validate_initial_holdings(self, holdings: list[dict[str, Any]]) -> dict[str, int]:
        """Symbol to quantity; no symbol twice."""
        quantities: dict[str, int] = {}
        errors: dict[str, Any] = {}
        for index, holding in enumerate(holdings):
            if holding["symbol"] in quantities:
                errors[str(index)] = {"symbol": [ErrorDetail("May be named only once.", "duplicate")]}
            quantities[holding["symbol"]] = holding["quantity"]
        if errors:
            raise serializers.ValidationError(errors)
        return quantities


class CreateTransferForm(StrictSerializer):
    reference = Text(TRANSFER_REFERENCE)
    cash = Amount(negative=True, required=False, allow_null=True)
    symbol = Text(SYMBOL, required=False, allow_null=True)
    quantity = Quantity(signed=True, required=False, allow_null=True)
    reason = Text(max_length=MAX_REASON_LENGTH)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Either `cash`, or `symbol` and `quantity`."""
        cash = attrs.get("cash")
        named = [name for name in ("symbol", "quantity") if attrs.get(name) is not None]
        if cash is not None and named:
            raise _blame(named, "cash_or_shares", "Send either cash, or symbol and quantity, not both.")
        if cash is None and not named:
            raise _blame(["cash"], "required", "Send either cash, or symbol and quantity.")
        if cash is None and len(named) == 1:
            missing = "quantity" if named == ["symbol"] else "symbol"
            raise _blame([missing], "required", "Shares need both symbol and quantity.")
        return attrs


def _blame(names: list[str], code: str, message: str) -> serializers.ValidationError:
    return serializers.ValidationError({name: [ErrorDetail(message, code)] for name in names})


class CreateKeyForm(StrictSerializer):
    name = Text(min_length=0, max_length=MAX_NAME_LENGTH, required=False)
    scopes = serializers.ListField(child=Choice(Scope, words=(Scope.READ, Scope.TRADE)), min_length=1, required=False)
    expires_at = Timestamp(required=False, allow_null=True)


class ListInstrumentForm(StrictSerializer):
    symbol = Text(SYMBOL)
    name = Text(min_length=0, max_length=MAX_NAME_LENGTH, required=False)
    tick_size = Amount(required=False)
    lot_size = Quantity(required=False)
    pricing = Choice(Pricing, required=False)


class ReasonForm(StrictSerializer):
    reason = Text(min_length=0, max_length=MAX_REASON_LENGTH, required=False)
