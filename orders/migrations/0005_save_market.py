"""The first function that saves the market, `orders_save_market`.

It does nothing in a new database: migration 0011 installs the versions that are called. A database in which it ran
keeps its functions for processes that ran before 0011.
"""

from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0004_read_market'),
    ]

    operations = []
