"""The write path's reading, in one round trip: functions of the database, which `orders/matching/store.py` calls.

Whoever changes one writes a migration that replaces it, with the arguments it had: the old code may still be running.
"""

from django.db import migrations

# One side of a book in priority, order by order along its index, until what was passed covers the demand. A window sum
# would read every order that crosses before it could stop: with a market order that is the whole side. What is due does
# not trade; what is `leaving` may be closed meanwhile: it is read, but not counted on.
MAKER = """
  SELECT o AS maker, o.rank, o.sequence,
         CASE WHEN o.id = ANY (leaving) THEN 0 ELSE o.quantity - o.filled_quantity END AS counted
  FROM orders_order o
  WHERE o.symbol = d.book AND o.side = d.book_side AND o.status IN ('pending', 'partially_filled')
    AND o.rank <= d.worst_rank AND (o.expires_at IS NULL OR o.expires_at > moment)"""

# What meets each demand as it stands, from depth 1, the best, down to `most`; and one more where there are more.
REACHABLE = f"""
CREATE FUNCTION orders_reachable(demands json, leaving uuid[], moment timestamptz, most int)
RETURNS TABLE (depth int, maker orders_order) LANGUAGE sql STABLE AS $$
WITH RECURSIVE demand AS MATERIALIZED (
  SELECT * FROM json_to_recordset(demands) AS row(book text, book_side text, worst_rank numeric, wanted numeric)
), walk AS (
  SELECT d.*, 1 AS depth, m.counted::numeric AS covered, m.*
  FROM demand d CROSS JOIN LATERAL ({MAKER}
    ORDER BY o.rank, o.sequence LIMIT 1) m
  UNION ALL
  SELECT d.book, d.book_side, d.worst_rank, d.wanted, d.depth + 1, d.covered + m.counted, m.*
  FROM walk d CROSS JOIN LATERAL ({MAKER}
    AND (o.rank, o.sequence) > (d.rank, d.sequence) ORDER BY o.rank, o.sequence LIMIT 1) m
  WHERE d.covered < d.wanted AND d.depth <= most
)
SELECT walk.depth, walk.maker FROM walk
$$
"""


def lock_instruments(skip_locked: str = "") -> str:
    """Of an order only its symbol is read before the lock: it never changes."""
    return f"""
    SELECT json_agg(i), array_agg(i.symbol) INTO books, locked FROM (
      SELECT symbol, status, tick_size, lot_size, pricing, sequence FROM exchange_instrument
      WHERE symbol = ANY (
        asked.symbols || ARRAY(SELECT o.symbol::text FROM orders_order o WHERE o.id = ANY (asked.cancels)))
      ORDER BY symbol FOR NO KEY UPDATE {skip_locked}
    ) i;"""


def lock_brokers(skip_locked: str = "") -> str:
    return f"""
    SELECT json_agg(b) INTO accounts FROM (
      SELECT id, status, cash, reserved_cash, event_sequence FROM exchange_broker
      WHERE id = ANY (owners) ORDER BY id FOR NO KEY UPDATE {skip_locked}
    ) b;"""


