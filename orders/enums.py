"""Enumerations of an order's fields, with the values of the API. Standard library only."""

from exchange.rules import ChoicesEnum


class Side(ChoicesEnum):
    """Side of an order: `bid` buys, `ask` sells."""

    BID = "bid"
    ASK = "ask"

    @property
    def opposite(self) -> "Side":
        return Side.ASK if self is Side.BID else Side.BID


class OrderType(ChoicesEnum):
    """A `limit` order has a price, a `market` order has none."""

    LIMIT = "limit"
    MARKET = "market"


class TimeInForce(ChoicesEnum):
    """Time for which an order remains in effect.

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
    """Status of an order. `filled`, `cancelled` and `expired` are final, and the last two may have trades."""

    PENDING = "pending"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


WORKING = (OrderStatus.PENDING, OrderStatus.PARTIALLY_FILLED)


class CancelReason(ChoicesEnum):
    """Reason of a cancel.

    Of an order that rested: `by_broker`, `by_operator`, `broker_suspended`. Of the remainder of an order on arrival:
    `no_liquidity` (market `ioc`), `ioc_remainder` (limit `ioc`), `fok_not_filled` (`fok`, without any trade).
    """

    BY_BROKER = "by_broker"
    BY_OPERATOR = "by_operator"
    BROKER_SUSPENDED = "broker_suspended"
    NO_LIQUIDITY = "no_liquidity"
    IOC_REMAINDER = "ioc_remainder"
    FOK_NOT_FILLED = "fok_not_filled"
