"""The write path's writing: a function of the database, which `orders/matching/store.py` calls.

Whoever changes it writes a migration that replaces it, with the arguments it had: the old code may still be running.
"""

from django.db import migrations

# Each argument is a list of rows, or null where there is nothing of the kind to write: that costs nothing then.
SAVE_MARKET = """
CREATE FUNCTION orders_save_market(
  placed json, changed json, trades json, accounts json, positions json, books json, moment timestamptz
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF placed IS NOT NULL THEN
    INSERT INTO orders_order (
      id, client_order_id, broker_id, document_number, symbol, sequence, type, side, price, quantity, time_in_force,
      expires_at, created_at, filled_quantity, filled_value, status, cancelled_at, expired_at, cancel_reason)
    SELECT * FROM json_to_recordset(placed) AS row(
      id uuid, client_order_id text, broker_id text, document_number text, symbol text, sequence bigint, type text,
      side text, price numeric, quantity bigint, time_in_force text, expires_at timestamptz, created_at timestamptz,
      filled_quantity bigint, filled_value numeric, status text, cancelled_at timestamptz, expired_at timestamptz,
      cancel_reason text);
  END IF;
  IF changed IS NOT NULL THEN
    UPDATE orders_order o
    SET filled_quantity = row.filled_quantity, filled_value = row.filled_value, status = row.status,
        cancelled_at = row.cancelled_at, expired_at = row.expired_at, cancel_reason = row.cancel_reason
    FROM json_to_recordset(changed) AS row(
      id uuid, filled_quantity bigint, filled_value numeric, status text, cancelled_at timestamptz,
      expired_at timestamptz, cancel_reason text)
    WHERE o.id = row.id;
  END IF;
  IF trades IS NOT NULL THEN
    INSERT INTO orders_trade (
      id, symbol, price, quantity, taker_side, bid_order_id, ask_order_id, bid_broker_id, ask_broker_id, executed_at)
    SELECT * FROM json_to_recordset(trades) AS row(
      id uuid, symbol text, price numeric, quantity bigint, taker_side text, bid_order_id uuid, ask_order_id uuid,
      bid_broker_id text, ask_broker_id text, executed_at timestamptz);
  END IF;
  IF accounts IS NOT NULL THEN
    UPDATE exchange_broker b
    SET cash = row.cash, reserved_cash = row.reserved_cash, event_sequence = row.event_sequence, updated_at = moment
    FROM json_to_recordset(accounts) AS row(
      id text, cash numeric, reserved_cash numeric, event_sequence bigint)
    WHERE b.id = row.id;
  END IF;
  IF positions IS NOT NULL THEN
    INSERT INTO exchange_holding (broker_id, symbol, quantity, reserved, open_orders)
    SELECT * FROM json_to_recordset(positions) AS row(
      broker_id text, symbol text, quantity numeric, reserved numeric, open_orders bigint)
    ON CONFLICT (broker_id, symbol) DO UPDATE
    SET quantity = EXCLUDED.quantity, reserved = EXCLUDED.reserved, open_orders = EXCLUDED.open_orders;
  END IF;
  IF books IS NOT NULL THEN
    UPDATE exchange_instrument i SET sequence = row.sequence
    FROM json_to_recordset(books) AS row(symbol text, sequence bigint)
    WHERE i.symbol = row.symbol;
  END IF;
END
$$
"""


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0004_read_market'),
    ]

    operations = [
        migrations.RunSQL(SAVE_MARKET, "DROP FUNCTION orders_save_market"),
    ]
