"""The write path reads the trades of each order that it cancels by that order's index, whatever it knew of the table.

Of a UNION the planner may want its rows in order. A plan that was made while there were few trades took that order from
the index of their ids, and read every trade that had come since, until the table was analyzed the next time.
"""

from importlib import import_module

from django.db import migrations

READ_MARKET = import_module("orders.migrations.0004_read_market").READ_MARKET.replace("CREATE", "CREATE OR REPLACE", 1)

FROM_A_UNION = """
        SELECT * FROM orders_trade WHERE bid_order_id = ANY (
          ARRAY(SELECT o.id FROM unnest(targets) o WHERE o.side = 'bid' AND o.filled_quantity > 0))
        UNION SELECT * FROM orders_trade WHERE ask_order_id = ANY (
          ARRAY(SELECT o.id FROM unnest(targets) o WHERE o.side = 'ask' AND o.filled_quantity > 0))) t));"""

ORDER_BY_ORDER = """
        SELECT DISTINCT trade.* FROM unnest(targets) o CROSS JOIN LATERAL (
          SELECT * FROM orders_trade WHERE bid_order_id = o.id AND o.side = 'bid'
          UNION ALL SELECT * FROM orders_trade WHERE ask_order_id = o.id AND o.side = 'ask') trade
        WHERE o.filled_quantity > 0) t));"""


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0005_save_market'),
    ]

    operations = [
        migrations.RunSQL(READ_MARKET.replace(FROM_A_UNION, ORDER_BY_ORDER), READ_MARKET),
    ]
