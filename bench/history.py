"""Fill a migrated database with a history of one month: orders, trades, deliveries, and open books.

    python -m bench.history --orders 1000000 --trades 1000000 --resting 20000

It uses DATABASE_URL. Afterwards, every check of `manage.py reconcile` holds, every minute has its bars, and trading can
continue.

Orders come in groups of eight in one instrument. The first six trade, each as the taker of the previous one's
remainder. The sixth one's remainder and the last two orders end by a cancel, an expiry or their time in force. If more
trades are requested than that gives, a pair of orders trades several times at once, unlike in a real history.

The history is one transaction of set-based SQL. Foreign keys are not checked in it (`session_replication_role =
replica`, so the account must be a superuser); all other constraints are.
"""

import argparse
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import psycopg

from orders import activity

GROUP, TRADING = 8, 6  # orders in a group, and those of them that trade
CHUNK = 25_000 * GROUP  # orders written by one round of statements
WORK_MEM = "256MB"
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Parameters:
    """The requested sizes, under the names of the statements' parameters."""

    orders: int
    trades: int
    deliveries: int
    resting: int
    brokers: int
    symbols: int

    @property
    def pairs(self) -> int:
        """Number of pairs of orders that may trade with each other."""
        groups, rest = divmod(self.orders, GROUP)
        return groups * (TRADING - 1) + max(0, min(rest, TRADING) - 1)

    def check(self) -> None:
        if self.trades and not self.pairs:
            raise ValueError("Trades need two orders.")
        if self.deliveries > 2 * self.trades:
            raise ValueError("There are at most two deliveries per trade.")
        if self.brokers < 1 or self.symbols < 1:
            raise ValueError("A history needs a broker and an instrument.")


def load_history(
    dsn: str,
    *,
    orders: int,
    trades: int,
    deliveries: int = 0,
    resting: int = 0,
    brokers: int = 20,
    symbols: int = 16,
) -> None:
    """Write final orders, trades between them, deliveries of their events, and resting orders.

    The brokers are `bench-1`, `bench-2`, …, with ample cash and shares of the instruments `S1`, `S2`, …, which must
    not exist yet.
    """
    past = _Parameters(orders, trades, deliveries, resting, brokers, symbols)
    past.check()
    with psycopg.connect(dsn, autocommit=True) as connection:
        with connection.transaction():
            _write(connection, past)
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")  # otherwise it would slow the next measurement


def _write(connection: psycopg.Connection, past: _Parameters) -> None:
    for name, value in [("session_replication_role", "replica"), ("work_mem", WORK_MEM), ("statement_timeout", "0")]:
        connection.execute("SELECT set_config(%s, %s, true)", [name, value])
    values = asdict(past) | {"pairs": past.pairs}
    for statement in [_BROKERS_AND_INSTRUMENTS, _SUBSCRIPTIONS] if past.deliveries else [_BROKERS_AND_INSTRUMENTS]:
        connection.execute(statement, values)
    connection.execute(_SCRATCH)
    delivered = 0
    for first in range(0, past.orders, CHUNK):
        chunk = values | {"first": first, "last": min(first + CHUNK, past.orders) - 1}
        for statement in [_EMPTY_SCRATCH, _DRAW_ORDERS, _DRAW_TRADES, _DERIVE_ORDERS, _SAVE, _PUBLISH]:
            connection.execute(statement, chunk)
        if delivered < past.deliveries:
            delivered += connection.execute(_DELIVER, values | {"missing": past.deliveries - delivered}).rowcount
        connection.execute(_COUNT_EVENTS)
    connection.execute(_ADD_RESTING_ORDERS, values)
    connection.execute(_UPDATE_BALANCES)
    connection.execute(activity.ROLL_UP, activity.roll_up_parameters(_EPOCH, datetime.now(UTC) + activity.MINUTE))


# --- SQL ------------------------------------------------------------------------------------------------------------
# Ids ascend with the times of the rows: each statement generates its ids in that order.
# A group has one instrument. A round is a group of each instrument, so every broker and instrument has every ending.

