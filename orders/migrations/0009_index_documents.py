from django.db import migrations, models

from exchange.migration_operations import AddIndexConcurrently


class Migration(migrations.Migration):

    atomic = False  # does not block orders

    dependencies = [
        ('orders', '0008_add_bars_and_runs'),
    ]

    operations = [
        AddIndexConcurrently(
            model_name='order',
            index=models.Index(fields=['document_number', '-id'], name='order_newest_of_document'),
        ),
    ]
