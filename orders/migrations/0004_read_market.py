"""The first functions that read the market, `orders_reachable` and `orders_read_market`.

Does nothing in a new database: migration 0011 installs the versions that are called. A database that ran an earlier
form of this migration keeps its functions, for processes from before 0011.
"""

from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('exchange', '0002_add_open_orders'),
        ('orders', '0003_count_open_orders'),
    ]

    operations = []