_BROKERS_AND_INSTRUMENTS = """
WITH instrument AS (
  INSERT INTO exchange_instrument (
    symbol, name, status, tick_size, lot_size, pricing, halt_reason, sequence, created_at)
  SELECT 'S' || number, 'Instrument ' || number, 'trading', 0.01, 1, 'seller', '', 0, now() - interval '31 days'
  FROM generate_series(1, %(symbols)s) AS number
  RETURNING symbol
), broker AS (
  INSERT INTO exchange_broker (id, status, cash, reserved_cash, event_sequence, created_at, updated_at)
  SELECT 'bench-' || number, 'active', 1e14, 0, 0, now() - interval '31 days', now() - interval '31 days'
  FROM generate_series(1, %(brokers)s) AS number
  RETURNING id
), holding AS (
  INSERT INTO exchange_holding (broker_id, symbol, quantity, reserved)
  SELECT broker.id, symbol, 1e11, 0 FROM broker CROSS JOIN instrument
  RETURNING broker_id, symbol, quantity
)
INSERT INTO exchange_transfer (id, reference, broker_id, cash, symbol, quantity, reason, created_at)
SELECT uuidv7(interval '-31 days'), format('initial/%%s/cash', id), id, 1e14, NULL, NULL, 'initial cash',
       now() - interval '31 days' FROM broker
UNION ALL
SELECT uuidv7(interval '-31 days'), format('initial/%%s/%%s', broker_id, symbol), broker_id, NULL, symbol, quantity,
       'initial holding', now() - interval '31 days' FROM holding
"""

# The subscriptions are deleted, so that trades after this history have no deliveries.
_SUBSCRIPTIONS = """
INSERT INTO webhooks_subscription (id, broker_id, event_type, url, created_at, deleted_at)
SELECT uuidv7(interval '-31 days'), 'bench-' || number, 'trade.executed', 'https://bench-' || number || '.example/',
       now() - interval '31 days', now() - interval '10 minutes'
FROM generate_series(1, %(brokers)s) AS number
"""

_SCRATCH = """
CREATE TEMP TABLE drawn_order (
  n bigint PRIMARY KEY, id uuid, broker_id text, symbol text, side text, price numeric(20, 2), ending text,
  created_at timestamptz, closes_at timestamptz
) ON COMMIT DROP;
CREATE TEMP TABLE drawn_trade (
  n bigint, id uuid, maker bigint, taker bigint, symbol text, price numeric(20, 2), quantity bigint,
  executed_at timestamptz
) ON COMMIT DROP;
CREATE TEMP TABLE derived_order (LIKE drawn_order, quantity bigint, filled bigint, value numeric, status text,
  has_event boolean, changes bigint
) ON COMMIT DROP
"""

_EMPTY_SCRATCH = "TRUNCATE drawn_order, drawn_trade, derived_order"

# The month ends an hour ago: the resting orders are newer, and all orders are older than PRICE_WINDOW.
_DRAW_ORDERS = """
INSERT INTO drawn_order
SELECT n, uuidv7(came.at - statement_timestamp()),
       'bench-' || 1 + (group_number + place * (1 + group_number %% greatest(%(brokers)s - 1, 1))) %% %(brokers)s,
       'S' || 1 + group_number %% %(symbols)s, side,
       CASE WHEN ending = 'no_liquidity' THEN NULL
            WHEN side = 'bid' THEN base + 0.01 * (n %% 7) - away ELSE base - 0.01 * (n %% 5) + away END,
       ending, came.at, came.at + step / 2
FROM generate_series(%(first)s::bigint, %(last)s) AS n,
     LATERAL (SELECT n / 8 AS group_number, n / 8 / %(symbols)s AS round, n %% 8 AS place) AS part,
     LATERAL (SELECT (interval '30 days' - interval '1 hour') / %(orders)s AS step) AS pace,
     LATERAL (SELECT now() - interval '30 days' + n * step AS at) AS came,
     LATERAL (SELECT CASE (place + round) %% 2 WHEN 0 THEN 'bid' ELSE 'ask' END AS side,
                     CASE WHEN place < 6 THEN 0 ELSE 1 END AS away,
                     100 + 0.05 * (abs(round %% 200 - 100) - 50) AS base,
                     CASE place
                       WHEN 5 THEN (ARRAY['by_broker', 'expired', 'ioc_remainder', 'no_liquidity'])[1 + round %% 4]
                       WHEN 6 THEN (ARRAY['by_broker', 'by_operator', 'broker_suspended'])[1 + round %% 3]
                       WHEN 7 THEN (ARRAY['expired', 'by_broker', 'fok_not_filled'])[1 + round %% 3]
                       ELSE 'by_broker' END AS ending) AS fate
ORDER BY n
"""

