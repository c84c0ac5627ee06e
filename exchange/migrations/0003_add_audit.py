"""The append-only audit log, and columns of brokers, keys and orders for the back office."""

from pathlib import Path

import uuid_utils.compat
from django.db import migrations, models

SQL = Path(__file__).parent / "sql"

GUARD = """
CREATE TRIGGER audit_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON exchange_auditentry
FOR EACH STATEMENT EXECUTE FUNCTION exchange_refuse_change()
"""


class Migration(migrations.Migration):

    dependencies = [
        ('exchange', '0002_add_open_orders'),
    ]

    operations = [
        migrations.CreateModel(
            name='RejectedOrders',
            fields=[
                ('at', models.DateTimeField(primary_key=True, serialize=False)),
                ('count', models.BigIntegerField()),
            ],
            options={
                'verbose_name_plural': 'rejected orders',
            },
        ),
        migrations.AlterModelOptions(
            name='apikey',
            options={'permissions': [('issue_key', 'Can issue a key to a broker'), ('revoke_key', "Can revoke a broker's key")], 'verbose_name': 'key'},
        ),
        migrations.AlterModelOptions(
            name='broker',
            options={'permissions': [('admit_broker', 'Can admit a broker'), ('suspend_broker', 'Can suspend and reinstate a broker'), ('stop_broker', 'Can suspend a broker and cancel all its orders: the kill switch')]},
        ),
        migrations.AlterModelOptions(
            name='instrument',
            options={'permissions': [('list_instrument', 'Can list an instrument'), ('edit_instrument', "Can edit an instrument's rules"), ('halt_instrument', 'Can halt and resume an instrument'), ('halt_market', 'Can halt all instruments at once')]},
        ),
        migrations.AlterModelOptions(
            name='transfer',
            options={'permissions': [('book_transfer', 'Can book cash and shares in and out')]},
        ),
        migrations.AddField(
            model_name='apikey',
            name='last_used_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddIndex(
            model_name='apikey',
            index=models.Index(fields=['-created_at', '-prefix'], name='key_newest'),
        ),
        migrations.CreateModel(
            name='AuditEntry',
            fields=[
                ('id', models.UUIDField(default=uuid_utils.compat.uuid7, editable=False, primary_key=True, serialize=False)),
                ('at', models.DateTimeField()),
                ('actor_kind', models.CharField(choices=[('user', 'user'), ('key', 'key'), ('command', 'command')], max_length=8)),
                ('actor', models.CharField(max_length=150)),
                ('address', models.CharField(blank=True, max_length=64)),
                ('request_id', models.CharField(blank=True, max_length=64)),
                ('action', models.CharField(max_length=32)),
                ('subject', models.CharField(max_length=150)),
                ('reason', models.CharField(blank=True, max_length=200)),
                ('before', models.JSONField(null=True)),
                ('after', models.JSONField(null=True)),
            ],
            options={
                'verbose_name_plural': 'audit entries',
                'indexes': [models.Index(fields=['subject', '-id'], name='audit_newest_of_subject'), models.Index(fields=['actor', '-id'], name='audit_newest_of_actor')],
            },
        ),
        migrations.RunSQL((SQL / "record_audit_v1.sql").read_text(), "DROP FUNCTION exchange_record_audit"),
        migrations.RunSQL((SQL / "refuse_change_v1.sql").read_text(), "DROP FUNCTION exchange_refuse_change"),
        migrations.RunSQL(GUARD, "DROP TRIGGER audit_only_grows ON exchange_auditentry"),
    ]
