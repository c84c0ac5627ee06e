"""The first functions that read the market, `orders_reachable` and `orders_read_market`.

It does nothing in a new database: migration 0011 installs the versions that are called. A database in which it ran
keeps its functions for processes that ran before 0011.
"""

from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('exchange', '0002_add_open_orders'),
        ('orders', '0003_count_open_orders'),
    ]

    operations = []
