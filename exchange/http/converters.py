"""Path converters. A path with a malformed id or symbol does not match, so the response is 404."""

from uuid import UUID

from django.urls import register_converter

from exchange.rules import BROKER_ID, KEY_PREFIX, SYMBOL


class _StringConverter:
    def to_python(self, value: str) -> str:
        return value

    def to_url(self, value: str) -> str:
        return value


class BrokerIdConverter(_StringConverter):
    regex = BROKER_ID.pattern


class SymbolConverter(_StringConverter):
    regex = SYMBOL.pattern


class KeyPrefixConverter(_StringConverter):
    regex = KEY_PREFIX.pattern


class IdConverter:
    """UUID in lower or upper case."""

    regex = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"

    def to_python(self, value: str) -> UUID:
        return UUID(value)

    def to_url(self, value: UUID) -> str:
        return str(value)


register_converter(BrokerIdConverter, "broker_id")
register_converter(SymbolConverter, "symbol")
register_converter(KeyPrefixConverter, "key_prefix")
register_converter(IdConverter, "id")
