"""Installs the function that waits for the batch lock of the web processes."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).parent / "sql"


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0006_read_trades_by_order'),
    ]

    operations = [
        migrations.RunSQL((SQL / "await_turn_v1.sql").read_text(), "DROP FUNCTION orders_await_turn"),
    ]
