import django.db.models.deletion
import uuid_utils.compat
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('exchange', '0003_add_audit'),
        ('orders', '0007_await_turn'),
    ]

    operations = [
        migrations.CreateModel(
            name='Bar',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('minute', models.DateTimeField()),
                ('orders', models.IntegerField(default=0)),
                ('trades', models.IntegerField(default=0)),
                ('volume', models.DecimalField(decimal_places=0, default=0, max_digits=30)),
                ('value', models.DecimalField(decimal_places=4, default=0, max_digits=30)),
                ('open', models.DecimalField(decimal_places=4, max_digits=20, null=True)),
                ('high', models.DecimalField(decimal_places=4, max_digits=20, null=True)),
                ('low', models.DecimalField(decimal_places=4, max_digits=20, null=True)),
                ('close', models.DecimalField(decimal_places=4, max_digits=20, null=True)),
            ],
        ),
        migrations.CreateModel(
            name='ReconcileRun',
            fields=[
                ('id', models.UUIDField(default=uuid_utils.compat.uuid7, editable=False, primary_key=True, serialize=False)),
                ('asked_by', models.CharField(max_length=150)),
                ('asked_at', models.DateTimeField()),
                ('started_at', models.DateTimeField(null=True)),
                ('finished_at', models.DateTimeField(null=True)),
                ('checks', models.SmallIntegerField(default=0)),
                ('findings', models.JSONField(default=list)),
                ('error', models.CharField(blank=True, max_length=200)),
            ],
            options={
                'verbose_name': 'reconciliation',
                'permissions': [('run_reconcile', 'Can run the reconciliation')],
            },
        ),
        migrations.AddIndex(
            model_name='reconcilerun',
            index=models.Index(condition=models.Q(('finished_at', None)), fields=['id'], name='reconcile_run_under_way'),
        ),
        migrations.AlterModelOptions(
            name='order',
            options={'permissions': [('cancel_order', 'Can cancel orders')]},
        ),
        migrations.AddField(
            model_name='bar',
            name='instrument',
            field=models.ForeignKey(db_column='symbol', db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='bars', to='exchange.instrument'),
        ),
        migrations.AddIndex(
            model_name='bar',
            index=models.Index(fields=['instrument', 'minute'], name='bar_of_instrument'),
        ),
        migrations.AddConstraint(
            model_name='bar',
            constraint=models.UniqueConstraint(fields=('minute', 'instrument'), name='bar_once_per_minute'),
        ),
    ]