# The trades are distributed evenly over the pairs. They have the seller's price, unless it is a market order.
_DRAW_TRADES = """
INSERT INTO drawn_trade
SELECT dealt.n, uuidv7(taker.created_at - statement_timestamp()), maker.n, taker.n, taker.symbol,
       CASE WHEN taker.side = 'ask' THEN coalesce(taker.price, maker.price) ELSE maker.price END,
       10 + dealt.n * 7 %% 90, taker.created_at
FROM drawn_order maker
JOIN drawn_order taker ON taker.n = maker.n + 1 AND taker.n %% 8 BETWEEN 1 AND 5,
     LATERAL (SELECT maker.n / 8 * 5 + maker.n %% 8 AS link) AS pair,
     LATERAL generate_series(link * %(trades)s / %(pairs)s, (link + 1) * %(trades)s / %(pairs)s - 1) AS dealt(n)
ORDER BY dealt.n
"""

# The quantity of an order is its traded quantity, plus a remainder for the last trading order of a group and for orders
# without trades. Each change of the book counts: an arrival, a maker's fill, the end of a resting order.
_DERIVE_ORDERS = """
INSERT INTO derived_order
SELECT o.*, filled + left_over, filled, coalesce(took.value, 0) + coalesce(gave.value, 0),
       CASE WHEN left_over = 0 THEN 'filled' WHEN ending = 'expired' THEN 'expired' ELSE 'cancelled' END,
       has_event, 1 + coalesce(took.trades, 0) + has_event::int
FROM drawn_order o
LEFT JOIN (SELECT taker AS n, sum(quantity)::bigint AS quantity, sum(price * quantity) AS value, count(*) AS trades
           FROM drawn_trade GROUP BY 1) took USING (n)
LEFT JOIN (SELECT maker AS n, sum(quantity)::bigint AS quantity, sum(price * quantity) AS value
           FROM drawn_trade GROUP BY 1) gave USING (n),
     LATERAL (SELECT coalesce(took.quantity, 0) + coalesce(gave.quantity, 0) AS filled) AS done,
     LATERAL (SELECT CASE WHEN filled = 0 OR n %% 8 = 5 THEN 10 + n %% 50 ELSE 0 END AS left_over) AS open,
     LATERAL (SELECT left_over > 0 AND ending NOT IN ('ioc_remainder', 'no_liquidity', 'fok_not_filled') AS has_event)
"""

_SAVE = """
WITH numbered AS MATERIALIZED (
  SELECT o.*, i.sequence + 1 - o.changes + sum(o.changes) OVER (PARTITION BY o.symbol ORDER BY n) AS sequence
  FROM derived_order o JOIN exchange_instrument i USING (symbol)
), counted AS (
  UPDATE exchange_instrument i SET sequence = i.sequence + moved.changes
  FROM (SELECT symbol, sum(changes) AS changes FROM derived_order GROUP BY 1) moved WHERE moved.symbol = i.symbol
), traded AS (
  INSERT INTO orders_trade (
    id, symbol, price, quantity, taker_side, bid_order_id, ask_order_id, bid_broker_id, ask_broker_id, executed_at)
  SELECT t.id, t.symbol, t.price, t.quantity, taker.side, bid.id, ask.id, bid.broker_id, ask.broker_id, t.executed_at
  FROM drawn_trade t
  JOIN drawn_order maker ON maker.n = t.maker
  JOIN drawn_order taker ON taker.n = t.taker
  JOIN drawn_order bid ON bid.n = CASE taker.side WHEN 'bid' THEN t.taker ELSE t.maker END
  JOIN drawn_order ask ON ask.n = CASE taker.side WHEN 'ask' THEN t.taker ELSE t.maker END
  ORDER BY t.n
)
INSERT INTO orders_order (
  id, client_order_id, broker_id, document_number, symbol, sequence, type, side, price, quantity, time_in_force,
  expires_at, created_at, filled_quantity, filled_value, status, cancelled_at, expired_at, cancel_reason)
SELECT id, CASE WHEN n %% 2 = 0 THEN 'past-' || n END, broker_id, lpad((n %% 100000)::text, 11, '0'), symbol, sequence,
       CASE WHEN price IS NULL THEN 'market' ELSE 'limit' END, side, price, quantity,
       CASE ending WHEN 'expired' THEN 'gtd' WHEN 'fok_not_filled' THEN 'fok' WHEN 'ioc_remainder' THEN 'ioc'
                   WHEN 'no_liquidity' THEN 'ioc' ELSE 'gtc' END,
       CASE ending WHEN 'expired' THEN closes_at END, created_at, filled, value, status,
       CASE status WHEN 'cancelled' THEN CASE WHEN has_event THEN closes_at ELSE created_at END END,
       CASE status WHEN 'expired' THEN closes_at END, CASE status WHEN 'cancelled' THEN ending END
FROM numbered ORDER BY n
"""

