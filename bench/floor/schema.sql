-- Five bare tables, with only the indexes that matching needs: no ids, no foreign keys, no checks. Symbol and sequence
-- identify an order. Prices are whole ticks, the quantity of each order is 100. There is an account per broker and
-- symbol, so that symbols never wait for each other. A low fillfactor keeps new versions of small rows in their page.

CREATE TABLE instrument (symbol int PRIMARY KEY, sequence bigint NOT NULL DEFAULT 0) WITH (fillfactor = 10);
CREATE TABLE account (
  symbol int, broker int, cash bigint NOT NULL, shares bigint NOT NULL, PRIMARY KEY (symbol, broker)
) WITH (fillfactor = 50);
CREATE TABLE orders (
  symbol int NOT NULL, sequence bigint NOT NULL, broker int NOT NULL, side int NOT NULL,  -- side: 1 bid, -1 ask
  price bigint NOT NULL, quantity bigint NOT NULL, open boolean NOT NULL
);
CREATE INDEX orders_book ON orders (symbol, side, (-side * price), sequence) WHERE open;  -- ascending is best first
CREATE TABLE trade (
  symbol int NOT NULL, sequence bigint NOT NULL, maker_sequence bigint NOT NULL, price bigint NOT NULL,
  quantity bigint NOT NULL, bidder int NOT NULL, asker int NOT NULL
);
CREATE TABLE event (symbol int NOT NULL, sequence bigint NOT NULL, broker int NOT NULL, body text NOT NULL);

INSERT INTO instrument (symbol) SELECT generate_series(1, 16);
INSERT INTO account (symbol, broker, cash, shares)
SELECT symbol, broker, 1000000000000, 1000000000 FROM instrument, generate_series(1, 20) AS broker;

-- Depth on both sides, so that a crossing order practically always finds its one maker.
INSERT INTO orders (symbol, sequence, broker, side, price, quantity, open)
SELECT symbol, row_number() OVER (PARTITION BY symbol), 1 + number % 20, side, 10000 - side * (1 + number % 100), 100, true
FROM instrument, generate_series(1, 500) AS number, (VALUES (1), (-1)) AS sides (side);
UPDATE instrument SET sequence = 1000;
