"""A replacement of `orders_read_market` that read the trades of orders to cancel order by order.

It does nothing in a new database: migration 0011 installs the versions that are called. A database in which it ran
keeps its functions for processes that ran before 0011.
"""

from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0005_save_market'),
    ]

    operations = []
