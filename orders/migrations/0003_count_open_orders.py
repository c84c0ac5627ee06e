from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('exchange', '0002_add_open_orders'),
        ('orders', '0002_drop_foreign_key_checks'),
    ]

    operations = [
        migrations.RunSQL(
            [
                # Blocks the write path: two statements that each change many of these rows could deadlock.
                "LOCK TABLE exchange_holding IN SHARE ROW EXCLUSIVE MODE",
                # Can be run again if `manage.py reconcile` ever finds a wrong count.
                """
                INSERT INTO exchange_holding AS h (broker_id, symbol, quantity, reserved, open_orders)
                SELECT broker_id, symbol, 0, 0, count(o.id) FILTER (WHERE o.status IN ('pending', 'partially_filled'))
                FROM exchange_holding FULL JOIN orders_order o USING (broker_id, symbol)
                GROUP BY broker_id, symbol
                ON CONFLICT (broker_id, symbol) DO UPDATE SET open_orders = EXCLUDED.open_orders
                WHERE h.open_orders <> EXCLUDED.open_orders
                """,
            ],
            migrations.RunSQL.noop,
        ),
    ]
