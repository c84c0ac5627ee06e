"""Checks of all invariants: recompute balances and states from transfers, trades and orders, and list the differences.

Each check is one set-based query that returns the rows that violate it. All of them run in one snapshot, so they can
run on a live database. Because the data grows, a check reads each large table once, with parallel workers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from django.conf import settings
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check: the number of rows that violate it, some examples, and the duration."""

    check: str
    count: int
    examples: list[str]
    seconds: float


@contextmanager
def snapshot() -> Iterator[CursorWrapper]:
    """A cursor with a snapshot of the database, read-only, and with a long statement timeout."""
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for name, value in _SESSION.items():
            cursor.execute("SELECT set_config(%s, %s, true)", [name, value])
        yield cursor


def findings(cursor: CursorWrapper) -> Iterator[Finding]:
    """Run the checks one after the other. A consistent database has a count of 0 in each."""
    for check, sql in CHECKS.items():
        started = perf_counter()
        cursor.execute(
            f"WITH broken AS MATERIALIZED ({sql}) "
            f"SELECT (SELECT count(*) FROM broken), ARRAY(SELECT what::text FROM broken LIMIT {EXAMPLES})"
        )
        count, examples = cursor.fetchone()
        yield Finding(check, count, examples, perf_counter() - started)


# Makes parallel plans cheap: the checks are few and large, and workers return only the rows that violate a check.
_SESSION = {
    "statement_timeout": str(settings.RECONCILE_STATEMENT_TIMEOUT_MS),
    "work_mem": settings.RECONCILE_WORK_MEM,
    "parallel_setup_cost": "0",
    "parallel_tuple_cost": "0",
    "random_page_cost": "1.1",
    "client_connection_check_interval": "1s",  # cancels a check, which may take minutes, when its client is gone
}

