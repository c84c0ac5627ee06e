"""Enums, patterns and limits shared by models, serializers and the write path. Standard library only."""

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import StrEnum
from functools import lru_cache


class ChoicesEnum(StrEnum):
    """String enum with Django choices. Its values are stored and sent as they are."""

    @classmethod
    def choices(cls) -> list[tuple[str, str]]:
        """Return the `choices` of a model or form field."""
        return [(member.value, member.value) for member in cls]


class BrokerStatus(ChoicesEnum):
    """Status of a broker. A `suspended` broker may not place orders."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


class InstrumentStatus(ChoicesEnum):
    """Status of an instrument. A `halted` instrument does not trade."""

    TRADING = "trading"
    HALTED = "halted"


class Pricing(ChoicesEnum):
    """Price of a trade between two limit orders: the seller's, or the resting order's (the maker's)."""

    SELLER = "seller"
    MAKER = "maker"


class Scope(ChoicesEnum):
    """Permission of a key. `trade` includes `read`."""

    READ = "read"
    TRADE = "trade"
    OPERATOR = "operator"


BROKER_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9.]{0,11}")  # "." and ".." cannot be part of a path
DOCUMENT_NUMBER = re.compile(r"[a-zA-Z0-9]{1,32}")
CLIENT_ORDER_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
TRANSFER_REFERENCE = CLIENT_ORDER_ID
KEY_PREFIX = re.compile(r"[0-9a-f]{12}")
AMOUNT = re.compile(r"[0-9]{1,16}(\.[0-9]{1,4})?")

MAX_QUANTITY = 10**12
MAX_NOTIONAL = 10**15
MAX_INITIAL_CASH = 10**15
MAX_NAME_LENGTH, MAX_REASON_LENGTH = 100, 200
AMOUNT_INTEGER_DIGITS, AMOUNT_DECIMALS = 16, 4


# Precise enough for any amount. Passed to each operation, because changing the thread's context takes far longer.
_EXACT = Context(prec=80, rounding=ROUND_HALF_EVEN)


@lru_cache
def price_decimals(tick_size: Decimal) -> int:
    """Return the decimals of an instrument's prices: two, or those of the tick if there are more."""
    return _needed_decimals(tick_size)


def _needed_decimals(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(2, -exponent)


def rounded(value: Decimal, decimals: int) -> Decimal:
    """Round to exactly `decimals` decimals, half to even."""
    return value.quantize(_unit(decimals), context=_EXACT)


@lru_cache
def _unit(decimals: int) -> Decimal:
    return Decimal(1).scaleb(-decimals)


def round_cash(value: Decimal) -> Decimal:
    """Return a cash amount with two decimals, or up to four if needed."""
    return rounded(value, _needed_decimals(value))


def mean(total: Decimal, count: int, decimals: int) -> Decimal:
    """Return `total / count`, rounded once, half to even."""
    return rounded(_EXACT.divide(total, Decimal(count)), decimals)
