"""A replacement of `orders_read_market` that found only the broker's own orders to cancel.

Does nothing in a new database: migration 0011 installs the versions that are called. A database that ran an earlier
form of this migration keeps its functions, for processes from before 0011.
"""

from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0009_index_documents'),
    ]

    operations = []
