"""Chain the audit: each entry's hash covers its content and the hash before it, and the head keeps the last one.

The head is locked until the end of the writer's transaction, so the function must be its last statement: the order of
locks is instruments, brokers, head. The function runs with its owner's rights, so that an account which may write
entries need not be able to write to the tables. It is strict: without entries, as with every ordinary order, nothing
is called.
"""

from importlib import import_module

from django.db import migrations, models

# Independent of the session's settings. A JSON array, in which no two rows look the same.
HASH = """
CREATE FUNCTION exchange_audit_hash(previous bytea, entry exchange_auditentry) RETURNS bytea LANGUAGE sql STABLE
RETURN sha256(previous || convert_to(jsonb_build_array(
  (entry).number, (entry).id, (entry).at AT TIME ZONE 'UTC', (entry).actor_kind, (entry).actor, (entry).address,
  (entry).request_id, (entry).action, (entry).subject, (entry).reason, (entry).before, (entry).after)::text, 'UTF8'))
"""

# In the order of their ids, which are times.
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

# How many entries it wrote; null for null.
RECORD = """
CREATE OR REPLACE FUNCTION exchange_record_audit(entries json) RETURNS int LANGUAGE plpgsql
STRICT SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  entry exchange_auditentry;
  head exchange_audithead;
  written int := 0;
BEGIN
  SELECT * INTO head FROM exchange_audithead FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'The audit has lost its head: nothing more goes on record until it is restored.';
  END IF;
  FOR entry IN SELECT * FROM json_populate_recordset(NULL::exchange_auditentry, entries) LOOP
    head.number := head.number + 1;
    entry.number := head.number;
    entry.id := uuidv7();
    entry.at := clock_timestamp();
    head.hash := exchange_audit_hash(head.hash, entry);
    entry.hash := head.hash;
    INSERT INTO exchange_auditentry SELECT entry.*;
    written := written + 1;
  END LOOP;
  UPDATE exchange_audithead SET number = head.number, hash = head.hash;
  RETURN written;
END
$$
"""

RECORD_UNCHAINED = "DROP FUNCTION exchange_record_audit; " + import_module("exchange.migrations.0003_add_audit").RECORD


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
        migrations.RunSQL(HASH, "DROP FUNCTION exchange_audit_hash"),
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
        migrations.RunSQL(RECORD, RECORD_UNCHAINED),
    ]
