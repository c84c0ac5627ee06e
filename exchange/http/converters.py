"""Path converters. A path with a malformed id or symbol does not match, so the response is 404."""

from django.urls import register_converter
from django.urls.converters import StringConverter, UUIDConverter

from exchange.rules import BROKER_ID, KEY_PREFIX, SYMBOL


class BrokerIdConverter(StringConverter):
    regex = BROKER_ID.pattern


class SymbolConverter(StringConverter):
    regex = SYMBOL.pattern


class KeyPrefixConverter(StringConverter):
    regex = KEY_PREFIX.pattern


class IdConverter(UUIDConverter):
    """UUID in lower or upper case."""

    regex = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"


register_converter(BrokerIdConverter, "broker_id")
register_converter(SymbolConverter, "symbol")
register_converter(KeyPrefixConverter, "key_prefix")
register_converter(IdConverter, "id")
