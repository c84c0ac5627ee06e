-- A resting order: lock the instrument and count, then insert the order. One round trip, one commit.
\set symbol random(1, 16)
\set broker random(1, 20)
\set side random(0, 1) * 2 - 1
\set price 10000 - :side * random(1, 100)
\startpipeline
UPDATE instrument SET sequence = sequence + 1 WHERE symbol = :symbol RETURNING sequence;
INSERT INTO orders SELECT symbol, sequence, :broker::int, :side::int, :price::bigint, 100, true FROM instrument WHERE symbol = :symbol;
\endpipeline
