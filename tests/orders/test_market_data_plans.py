"""Market data reads as much of a symbol with a long history as of any other."""

from decimal import Decimal

import pytest
from django.conf import settings
from django.db import connection, transaction

from orders import market_data
from tests import trading
from tests.database import rows_read

pytestmark = pytest.mark.django_db(transaction=True)

LEVELS = 10
# One symbol has most of the orders and trades, all older than the window of the prices.
_INSERT_SKEWED_HISTORY = """
INSERT INTO orders_order (id, broker_id, document_number, symbol, sequence, type, side, price, quantity, time_in_force,
  created_at, filled_quantity, filled_value, status, cancelled_at, cancel_reason)
SELECT gen_random_uuid(), 'alice', '1', symbol, number, 'limit', 'bid', 10, 1, 'gtc',
  now() - interval '1 hour' + number * interval '1 ms', 0, 0, 'cancelled', now(), 'by_broker'
FROM (SELECT 'AAPL' AS symbol, n AS number FROM generate_series(1, 20000) n
      UNION ALL SELECT 'S' || n % 1000, n FROM generate_series(1, 20000) n) AS history
ORDER BY random();
INSERT INTO orders_trade (id, symbol, price, quantity, taker_side, bid_order_id, ask_order_id, bid_broker_id,
  ask_broker_id, executed_at)
SELECT o.id, o.symbol, 10, 1, 'bid', o.id, o.id, 'alice', 'alice', o.created_at FROM orders_order o;
INSERT INTO orders_order (id, broker_id, document_number, symbol, sequence, type, side, price, quantity, time_in_force,
  created_at, filled_quantity, filled_value, status)
SELECT gen_random_uuid(), 'alice', '1', 'AAPL', 20000 + n, 'limit', CASE WHEN n % 2 = 0 THEN 'bid' ELSE 'ask' END,
  CASE WHEN n % 2 = 0 THEN 10 - n * 0.001 ELSE 11 + n * 0.001 END, 1, 'gtc', now(), 0, 0, 'pending'
FROM generate_series(1, 2000) n
"""


def test_a_long_history_and_a_deep_book_are_not_read() -> None:
    trading.instrument("AAPL")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_INSERT_SKEWED_HISTORY)
        cursor.execute("ANALYZE orders_order, orders_trade, exchange_instrument")
        before = rows_read()
        price = market_data.price_summary("AAPL")
        after_price = rows_read()
        book = market_data.book_snapshot("AAPL", LEVELS)
        after_book = rows_read()
        transaction.set_rollback(True)  # and with it the statistics
    assert (price.moving_average, price.last_price) == (Decimal("10.50"), Decimal(10))
    assert len(book.bids) == len(book.asks) == LEVELS
    assert (after_price - before).total() < settings.MOVING_AVERAGE_ORDERS + 10, after_price - before
    assert (after_book - after_price).total() < 2 * (LEVELS + 1) + 10, after_book - after_price
