"""Installs the write path's functions for callers that lock the instruments themselves.

Processes of the previous version may still run and call the previous functions, so these stay in the database.
"""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).parent / "sql"


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0010_cancel_own_orders'),
    ]

    operations = [
        migrations.RunSQL((SQL / "is_working_v1.sql").read_text(), "DROP FUNCTION orders_is_working"),
        migrations.RunSQL((SQL / "reachable_v2.sql").read_text(), "DROP FUNCTION orders_reachable_v2"),
        migrations.RunSQL((SQL / "read_market_v2.sql").read_text(), "DROP FUNCTION orders_read_market_v2"),
        migrations.RunSQL((SQL / "save_market_v2.sql").read_text(), "DROP FUNCTION orders_save_market_v2"),
    ]
