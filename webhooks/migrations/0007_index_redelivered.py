from django.db import migrations, models

from exchange.migration_operations import AddIndexConcurrently


class Migration(migrations.Migration):

    atomic = False  # deliveries continue while the index is created

    dependencies = [
        ('webhooks', '0006_index_failed'),
    ]

    operations = [
        migrations.AlterModelOptions(
            name='delivery',
            options={'permissions': [('redeliver_delivery', 'Can have events delivered again')], 'verbose_name_plural': 'deliveries'},
        ),
        AddIndexConcurrently(
            model_name='delivery',
            index=models.Index(condition=models.Q(('redelivery_of__isnull', False)), fields=['redelivery_of'], name='delivery_redelivered'),
        ),
    ]
