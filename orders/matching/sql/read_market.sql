-- Locks the brokers that a batch can touch, and reads the rows that it can touch. The caller has locked the instruments.
-- Returns null, with no broker locked, if takers reach more resting orders than `makers_max`.
--
-- VOLATILE and PL/pgSQL, so that each statement has its own snapshot and sees what was committed before it began. A
-- single statement would see the rows as they were before it waited for a lock.
--
-- A cached plan may date from a nearly empty table. The settings make it use the indexes.
CREATE OR REPLACE FUNCTION orders_read_market_v2(request json) RETURNS json LANGUAGE plpgsql VOLATILE
  SET plan_cache_mode = force_generic_plan
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
  args record;
  moment timestamptz;
  sweep record;
  batch orders_order[];
  batches json[] := '{}'; -- one for each sweep
  swept orders_order[] := '{}'; -- all of them
  targets orders_order[]; -- the orders to cancel
  makers orders_order[]; -- of each side of a book the best first
  deepest int;
  owners text[]; -- with `owned` in pairs: the brokers, and the symbols in which their orders can move shares
  owned text[];
  locked text[]; -- the brokers that are locked
BEGIN
  SELECT * INTO args FROM json_to_record(request) AS row(
    cancels uuid[], sweeps json, takers json, demands json, skip_busy bool, makers_max int, batch_max int);

  -- 1. The clock and the books.
  moment := clock_timestamp();
  FOR sweep IN
    SELECT * FROM json_to_recordset(args.sweeps) AS row(broker_id text, symbol text, side text)
  LOOP
    IF sweep.broker_id IS NULL THEN
      batch := ARRAY(
        SELECT o FROM orders_order o
        WHERE o.symbol = sweep.symbol AND o.expires_at IS NOT NULL AND o.expires_at <= moment
          AND orders_is_working(o.status)
        ORDER BY o.expires_at, o.sequence LIMIT args.batch_max);
    ELSE -- a side that is null is any; and with IS NOT FALSE the planner never takes the book's index for the broker's
      batch := ARRAY(
        SELECT o FROM orders_order o
        WHERE o.broker_id = sweep.broker_id AND o.symbol = sweep.symbol AND (o.side = sweep.side) IS NOT FALSE
          AND orders_is_working(o.status)
        ORDER BY o.sequence LIMIT args.batch_max);
    END IF;
    swept := swept || batch;
    batches := batches || array_to_json(batch);
  END LOOP;
  targets := ARRAY(SELECT o FROM orders_order o WHERE o.id = ANY (args.cancels));
  SELECT array_agg(r.maker ORDER BY r.depth), max(r.depth) INTO makers, deepest
  FROM orders_reachable_v2(
    args.demands, args.cancels || ARRAY(SELECT o.id FROM unnest(swept) o), moment, args.makers_max) r;
  IF deepest > args.makers_max THEN
    RETURN NULL; -- each taker alone may reach less, and so many brokers need not be locked
  END IF;

  -- 2. The brokers, locked by id: takers, makers, and the owners of orders to cancel or expire. No book is read from
  -- here on.
  SELECT array_agg(p.broker_id), array_agg(p.symbol) INTO owners, owned FROM (
    SELECT t.broker_id, t.symbol FROM json_to_recordset(args.takers) AS t(broker_id text, symbol text)
    UNION SELECT o.broker_id, o.symbol FROM unnest(targets || swept || makers) o
  ) p;
  IF args.skip_busy THEN
    locked := ARRAY(SELECT id FROM exchange_broker WHERE id = ANY (owners) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED);
  ELSE
    locked := ARRAY(SELECT id FROM exchange_broker WHERE id = ANY (owners) ORDER BY id FOR NO KEY UPDATE);
  END IF;

  -- 3. The brokers' balances; the orders that already use the takers' client_order_ids; earlier trades of the orders to
  -- cancel, oldest first. A plan made while there were few trades must not take their order from the index of their
  -- ids, so they are read order by order.
  RETURN json_build_object(
    'now', moment,
    'accounts', (
      SELECT json_agg(b) FROM (
        SELECT id, status, cash, reserved_cash, event_sequence FROM exchange_broker WHERE id = ANY (locked)) b),
    'targets', array_to_json(targets),
    'sweeps', array_to_json(batches),
    'makers', array_to_json(makers),
    'holdings', (
      SELECT json_agg(h) FROM unnest(owners, owned) AS p(broker_id, symbol)
      JOIN exchange_holding h ON h.broker_id = p.broker_id AND h.symbol = p.symbol),
    'used', (
      SELECT json_agg(o) FROM json_to_recordset(args.takers) AS t(broker_id text, client_order_id text)
      JOIN orders_order o ON o.broker_id = t.broker_id AND o.client_order_id = t.client_order_id),
    'trades', (
      SELECT json_agg(t ORDER BY t.executed_at, t.id) FROM (
        SELECT DISTINCT trade.* FROM unnest(targets) o CROSS JOIN LATERAL (
          SELECT * FROM orders_trade WHERE bid_order_id = o.id AND o.side = 'bid'
          UNION ALL SELECT * FROM orders_trade WHERE ask_order_id = o.id AND o.side = 'ask') trade
        WHERE o.filled_quantity > 0) t));
END
$$
