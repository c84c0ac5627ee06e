"""The write path takes another broker's order for none: of what a broker cancels, only its own orders are found.

Else the time of the answer told whether the order exists: its instrument and its broker were locked before it was seen
to be somebody else's.
"""

from importlib import import_module

from django.db import migrations

BEFORE = import_module("orders.migrations.0006_read_trades_by_order")
READ_MARKET = BEFORE.READ_MARKET.replace(BEFORE.FROM_A_UNION, BEFORE.ORDER_BY_ORDER)

# As a filter of what was found by its id: a join may be planned the other way round. The old code sends no such array.
IS_CANCELLABLE = """o.id = ANY (asked.cancels)
      AND o.broker_id = coalesce(asked.cancellers[array_position(asked.cancels, o.id)], o.broker_id)"""
REPLACEMENTS = {
    "cancels uuid[], sweeps json": "cancels uuid[], cancellers text[], sweeps json",
    "o.id = ANY (asked.cancels)": IS_CANCELLABLE,
}


def replaced(function: str) -> str:
    for old, new in REPLACEMENTS.items():
        assert old in function
        function = function.replace(old, new)
    return function


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0009_index_documents'),
    ]

    operations = [
        migrations.RunSQL(replaced(READ_MARKET), READ_MARKET),
    ]
