from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):

    atomic = False  # deliveries go on meanwhile

    dependencies = [
        ('webhooks', '0006_index_failed'),
    ]

    operations = [
        AddIndexConcurrently(
            model_name='delivery',
            index=models.Index(condition=models.Q(('redelivery_of__isnull', False)), fields=['redelivery_of'], name='delivery_redelivered'),
        ),
    ]