CHECKS = {
    "cash equals transfers plus sales minus purchases": """
        SELECT format('%s has %s, journal says %s', b.id, b.cash, coalesce(j.cash, 0)) AS what
        FROM exchange_broker b
        LEFT JOIN (
          SELECT broker_id, sum(cash) AS cash FROM (
            SELECT broker_id, cash FROM exchange_transfer WHERE cash IS NOT NULL
            UNION ALL
            SELECT side.* FROM (
              SELECT bid_broker_id, ask_broker_id, sum(price * quantity) AS value FROM orders_trade GROUP BY 1, 2
            ) t, LATERAL (VALUES (bid_broker_id, -value), (ask_broker_id, value)) AS side
          ) entries GROUP BY broker_id
        ) j ON j.broker_id = b.id
        WHERE b.cash <> coalesce(j.cash, 0)""",
    "shares equal transfers plus purchases minus sales": """
        SELECT format('%s %s has %s, journal says %s', broker_id, symbol, coalesce(h.quantity, 0),
                      coalesce(j.quantity, 0)) AS what
        FROM exchange_holding h
        FULL JOIN (
          SELECT broker_id, symbol, sum(quantity) AS quantity FROM (
            SELECT broker_id, symbol, quantity FROM exchange_transfer WHERE quantity IS NOT NULL
            UNION ALL
            SELECT side.* FROM (
              SELECT bid_broker_id, ask_broker_id, symbol, sum(quantity) AS quantity FROM orders_trade GROUP BY 1, 2, 3
            ) t, LATERAL (VALUES (bid_broker_id, symbol, quantity), (ask_broker_id, symbol, -quantity)) AS side
          ) entries GROUP BY 1, 2
        ) j USING (broker_id, symbol)
        WHERE coalesce(h.quantity, 0) <> coalesce(j.quantity, 0)""",
    "reserved cash equals the cost of working bids": """
        SELECT format('%s reserves %s, bids need %s', b.id, b.reserved_cash, coalesce(o.needed, 0)) AS what
        FROM exchange_broker b
        LEFT JOIN (
          SELECT broker_id, sum(price * (quantity - filled_quantity)) AS needed FROM orders_order
          WHERE side = 'bid' AND orders_is_working(status) GROUP BY 1
        ) o ON o.broker_id = b.id
        WHERE b.reserved_cash <> coalesce(o.needed, 0)""",
    "reserved shares equal the remainder of working asks": """
        SELECT format('%s %s reserves %s, asks need %s', broker_id, symbol, coalesce(h.reserved, 0),
                      coalesce(o.needed, 0)) AS what
        FROM exchange_holding h
        FULL JOIN (
          SELECT broker_id, symbol, sum(quantity - filled_quantity) AS needed FROM orders_order
          WHERE side = 'ask' AND orders_is_working(status) GROUP BY 1, 2
        ) o USING (broker_id, symbol)
        WHERE coalesce(h.reserved, 0) <> coalesce(o.needed, 0)""",
    "open order counts are correct": """
        SELECT format('%s %s counts %s, has %s', broker_id, symbol, coalesce(h.open_orders, 0),
                      coalesce(o.open_orders, 0)) AS what
        FROM (SELECT broker_id, symbol, open_orders FROM exchange_holding WHERE open_orders <> 0) h
        FULL JOIN (
          SELECT broker_id, symbol, count(*) AS open_orders FROM orders_order
          WHERE orders_is_working(status) GROUP BY 1, 2
        ) o USING (broker_id, symbol)
        WHERE coalesce(h.open_orders, 0) <> coalesce(o.open_orders, 0)""",
    "balances and reservations are not negative, and balances cover reservations": """
        SELECT id AS what FROM exchange_broker WHERE NOT (0 <= reserved_cash AND reserved_cash <= cash)
        UNION ALL
        SELECT broker_id || ' ' || symbol FROM exchange_holding WHERE NOT (0 <= reserved AND reserved <= quantity)""",
    # One query per side, to halve the number of groups.
    "filled quantities and values equal those of the orders' trades": " UNION ALL ".join(
        f"""
        SELECT format('order %s', id) AS what
        FROM (
          SELECT id, filled_quantity, filled_value FROM orders_order
          WHERE side = '{side}' AND (filled_quantity <> 0 OR filled_value <> 0)
        ) o
        FULL JOIN (
          SELECT {side}_order_id AS id, sum(quantity) AS quantity, sum(price * quantity) AS value
          FROM orders_trade GROUP BY 1
        ) t USING (id)
        WHERE (o.filled_quantity, o.filled_value) IS DISTINCT FROM (t.quantity, t.value)"""
        for side in ("bid", "ask")
    ),
    # An order that does not exist, or is on the other side, is null here and therefore differs.
    "trades have a bid and an ask of their instrument, at a price within both limits": """
        SELECT format('trade %s', t.id) AS what
        FROM orders_trade t
        LEFT JOIN orders_order bid ON bid.id = t.bid_order_id AND bid.side = 'bid'
        LEFT JOIN orders_order ask ON ask.id = t.ask_order_id AND ask.side = 'ask'
        WHERE (bid.symbol, ask.symbol) IS DISTINCT FROM (t.symbol, t.symbol)
          OR (bid.broker_id, ask.broker_id) IS DISTINCT FROM (t.bid_broker_id, t.ask_broker_id)
          OR t.price > bid.price OR t.price < ask.price""",
    "orders, trades and events refer to existing brokers and instruments": """
        SELECT format('order %s', o.id) AS what FROM orders_order o
        LEFT JOIN exchange_broker b ON b.id = o.broker_id
        LEFT JOIN exchange_instrument i ON i.symbol = o.symbol
        WHERE b.id IS NULL OR i.symbol IS NULL
        UNION ALL
        SELECT format('trade %s', t.id) FROM orders_trade t
        LEFT JOIN exchange_broker bidder ON bidder.id = t.bid_broker_id
        LEFT JOIN exchange_broker asker ON asker.id = t.ask_broker_id
        LEFT JOIN exchange_instrument i ON i.symbol = t.symbol
        WHERE bidder.id IS NULL OR asker.id IS NULL OR i.symbol IS NULL
        UNION ALL
        SELECT format('event %s of %s', e.sequence, e.broker_id) FROM webhooks_event e
        LEFT JOIN exchange_broker b ON b.id = e.broker_id
        WHERE b.id IS NULL""",
    "deliveries refer to existing events and subscriptions": """
        SELECT format('delivery %s', d.id) AS what FROM webhooks_delivery d
        LEFT JOIN webhooks_event e ON e.id = d.event_id
        LEFT JOIN webhooks_subscription s ON s.id = d.subscription_id
        WHERE e.id IS NULL OR s.id IS NULL""",
    "no book is crossed": """
        SELECT format('%s: bid %s, ask %s', symbol, max(price) FILTER (WHERE side = 'bid'),
                      min(price) FILTER (WHERE side = 'ask')) AS what
        FROM orders_order
        WHERE orders_is_working(status) AND (expires_at IS NULL OR expires_at > statement_timestamp())
        GROUP BY symbol
        HAVING max(price) FILTER (WHERE side = 'bid') >= min(price) FILTER (WHERE side = 'ask')""",
    "statuses match filled quantities, and only orders that can rest are working": """
        SELECT format('order %s is %s', id, status) AS what FROM orders_order
        WHERE CASE status
            WHEN 'pending' THEN filled_quantity <> 0
            WHEN 'partially_filled' THEN filled_quantity <= 0 OR filled_quantity >= quantity
            WHEN 'filled' THEN filled_quantity <> quantity
            ELSE filled_quantity >= quantity OR (cancelled_at IS NULL AND expired_at IS NULL) END
          OR orders_is_working(status) AND (type = 'market' OR time_in_force IN ('ioc', 'fok'))""",
    "arrival numbers are unique and within the sequence of their book": """
        SELECT format('%s %s', o.symbol, o.sequence) AS what
        FROM (
          SELECT symbol, sequence, lag(sequence) OVER (PARTITION BY symbol ORDER BY sequence) AS before
          FROM orders_order
        ) o JOIN exchange_instrument i ON i.symbol = o.symbol
        WHERE o.sequence = o.before OR o.sequence > i.sequence OR o.sequence < 1""",
    "client_order_ids are unique": """
        SELECT format('%s %s', broker_id, client_order_id) AS what
        FROM (
          SELECT broker_id, client_order_id,
                 lag(client_order_id) OVER (PARTITION BY broker_id ORDER BY client_order_id) AS before
          FROM orders_order WHERE client_order_id IS NOT NULL
        ) o WHERE client_order_id = before""",
    "transfer references are unique": """
        SELECT reference AS what FROM exchange_transfer GROUP BY reference HAVING count(*) > 1""",
    "events of a broker are numbered from 1 without gaps": """
        SELECT format('%s counts %s, has %s up to %s', b.id, b.event_sequence, coalesce(e.count, 0),
                      coalesce(e.last, 0)) AS what
        FROM exchange_broker b
        LEFT JOIN (
          SELECT broker_id, count(DISTINCT sequence) AS count, min(sequence) AS first, max(sequence) AS last
          FROM webhooks_event GROUP BY 1
        ) e ON e.broker_id = b.id
        WHERE (b.event_sequence, b.event_sequence) IS DISTINCT FROM (coalesce(e.count, 0), coalesce(e.last, 0))
           OR e.first > 1""",
    "trades, cancels and expiries have events, and events have causes": """
        SELECT format('%s %s: %s events, %s causes', broker_id, type, coalesce(e.count, 0),
                      coalesce(c.count, 0)) AS what
        FROM (SELECT broker_id, type, count(*) AS count FROM webhooks_event GROUP BY 1, 2) e
        FULL JOIN (
          SELECT broker_id, type, sum(count) AS count FROM (
            SELECT side.broker_id, 'trade.executed' AS type, count FROM (
              SELECT bid_broker_id, ask_broker_id, count(*) FROM orders_trade GROUP BY 1, 2
            ) t, LATERAL (VALUES (bid_broker_id), (ask_broker_id)) AS side(broker_id)
            UNION ALL
            SELECT closed.broker_id, closed.type, count FROM (
              SELECT broker_id, count(*) FILTER (WHERE status = 'expired') AS expired,
                     count(*) FILTER (WHERE cancel_reason IN ('by_broker', 'by_operator', 'broker_suspended'))
                       AS cancels
              FROM orders_order GROUP BY 1
            ) o, LATERAL (VALUES (broker_id, 'order.expired', expired), (broker_id, 'order.cancelled', cancels))
                   AS closed(broker_id, type, count)
          ) causes GROUP BY 1, 2
        ) c USING (broker_id, type)
        WHERE coalesce(e.count, 0) <> coalesce(c.count, 0)""",
    # The first example is the first broken entry.
    "the audit log is complete and unchanged": """
        SELECT what FROM (
          SELECT number, CASE
            WHEN number <> coalesce(lag(number) OVER chain, 0) + 1
              THEN format('entry %s, %s, follows entry %s', number, id, coalesce(lag(number) OVER chain, 0))
            WHEN hash <> exchange_audit_hash(coalesce(lag(hash) OVER chain, ''), entry)
              THEN format('entry %s, %s, is not as it was written', number, id) END AS what
          FROM exchange_auditentry entry WINDOW chain AS (ORDER BY number, id)
          ORDER BY number, id
        ) entries WHERE what IS NOT NULL
        UNION ALL
        SELECT format('the head is entry %s, the last one is entry %s', coalesce(head.number::text, 'missing'),
                      coalesce(last.number, 0))
        FROM (VALUES (1)) AS always(one)
        LEFT JOIN exchange_audithead head ON true
        LEFT JOIN (SELECT number, hash FROM exchange_auditentry ORDER BY number DESC, id DESC LIMIT 1) last ON true
        WHERE (coalesce(last.number, 0), coalesce(last.hash, '')) IS DISTINCT FROM (head.number, head.hash)""",
}
