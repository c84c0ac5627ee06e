-- Writes the changes of a batch. Each argument is a list of rows, named and typed like the table's columns, or null,
-- which costs nothing. The settings make the plans use the indexes, as in read_market.
CREATE OR REPLACE FUNCTION orders_save_market_v2(
  placed json, changed json, trades json, accounts json, positions json, books json, moment timestamptz
) RETURNS void LANGUAGE plpgsql
  SET plan_cache_mode = force_generic_plan
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
BEGIN
  IF placed IS NOT NULL THEN
    INSERT INTO orders_order (
      id, client_order_id, broker_id, document_number, symbol, sequence, type, side, price, quantity, time_in_force,
      expires_at, created_at, filled_quantity, filled_value, status, cancelled_at, expired_at, cancel_reason)
    SELECT
      id, client_order_id, broker_id, document_number, symbol, sequence, type, side, price, quantity, time_in_force,
      expires_at, created_at, filled_quantity, filled_value, status, cancelled_at, expired_at, cancel_reason
    FROM json_populate_recordset(NULL::orders_order, placed);
  END IF;
  IF changed IS NOT NULL THEN
    UPDATE orders_order o
    SET filled_quantity = row.filled_quantity, filled_value = row.filled_value, status = row.status,
        cancelled_at = row.cancelled_at, expired_at = row.expired_at, cancel_reason = row.cancel_reason
    FROM json_populate_recordset(NULL::orders_order, changed) row
    WHERE o.id = row.id;
  END IF;
  IF trades IS NOT NULL THEN
    INSERT INTO orders_trade (
      id, symbol, price, quantity, taker_side, bid_order_id, ask_order_id, bid_broker_id, ask_broker_id, executed_at)
    SELECT
      id, symbol, price, quantity, taker_side, bid_order_id, ask_order_id, bid_broker_id, ask_broker_id, executed_at
    FROM json_populate_recordset(NULL::orders_trade, trades);
  END IF;
  IF accounts IS NOT NULL THEN
    UPDATE exchange_broker b
    SET cash = row.cash, reserved_cash = row.reserved_cash, event_sequence = row.event_sequence, updated_at = moment
    FROM json_populate_recordset(NULL::exchange_broker, accounts) row
    WHERE b.id = row.id;
  END IF;
  IF positions IS NOT NULL THEN
    INSERT INTO exchange_holding (broker_id, symbol, quantity, reserved, open_orders)
    SELECT broker_id, symbol, quantity, reserved, open_orders
    FROM json_populate_recordset(NULL::exchange_holding, positions)
    ON CONFLICT (broker_id, symbol) DO UPDATE
    SET quantity = EXCLUDED.quantity, reserved = EXCLUDED.reserved, open_orders = EXCLUDED.open_orders;
  END IF;
  IF books IS NOT NULL THEN
    UPDATE exchange_instrument i SET sequence = row.sequence
    FROM json_populate_recordset(NULL::exchange_instrument, books) row
    WHERE i.symbol = row.symbol;
  END IF;
END
$$