# The maker's event precedes the taker's. The bodies equal those that `webhooks.outbox` writes.
_PUBLISH = """
WITH side AS (
  SELECT trade.n AS trade, trade.id AS trade_id, trade.price, trade.quantity, trade.executed_at, is_taker,
         o.id AS order_id, o.broker_id, o.symbol, o.side,
         o.quantity - sum(trade.quantity) OVER (PARTITION BY o.n ORDER BY trade.n) AS remaining
  FROM drawn_trade trade
  CROSS JOIN (VALUES (false), (true)) AS role(is_taker)
  JOIN derived_order o ON o.n = CASE WHEN is_taker THEN trade.taker ELSE trade.maker END
), happened AS (
  SELECT broker_id, executed_at AS at, trade, is_taker, 'trade.executed' AS type,
         format('{"trade_id":"%%s","order_id":"%%s","symbol":"%%s","side":"%%s","price":%%s,"quantity":%%s,'
                '"status":"%%s","remaining_quantity":%%s}', trade_id, order_id, symbol, side, price, quantity,
                CASE remaining WHEN 0 THEN 'filled' ELSE 'partially_filled' END, remaining) AS data
  FROM side
  UNION ALL
  SELECT broker_id, closes_at, NULL, NULL, 'order.' || status,
         format('{"order_id":"%%s","symbol":"%%s","side":"%%s","price":%%s,"quantity":%%s,"filled_quantity":%%s,'
                '"remaining_quantity":%%s,"status":"%%s"}', id, symbol, side, price, quantity, filled,
                quantity - filled, status)
  FROM derived_order WHERE has_event
), numbered AS (
  SELECT happened.*, b.event_sequence + row_number() OVER (PARTITION BY b.id ORDER BY at, trade, is_taker) AS sequence
  FROM happened JOIN exchange_broker b ON b.id = broker_id
)
INSERT INTO webhooks_event (id, broker_id, sequence, type, occurred_at, body)
SELECT uuidv7(at - statement_timestamp()), broker_id, sequence, type, at,
       format('{"event":"%%s","timestamp":"%%s","data":%%s}', type,
              replace(to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000Z', 'Z'), data)
FROM numbered ORDER BY at, trade, is_taker
"""

# Deliveries of this chunk's events, which no broker has counted yet.
_DELIVER = """
INSERT INTO webhooks_delivery (
  id, event_id, subscription_id, claimed_at, completed_at, status_code, error, duration_ms)
SELECT uuidv7(e.occurred_at - statement_timestamp()), e.id, s.id, e.occurred_at + interval '5 ms',
       e.occurred_at + interval '5 ms' + took * interval '1 ms',
       CASE WHEN is_late THEN NULL WHEN e.sequence %% 50 = 1 THEN 500 ELSE 200 END,
       CASE WHEN is_late THEN 'timeout' ELSE '' END, took
FROM exchange_broker b
JOIN webhooks_event e ON e.broker_id = b.id AND e.sequence > b.event_sequence AND e.type = 'trade.executed'
JOIN webhooks_subscription s ON s.broker_id = b.id AND s.event_type = e.type,
     LATERAL (SELECT e.sequence %% 100 = 0 AS is_late) AS fate,
     LATERAL (SELECT CASE WHEN is_late THEN 5000 ELSE 3 + e.sequence %% 40 END AS took) AS time
ORDER BY e.occurred_at, e.id LIMIT %(missing)s
"""

_COUNT_EVENTS = """
UPDATE exchange_broker b
SET event_sequence = coalesce((SELECT max(sequence) FROM webhooks_event WHERE broker_id = b.id), 0)
WHERE b.id LIKE 'bench-%'
"""

