-- The resting orders that meet each demand, from depth 1, the best, to depth `most`, and one more if there are more.
--
-- Reads a side of a book in priority order, order by order along its index, until these orders cover the demand. A
-- window sum would read every order that crosses: for a market order, that is the whole side. Orders past their
-- `expires_at` do not trade. Orders in `leaving` may be closed first: they are read, but their shares do not count.
CREATE OR REPLACE FUNCTION orders_reachable_v2(demands json, leaving uuid[], moment timestamptz, most int)
RETURNS TABLE (depth int, maker orders_order) LANGUAGE sql STABLE AS $$
WITH RECURSIVE walk AS (
  SELECT d.book, d.book_side, d.worst_rank, d.wanted, 0 AS depth, 0::numeric AS covered,
         NULL::orders_order AS maker, '-Infinity'::numeric AS rank, 0::bigint AS sequence
  FROM json_to_recordset(demands) AS d(book text, book_side text, worst_rank numeric, wanted numeric)
  UNION ALL
  SELECT w.book, w.book_side, w.worst_rank, w.wanted, w.depth + 1, w.covered + m.counted, m.maker, m.rank, m.sequence
  FROM walk w CROSS JOIN LATERAL (
    SELECT o AS maker, o.rank, o.sequence,
           CASE WHEN o.id = ANY (leaving) THEN 0 ELSE o.quantity - o.filled_quantity END AS counted
    FROM orders_order o
    WHERE o.symbol = w.book AND o.side = w.book_side AND orders_is_working(o.status)
      AND o.rank <= w.worst_rank AND (o.rank, o.sequence) > (w.rank, w.sequence)
      AND (o.expires_at IS NULL OR o.expires_at > moment)
    ORDER BY o.rank, o.sequence LIMIT 1) m
  WHERE w.covered < w.wanted AND w.depth <= most
)
SELECT walk.depth, walk.maker FROM walk WHERE walk.depth > 0
$$
