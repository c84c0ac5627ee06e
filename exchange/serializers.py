"""Serializers of request bodies, and of rows into the Structs of responses."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rest_framework.exceptions import ErrorDetail
from rest_framework.serializers import BaseSerializer

from exchange import rules
from exchange.http import fields
from exchange.http.fields import CrossFieldError, StrictSerializer
from exchange.models import ApiKey, Broker, Instrument, Transfer
from exchange.response_bodies import BrokerBody, InstrumentBody, KeyBody, TransferBody
from exchange.rules import BrokerStatus, InstrumentStatus, Pricing, Scope, price_decimals, round_cash, rounded


class InitialHoldingSerializer(StrictSerializer):
    """Shares that a new broker starts with."""

    symbol = fields.Text(rules.SYMBOL)
    quantity = fields.Quantity()


class CreateBrokerSerializer(StrictSerializer):
    """A new broker."""

    broker_id = fields.Text(rules.BROKER_ID)
    initial_cash = fields.Amount(zero=True, maximum=rules.MAX_INITIAL_CASH)
    initial_holdings = fields.StrictList(child=InitialHoldingSerializer(), default=list)

    @classmethod
    def cross_field_errors(cls, data: Mapping[str, Any]) -> Iterator[CrossFieldError]:
        """Reject a symbol that occurs twice."""
        holdings, seen = data.get("initial_holdings"), set[str]()
        for index, holding in enumerate(holdings if isinstance(holdings, list) else []):
            symbol = holding.get("symbol") if isinstance(holding, dict) else None
            if isinstance(symbol, str) and symbol in seen:
                yield f"initial_holdings.{index}.symbol", ErrorDetail("May be named only once.", "duplicate")
            if isinstance(symbol, str):
                seen.add(symbol)

    def validate_initial_holdings(self, holdings: list[dict[str, Any]]) -> dict[str, int]:
        """Return the quantity by symbol."""
        return {holding["symbol"]: holding["quantity"] for holding in holdings}


class CreateTransferSerializer(StrictSerializer):
    """A deposit or withdrawal of either cash or shares."""

    reference = fields.Text(rules.TRANSFER_REFERENCE)
    cash = fields.Amount(negative=True, required=False, allow_null=True)
    symbol = fields.Text(rules.SYMBOL, required=False, allow_null=True)
    quantity = fields.Quantity(signed=True, required=False, allow_null=True)
    reason = fields.Text(max_length=rules.MAX_REASON_LENGTH)

    @classmethod
    def cross_field_errors(cls, data: Mapping[str, Any]) -> Iterable[CrossFieldError]:
        """Require either `cash`, or `symbol` and `quantity`."""
        named = [name for name in ("symbol", "quantity") if data.get(name) is not None]
        if data.get("cash") is not None:
            both = ErrorDetail("Send either cash, or symbol and quantity, not both.", "cash_or_shares")
            return [(name, both) for name in named]
        if not named:
            return [("cash", ErrorDetail("Send either cash, or symbol and quantity.", "required"))]
        missing = {"symbol", "quantity"} - set(named)
        return [(name, ErrorDetail("Shares need both symbol and quantity.", "required")) for name in missing]


class CreateKeySerializer(StrictSerializer):
    """A new key of a broker."""

    name = fields.Text(min_length=0, max_length=rules.MAX_NAME_LENGTH, required=False)
    scopes = fields.StrictList(
        child=fields.Choice(Scope, members=(Scope.READ, Scope.TRADE), name="BrokerScope"), min_length=1, required=False
    )
    expires_at = fields.Timestamp(required=False, allow_null=True)


class ListInstrumentSerializer(StrictSerializer):
    """A new instrument."""

    symbol = fields.Text(rules.SYMBOL)
    name = fields.Text(min_length=0, max_length=rules.MAX_NAME_LENGTH, required=False)
    tick_size = fields.Amount(required=False)
    lot_size = fields.Quantity(required=False)
    pricing = fields.Choice(Pricing, required=False)


class ReasonSerializer(StrictSerializer):
    """The reason of an operator's action."""

    reason = fields.Text(min_length=0, max_length=rules.MAX_REASON_LENGTH, required=False)


class DocsQuerySerializer(StrictSerializer):
    """Query of Swagger UI: its script instead of its page."""

    script = fields.Text(min_length=0, max_length=0, required=False)


class BrokerSerializer(BaseSerializer[Broker]):
    def to_representation(self, broker: Broker) -> BrokerBody:
        return BrokerBody(
            broker_id=broker.pk,
            status=BrokerStatus(broker.status),
            cash_balance=round_cash(broker.cash),
            reserved_cash=round_cash(broker.reserved_cash),
            available_cash=round_cash(broker.cash - broker.reserved_cash),
            created_at=broker.created_at,
            updated_at=broker.updated_at,
        )


class TransferSerializer(BaseSerializer[Transfer]):
    def to_representation(self, transfer: Transfer) -> TransferBody:
        return TransferBody(
            transfer_id=transfer.pk,
            reference=transfer.reference,
            broker_id=transfer.broker_id,
            cash=None if transfer.cash is None else round_cash(transfer.cash),
            symbol=transfer.instrument_id,
            quantity=transfer.quantity,
            reason=transfer.reason,
            created_at=transfer.created_at,
        )


class KeySerializer(BaseSerializer[ApiKey]):
    def to_representation(self, key: ApiKey) -> KeyBody:
        scopes = [Scope(scope) for scope in key.scopes]
        return KeyBody(key.prefix, key.name, scopes, key.created_at, key.expires_at, key.revoked_at)


class InstrumentSerializer(BaseSerializer[Instrument]):
    def to_representation(self, instrument: Instrument) -> InstrumentBody:
        return InstrumentBody(
            symbol=instrument.pk,
            name=instrument.name,
            status=InstrumentStatus(instrument.status),
            tick_size=rounded(instrument.tick_size, price_decimals(instrument.tick_size)),
            lot_size=instrument.lot_size,
            pricing=Pricing(instrument.pricing),
        )
