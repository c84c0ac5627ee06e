from django.db import migrations, models

from exchange.migration_operations import AddIndexConcurrently


class Migration(migrations.Migration):

    atomic = False  # deliveries continue while the index is created

    dependencies = [
        ('webhooks', '0005_add_health'),
    ]

    operations = [
        AddIndexConcurrently(
            model_name='delivery',
            index=models.Index(condition=models.Q(('completed_at__isnull', False), models.Q(models.Q(('error__in', ['', 'subscription_deleted']), _negated=True), ('status_code__lt', 200), ('status_code__gte', 300), _connector='OR')), fields=['id'], name='delivery_failed'),
        ),
    ]
