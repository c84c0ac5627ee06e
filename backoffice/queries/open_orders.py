"""Number and value of open orders, by instrument or by broker."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from django.db import connection

from backoffice.templatetags.formatting import money

MAX_SUMMED_ORDERS = 100_000  # the limit of a page, shared by its rows


@dataclass(frozen=True, slots=True)
class OpenOrders:
    """Number of open orders and value of their unfilled quantities; if `is_more`, of those that were read."""

    count: int
    value: Decimal
    is_more: bool

    @property
    def texts(self) -> tuple[str, str]:
        """The number and the value as table cells."""
        more = "+" if self.is_more else ""
        return f"{self.count:,}{more}", f"{money(self.value)}{more}"


def of_instruments(symbols: Sequence[str]) -> dict[str, OpenOrders]:
    """Return the open orders of each of these instruments."""
    return _open_orders("symbol", symbols)


def of_brokers(broker_ids: Sequence[str]) -> dict[str, OpenOrders]:
    """Return the open orders of each of these brokers."""
    return _open_orders("broker_id", broker_ids)


def _open_orders(column: str, keys: Sequence[str]) -> dict[str, OpenOrders]:
    limit = MAX_SUMMED_ORDERS // max(len(keys), 1)
    with connection.cursor() as cursor:
        cursor.execute(_OPEN_ORDERS.format(column=column), {"keys": list(keys), "limit": limit + 1})
        return {key: OpenOrders(min(count, limit), value, count > limit) for key, count, value in cursor.fetchall()}


# One index scan per key.
_OPEN_ORDERS = """
SELECT key, found.count, found.value FROM unnest(%(keys)s::text[]) AS key
CROSS JOIN LATERAL (
  SELECT count(*) AS count, coalesce(sum(price * remaining), 0) AS value FROM (
    SELECT o.price, o.quantity - o.filled_quantity AS remaining FROM orders_order o
    WHERE o.{column} = key AND orders_is_working(o.status) LIMIT %(limit)s) open
) found
"""
