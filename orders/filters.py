"""Query parameters that filter the lists of orders and trades."""

from exchange.http.fields import Choice, Text, Timestamp
from exchange.http.filters import FieldFilter, Filters
from exchange.rules import DOCUMENT_NUMBER, SYMBOL
from orders.enums import OrderStatus, Side
from orders.models import Order, Trade


class OrderFilters(Filters):
    """Filters of a broker's orders."""

    status = FieldFilter(Choice(OrderStatus))
    symbol = FieldFilter(Text(SYMBOL), "instrument")
    side = FieldFilter(Choice(Side))
    document_number = FieldFilter(Text(DOCUMENT_NUMBER))
    created_after = FieldFilter(Timestamp(), "created_at", "gt")
    created_before = FieldFilter(Timestamp(), "created_at", "lt")

    class Meta:
        model = Order
        fields = ()


class TradeFilters(Filters):
    """Filters of a broker's trades."""

    symbol = FieldFilter(Text(SYMBOL), "instrument")
    after = FieldFilter(Timestamp(), "executed_at", "gt")
    before = FieldFilter(Timestamp(), "executed_at", "lt")

    class Meta:
        model = Trade
        fields = ()
