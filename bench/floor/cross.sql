-- An order that takes the best maker of the opposite side. The first statement locks and counts, the second matches, so
-- that it sees the book under the lock. One round trip, one commit.
\set symbol random(1, 16)
\set broker random(1, 20)
\set side random(0, 1) * 2 - 1
\set price 10000 + :side * 100
\startpipeline
UPDATE instrument SET sequence = sequence + 1 WHERE symbol = :symbol RETURNING sequence;
WITH maker AS (
  SELECT orders.ctid, orders.sequence, orders.broker, orders.price FROM orders
  WHERE symbol = :symbol AND side = -:side::int AND open AND (-side * price) <= :side::int * :price::bigint
  ORDER BY (-side * price), sequence LIMIT 1
), taker AS (
  INSERT INTO orders
  SELECT symbol, sequence, :broker::int, :side::int, :price::bigint, 100, NOT EXISTS (SELECT FROM maker) FROM instrument WHERE symbol = :symbol
  RETURNING sequence
), filled AS (
  UPDATE orders SET open = false FROM maker WHERE orders.ctid = maker.ctid
), fill AS (
  SELECT taker.sequence, maker.sequence AS maker_sequence, maker.broker AS maker, maker.price FROM maker, taker
), trade AS (
  INSERT INTO trade
  SELECT :symbol::int, sequence, maker_sequence, price, 100,
    CASE :side::int WHEN 1 THEN :broker::int ELSE maker END, CASE :side::int WHEN 1 THEN maker ELSE :broker::int END
  FROM fill
), moved AS (  -- summed first: a broker may trade with itself, and a row is updated once
  SELECT broker, sum(shares) AS shares, sum(-shares * price) AS cash
  FROM (SELECT :broker::int AS broker, :side::int * 100 AS shares, price FROM fill
        UNION ALL SELECT maker, -:side::int * 100, price FROM fill) AS sides
  GROUP BY broker
), account AS (
  UPDATE account SET cash = account.cash + moved.cash, shares = account.shares + moved.shares
  FROM moved WHERE account.symbol = :symbol AND account.broker = moved.broker
)
INSERT INTO event
SELECT :symbol::int, sequence, party, 'trade' FROM fill, LATERAL (VALUES (:broker::int), (maker)) AS parties (party);
\endpipeline
