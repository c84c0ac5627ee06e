"""A replacement of `orders_read_market` that read the trades of orders to cancel order by order.

Does nothing in a new database: migration 0011 installs the versions that are called. A database that ran an earlier
form of this migration keeps its functions, for processes from before 0011.
"""

from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0005_save_market'),
    ]

    operations = []
