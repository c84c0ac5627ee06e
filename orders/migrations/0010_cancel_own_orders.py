"""A replacement of `orders_read_market` that found only the broker's own orders to cancel.

It does nothing in a new database: migration 0011 installs the versions that are called. A database in which it ran
keeps its functions for processes that ran before 0011.
"""

from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0009_index_documents'),
    ]

    operations = []