# VOLATILE, and not in SQL: so each of its statements sees what was committed before that statement began, and not, as
# in a single statement, what was there before the wait for a lock.
READ_MARKET = f"""
CREATE FUNCTION orders_read_market(request json) RETURNS json LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  asked record;
  books json;
  locked text[];
  moment timestamptz;
  sweep record;
  batch orders_order[];
  batches json[] := '{{}}'; -- one for each sweep
  swept orders_order[] := '{{}}'; -- all of them
  targets orders_order[];
  makers orders_order[]; -- of each side of a book the best first
  beyond orders_order[]; -- where there are more of them than may be read, the next
  owners text[]; -- with `owned` in pairs: of whom what can be moved
  owned text[];
  accounts json;
BEGIN
  SELECT * INTO asked FROM json_to_record(request) AS row(
    symbols text[], cancels uuid[], sweeps json, takers json, demands json, is_alone bool, skip_busy bool,
    makers_max int, batch_max int);

  -- 1. The instruments, by symbol.
  IF asked.skip_busy THEN {lock_instruments("SKIP LOCKED")}
  ELSE {lock_instruments()}
  END IF;

  -- 2. The clock and the books.
  moment := clock_timestamp();
  FOR sweep IN
    SELECT * FROM json_to_recordset(asked.sweeps) AS row(broker_id text, symbol text, side text)
  LOOP
    IF sweep.broker_id IS NULL THEN
      batch := ARRAY(
        SELECT o FROM orders_order o
        WHERE o.symbol = sweep.symbol AND o.expires_at IS NOT NULL AND o.expires_at <= moment
          AND o.status IN ('pending', 'partially_filled')
        ORDER BY o.expires_at, o.sequence LIMIT asked.batch_max);
    ELSE -- a side that is null is any; and with IS NOT FALSE the planner never takes the book's index for the broker's
      batch := ARRAY(
        SELECT o FROM orders_order o
        WHERE o.broker_id = sweep.broker_id AND o.symbol = sweep.symbol AND (o.side = sweep.side) IS NOT FALSE
          AND o.status IN ('pending', 'partially_filled')
        ORDER BY o.sequence LIMIT asked.batch_max);
    END IF;
    swept := swept || batch;
    batches := batches || array_to_json(batch);
  END LOOP;
  targets := ARRAY(SELECT o FROM orders_order o WHERE o.id = ANY (asked.cancels));
  SELECT array_agg(r.maker ORDER BY r.depth) FILTER (WHERE r.depth <= asked.makers_max),
         array_agg(r.maker) FILTER (WHERE r.depth > asked.makers_max)
  INTO makers, beyond
  FROM orders_reachable( -- a book that was listed since the lock is not locked, and not read
    (SELECT json_agg(d) FROM json_array_elements(asked.demands) d WHERE d ->> 'book' = ANY (locked)),
    asked.cancels || ARRAY(SELECT o.id FROM unnest(swept) o), moment, asked.makers_max) r;
  IF beyond IS NOT NULL AND NOT asked.is_alone THEN
    RETURN NULL; -- each alone may reach less: nobody need wait for the brokers of so many
  END IF;

  -- 3. The brokers, by id: takers, makers, and the owners of what is cancelled or expired. Nothing of a book is read
  -- from here on.
  SELECT array_agg(p.broker_id), array_agg(p.symbol) INTO owners, owned FROM (
    SELECT t.broker_id, t.symbol FROM json_to_recordset(asked.takers) AS t(broker_id text, symbol text)
    UNION SELECT o.broker_id, o.symbol FROM unnest(targets || swept || makers) o
  ) p;
  IF asked.skip_busy THEN {lock_brokers("SKIP LOCKED")}
  ELSE {lock_brokers()}
  END IF;

  -- 4. What their orders can move; the orders that already use the takers' client_order_ids; what was traded before of
  -- the orders to cancel, oldest first.
  RETURN json_build_object(
    'now', moment,
    'books', books,
    'accounts', accounts,
    'targets', array_to_json(targets),
    'sweeps', array_to_json(batches),
    'makers', array_to_json(makers),
    'beyond', array_to_json(beyond),
    'holdings', (
      SELECT json_agg(h) FROM unnest(owners, owned) AS p(broker_id, symbol)
      JOIN exchange_holding h ON h.broker_id = p.broker_id AND h.symbol = p.symbol),
    'used', (
      SELECT json_agg(o) FROM json_to_recordset(asked.takers) AS t(broker_id text, client_order_id text)
      JOIN orders_order o ON o.broker_id = t.broker_id AND o.client_order_id = t.client_order_id),
    'trades', (
      SELECT json_agg(t ORDER BY t.executed_at, t.id) FROM (
        SELECT * FROM orders_trade WHERE bid_order_id = ANY (
          ARRAY(SELECT o.id FROM unnest(targets) o WHERE o.side = 'bid' AND o.filled_quantity > 0))
        UNION SELECT * FROM orders_trade WHERE ask_order_id = ANY (
          ARRAY(SELECT o.id FROM unnest(targets) o WHERE o.side = 'ask' AND o.filled_quantity > 0))) t));
END
$$
"""


class Migration(migrations.Migration):

    dependencies = [
        ('exchange', '0002_add_open_orders'),
        ('orders', '0003_count_open_orders'),
    ]

    operations = [
        migrations.RunSQL(REACHABLE, "DROP FUNCTION orders_reachable"),
        migrations.RunSQL(READ_MARKET, "DROP FUNCTION orders_read_market"),
    ]
