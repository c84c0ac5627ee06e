"""The write path's turns: a function of the database, which `orders/matching/store.py` calls.

Whoever changes it writes a migration that replaces it, with the arguments it had: the old code may still be running.
"""

from django.db import migrations

# One advisory lock, until the end of the transaction; nobody else uses this number. Who waits in vain goes on without:
# the transaction has not failed. What `lock_timeout` was it is again at the end, by the function's own SET.
AWAIT_TURN = """
CREATE FUNCTION orders_await_turn(milliseconds int) RETURNS void LANGUAGE plpgsql SET lock_timeout = 0 AS $$
BEGIN
  PERFORM set_config('lock_timeout', milliseconds::text, true);
  PERFORM pg_advisory_xact_lock(x'7475726E'::int, 0);
EXCEPTION WHEN lock_not_available THEN
  NULL;
END
$$
"""


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0006_read_trades_by_order'),
    ]

    operations = [
        migrations.RunSQL(AWAIT_TURN, "DROP FUNCTION orders_await_turn"),
    ]
