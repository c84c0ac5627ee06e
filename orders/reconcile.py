"""Recomputes what must always be true from transfers, trades and open orders, and names every difference.

Each check is one set-based query that returns the rows that break it. Together, in one snapshot, they can run on a live
database: see `manage.py reconcile`.
"""

from dataclasses import dataclass

from django.db.backends.utils import CursorWrapper

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """A check, how many rows break it, and some of them."""

    check: str
    count: int
    examples: list[str]


def findings(cursor: CursorWrapper) -> list[Finding]:
    """Run every check; a sound exchange has a count of 0 in each."""
    result = []
    for check, sql in CHECKS.items():
        cursor.execute(
            f"WITH broken AS MATERIALIZED ({sql}) "
            f"SELECT (SELECT count(*) FROM broken), ARRAY(SELECT what::text FROM broken LIMIT {EXAMPLES})"
        )
        count, examples = cursor.fetchone()
        result.append(Finding(check, count, examples))
    return result


_WORKING = "status IN ('pending', 'partially_filled')"

CHECKS = {
    "cash is what came in, plus sales, less purchases": """
        SELECT format('%s has %s, journal says %s', b.id, b.cash, coalesce(j.cash, 0)) AS what
        FROM exchange_broker b
        LEFT JOIN (
          SELECT broker_id, sum(cash) AS cash FROM (
            SELECT broker_id, cash FROM exchange_transfer WHERE cash IS NOT NULL
            UNION ALL SELECT bid_broker_id, -sum(price * quantity) FROM orders_trade GROUP BY 1
            UNION ALL SELECT ask_broker_id, sum(price * quantity) FROM orders_trade GROUP BY 1
          ) entries GROUP BY broker_id
        ) j ON j.broker_id = b.id
        WHERE b.cash <> coalesce(j.cash, 0)""",
    "shares are what came in, plus purchases, less sales": """
        SELECT format('%s %s has %s, journal says %s', broker_id, symbol, coalesce(h.quantity, 0),
                      coalesce(j.quantity, 0)) AS what
        FROM exchange_holding h
        FULL JOIN (
          SELECT broker_id, symbol, sum(quantity) AS quantity FROM (
            SELECT broker_id, symbol, quantity FROM exchange_transfer WHERE quantity IS NOT NULL
            UNION ALL SELECT bid_broker_id, symbol, sum(quantity) FROM orders_trade GROUP BY 1, 2
            UNION ALL SELECT ask_broker_id, symbol, -sum(quantity) FROM orders_trade GROUP BY 1, 2
          ) entries GROUP BY 1, 2
        ) j USING (broker_id, symbol)
        WHERE coalesce(h.quantity, 0) <> coalesce(j.quantity, 0)""",
    "reserved cash is what working bids may cost": f"""
        SELECT format('%s reserves %s, bids need %s', b.id, b.reserved_cash, coalesce(o.needed, 0)) AS what
        FROM exchange_broker b
        LEFT JOIN (
          SELECT broker_id, sum(price * (quantity - filled_quantity)) AS needed FROM orders_order
          WHERE side = 'bid' AND {_WORKING} GROUP BY 1
        ) o ON o.broker_id = b.id
        WHERE b.reserved_cash <> coalesce(o.needed, 0)""",
    "reserved shares are what working asks may sell": f"""
        SELECT format('%s %s reserves %s, asks need %s', broker_id, symbol, coalesce(h.reserved, 0),
                      coalesce(o.needed, 0)) AS what
        FROM exchange_holding h
        FULL JOIN (
          SELECT broker_id, symbol, sum(quantity - filled_quantity) AS needed FROM orders_order
          WHERE side = 'ask' AND {_WORKING} GROUP BY 1, 2
        ) o USING (broker_id, symbol)
        WHERE coalesce(h.reserved, 0) <> coalesce(o.needed, 0)""",
    "nothing is negative, and nothing reserved exceeds what is there": """
        SELECT id AS what FROM exchange_broker WHERE NOT (0 <= reserved_cash AND reserved_cash <= cash)
        UNION ALL
        SELECT broker_id || ' ' || symbol FROM exchange_holding WHERE NOT (0 <= reserved AND reserved <= quantity)""",
    "an order is filled by exactly its trades": """
        SELECT format('order %s', id) AS what
        FROM (SELECT id, filled_quantity, filled_value FROM orders_order WHERE filled_quantity > 0) o
        FULL JOIN (
          SELECT id, sum(quantity) AS quantity, sum(value) AS value FROM (
            SELECT bid_order_id AS id, quantity, price * quantity AS value FROM orders_trade
            UNION ALL SELECT ask_order_id, quantity, price * quantity FROM orders_trade
          ) sides GROUP BY id
        ) t USING (id)
        WHERE (o.filled_quantity, o.filled_value) IS DISTINCT FROM (t.quantity, t.value)""",
    "a trade is between a bid and an ask of its instrument, at a price both accept": """
        SELECT format('trade %s', t.id) AS what
        FROM orders_trade t
        JOIN orders_order bid ON bid.id = t.bid_order_id
        JOIN orders_order ask ON ask.id = t.ask_order_id
        WHERE (bid.side, ask.side) <> ('bid', 'ask') OR bid.symbol <> t.symbol OR ask.symbol <> t.symbol
          OR bid.broker_id <> t.bid_broker_id OR ask.broker_id <> t.ask_broker_id
          OR t.price > bid.price OR t.price < ask.price""",
    "no book is crossed": f"""
        SELECT format('%s: bid %s, ask %s', symbol, max(price) FILTER (WHERE side = 'bid'),
                      min(price) FILTER (WHERE side = 'ask')) AS what
        FROM orders_order
        WHERE {_WORKING} AND (expires_at IS NULL OR expires_at > statement_timestamp())
        GROUP BY symbol
        HAVING max(price) FILTER (WHERE side = 'bid') >= min(price) FILTER (WHERE side = 'ask')""",
    "a status fits what was filled, and only what may rest is working": f"""
        SELECT format('order %s is %s', id, status) AS what FROM orders_order
        WHERE CASE status
            WHEN 'pending' THEN filled_quantity <> 0
            WHEN 'partially_filled' THEN filled_quantity <= 0 OR filled_quantity >= quantity
            WHEN 'filled' THEN filled_quantity <> quantity
            ELSE filled_quantity >= quantity OR (cancelled_at IS NULL AND expired_at IS NULL) END
          OR {_WORKING} AND (type = 'market' OR time_in_force IN ('ioc', 'fok'))""",
    "arrival numbers are unique and counted by their book": """
        SELECT format('%s %s', o.symbol, o.sequence) AS what
        FROM orders_order o JOIN exchange_instrument i ON i.symbol = o.symbol
        GROUP BY o.symbol, o.sequence, i.sequence HAVING count(*) > 1 OR o.sequence > i.sequence OR o.sequence < 1""",
    "one client_order_id, one order": """
        SELECT format('%s %s', broker_id, client_order_id) AS what FROM orders_order
        WHERE client_order_id IS NOT NULL GROUP BY broker_id, client_order_id HAVING count(*) > 1""",
    "one reference, one transfer": """
        SELECT reference AS what FROM exchange_transfer GROUP BY reference HAVING count(*) > 1""",
    "a broker's events are numbered from 1 without a gap": """
        SELECT format('%s counts %s, has %s up to %s', b.id, b.event_sequence, coalesce(e.count, 0),
                      coalesce(e.last, 0)) AS what
        FROM exchange_broker b
        LEFT JOIN (
          SELECT broker_id, count(DISTINCT sequence) AS count, min(sequence) AS first, max(sequence) AS last
          FROM webhooks_event GROUP BY 1
        ) e ON e.broker_id = b.id
        WHERE (b.event_sequence, b.event_sequence) IS DISTINCT FROM (coalesce(e.count, 0), coalesce(e.last, 0))
           OR e.first > 1""",
    "every trade, cancel and expiry has its event, and every event its cause": """
        SELECT format('%s %s: %s events, %s causes', broker_id, type, coalesce(e.count, 0),
                      coalesce(c.count, 0)) AS what
        FROM (SELECT broker_id, type, count(*) AS count FROM webhooks_event GROUP BY 1, 2) e
        FULL JOIN (
          SELECT broker_id, type, sum(count) AS count FROM (
            SELECT bid_broker_id AS broker_id, 'trade.executed' AS type, count(*) FROM orders_trade GROUP BY 1
            UNION ALL SELECT ask_broker_id, 'trade.executed', count(*) FROM orders_trade GROUP BY 1
            UNION ALL SELECT broker_id, 'order.expired', count(*) FROM orders_order WHERE status = 'expired' GROUP BY 1
            UNION ALL SELECT broker_id, 'order.cancelled', count(*) FROM orders_order
              WHERE cancel_reason IN ('by_broker', 'by_operator', 'broker_suspended') GROUP BY 1
          ) causes GROUP BY 1, 2
        ) c USING (broker_id, type)
        WHERE coalesce(e.count, 0) <> coalesce(c.count, 0)""",
}
