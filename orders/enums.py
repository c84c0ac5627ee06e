"""Enumerations of an order's fields, with the values of the API. Standard library only."""

from exchange.rules import ChoicesEnum


class Side(ChoicesEnum):
    BID = "bid"
    ASK = "ask"

    @property
    def opposite(self) -> "Side":
        return Side.ASK if self is Side.BID else Side.BID


class OrderType(ChoicesEnum):
    LIMIT = "limit"
    MARKET = "market"


class TimeInForce(ChoicesEnum):
    """How long an order remains in effect.

    `gtd` (good till date): until `expires_at`. `gtc` (good till cancelled). `day`: until the next 00:00 UTC. `ioc`
    (immediate or cancel): the remainder is cancelled on arrival. `fok` (fill or kill): filled in full on arrival, or
    cancelled.
    """

    GTD = "gtd"
    GTC = "gtc"
    DAY = "day"
    IOC = "ioc"
    FOK = "fok"


class OrderStatus(ChoicesEnum):
    PENDING = "pending"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


WORKING = (OrderStatus.PENDING, OrderStatus.PARTIALLY_FILLED)


class CancelReason(ChoicesEnum):
    BY_BROKER = "by_broker"
    BY_OPERATOR = "by_operator"
    BROKER_SUSPENDED = "broker_suspended"
    NO_LIQUIDITY = "no_liquidity"
    IOC_REMAINDER = "ioc_remainder"
    FOK_NOT_FILLED = "fok_not_filled"
