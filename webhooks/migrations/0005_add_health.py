import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('webhooks', '0004_publish'),
    ]

    operations = [
        migrations.CreateModel(
            name='Answer',
            fields=[
                ('delivery', models.OneToOneField(db_constraint=False, on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name='answer', serialize=False, to='webhooks.delivery')),
                ('body', models.TextField()),
            ],
        ),
        migrations.CreateModel(
            name='SubscriptionHour',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('hour', models.DateTimeField()),
                ('completed', models.BigIntegerField(default=0)),
                ('failed', models.BigIntegerField(default=0)),
            ],
        ),
        migrations.AlterModelOptions(
            name='delivery',
            options={'permissions': [('redeliver_delivery', 'Can have events delivered again')]},
        ),
        migrations.AlterModelOptions(
            name='subscription',
            options={'permissions': [('pause_subscription', 'Can pause and resume a subscription')]},
        ),
        migrations.AddField(
            model_name='delivery',
            name='redelivery_of',
            field=models.ForeignKey(db_constraint=False, db_index=False, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='webhooks.delivery'),
        ),
        migrations.AddField(
            model_name='subscription',
            name='last_failure_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name='subscription',
            name='last_success_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name='subscription',
            name='paused_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name='subscriptionhour',
            name='subscription',
            field=models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='hours', to='webhooks.subscription'),
        ),
        migrations.AddConstraint(
            model_name='subscriptionhour',
            constraint=models.UniqueConstraint(fields=('subscription', 'hour'), name='subscription_hour_once'),
        ),
    ]
