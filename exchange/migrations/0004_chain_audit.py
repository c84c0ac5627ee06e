"""Hash chain of the audit log: each entry's hash covers its content and the preceding hash; the head has the last one."""

from pathlib import Path

from django.db import migrations, models

SQL = Path(__file__).parent / "sql"

# Ordered by id, which starts with the time.
CHAIN = """
SET LOCAL statement_timeout = 0;
ALTER TABLE exchange_auditentry DISABLE TRIGGER audit_only_grows;
DO $$
DECLARE
  entry exchange_auditentry;
  head exchange_audithead := (1, 0, '');
BEGIN
  FOR entry IN SELECT * FROM exchange_auditentry ORDER BY id LOOP
    head.number := head.number + 1;
    entry.number := head.number;
    head.hash := exchange_audit_hash(head.hash, entry);
    UPDATE exchange_auditentry SET number = head.number, hash = head.hash WHERE id = entry.id;
  END LOOP;
  INSERT INTO exchange_audithead SELECT head.*;
END
$$;
ALTER TABLE exchange_auditentry ENABLE TRIGGER audit_only_grows
"""


class Migration(migrations.Migration):

    dependencies = [
        ('exchange', '0003_add_audit'),
    ]

    operations = [
        migrations.CreateModel(
            name='AuditHead',
            fields=[
                ('id', models.SmallIntegerField(default=1, primary_key=True, serialize=False)),
                ('number', models.BigIntegerField(default=0)),
                ('hash', models.BinaryField(default=b'', max_length=32)),
            ],
            options={
                'default_permissions': (),
                'constraints': [models.CheckConstraint(condition=models.Q(('id', 1)), name='audit_head_is_one')],
            },
        ),
        migrations.AddField(
            model_name='auditentry',
            name='number',
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name='auditentry',
            name='hash',
            field=models.BinaryField(max_length=32, null=True),
        ),
        migrations.RunSQL((SQL / "audit_hash_v1.sql").read_text(), "DROP FUNCTION exchange_audit_hash"),
        migrations.RunSQL(CHAIN, migrations.RunSQL.noop),
        migrations.AlterField(
            model_name='auditentry',
            name='number',
            field=models.BigIntegerField(db_index=True),
        ),
        migrations.AlterField(
            model_name='auditentry',
            name='hash',
            field=models.BinaryField(max_length=32),
        ),
        migrations.RunSQL(
            (SQL / "record_audit_v2.sql").read_text(),
            ["DROP FUNCTION exchange_record_audit", (SQL / "record_audit_v1.sql").read_text()],
        ),
    ]