# 500 levels per side, a cent apart, from one cent off 100. The brokers rotate over the levels.
_ADD_RESTING_ORDERS = """
WITH resting AS (
  INSERT INTO orders_order (
    id, client_order_id, broker_id, document_number, symbol, sequence, type, side, price, quantity, time_in_force,
    expires_at, created_at, filled_quantity, filled_value, status)
  SELECT uuidv7(at - statement_timestamp()), 'rest-' || n, 'bench-' || 1 + (n + n / (2 * %(symbols)s)) %% %(brokers)s,
         lpad((n %% 100000)::text, 11, '0'), i.symbol, i.sequence + 1 + n / %(symbols)s, 'limit',
         CASE sign WHEN 1 THEN 'ask' ELSE 'bid' END, 100 + sign * 0.01 * (1 + n / (2 * %(symbols)s) %% 500),
         100 * (1 + n %% 10), CASE WHEN is_timed THEN 'gtd' ELSE 'gtc' END,
         CASE WHEN is_timed THEN now() + interval '365 days' END, at, 0, 0, 'pending'
  FROM generate_series(0, %(resting)s::bigint - 1) AS n
  JOIN exchange_instrument i ON i.symbol = 'S' || 1 + n %% %(symbols)s,
       LATERAL (SELECT 1 - n / %(symbols)s %% 2 * 2 AS sign, n / %(symbols)s %% 7 = 0 AS is_timed,
                       now() - interval '1 hour' + interval '50 minutes' * n / %(resting)s AS at) AS drawn
  ORDER BY n
  RETURNING symbol
)
UPDATE exchange_instrument i SET sequence = i.sequence + came.orders
FROM (SELECT symbol, count(*) AS orders FROM resting GROUP BY 1) came WHERE came.symbol = i.symbol
"""

# Balances are the sums of the journal, and reservations are the sums of the open orders.
_UPDATE_BALANCES = """
UPDATE exchange_broker b
SET cash = b.cash + coalesce(moved.cash, 0), reserved_cash = coalesce(held.cash, 0),
    updated_at = now() - interval '10 minutes'
FROM exchange_broker same
LEFT JOIN (
  SELECT id, sum(cash) AS cash FROM (
    SELECT bid_broker_id AS id, -sum(price * quantity) AS cash FROM orders_trade GROUP BY 1
    UNION ALL SELECT ask_broker_id, sum(price * quantity) FROM orders_trade GROUP BY 1) sides GROUP BY 1
) moved USING (id)
LEFT JOIN (
  SELECT broker_id AS id, sum(price * (quantity - filled_quantity)) AS cash FROM orders_order
  WHERE side = 'bid' AND orders_is_working(status) GROUP BY 1
) held USING (id)
WHERE b.id = same.id AND b.id LIKE 'bench-%';
UPDATE exchange_holding h
SET quantity = h.quantity + coalesce(moved.quantity, 0), reserved = coalesce(held.shares, 0),
    open_orders = coalesce(held.orders, 0)
FROM exchange_holding same
LEFT JOIN (
  SELECT broker_id, symbol, sum(quantity) AS quantity FROM (
    SELECT bid_broker_id AS broker_id, symbol, sum(quantity) AS quantity FROM orders_trade GROUP BY 1, 2
    UNION ALL SELECT ask_broker_id, symbol, -sum(quantity) FROM orders_trade GROUP BY 1, 2) sides GROUP BY 1, 2
) moved USING (broker_id, symbol)
LEFT JOIN (
  SELECT broker_id, symbol, count(*) AS orders, sum(quantity - filled_quantity) FILTER (WHERE side = 'ask') AS shares
  FROM orders_order WHERE orders_is_working(status) GROUP BY 1, 2
) held USING (broker_id, symbol)
WHERE h.id = same.id AND h.broker_id LIKE 'bench-%'
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.history", description="Fill DATABASE_URL with a history.")
    for name, default in {"orders": None, "trades": None, "deliveries": 0, "resting": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, required=default is None)
    parser.add_argument("--brokers", type=int, default=20)
    parser.add_argument("--symbols", type=int, default=16)
    load_history(os.environ["DATABASE_URL"], **vars(parser.parse_args()))


if __name__ == "__main__":
    main()
