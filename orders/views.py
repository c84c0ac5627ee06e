"""Orders, trades and the market over REST: translate in, make one call, translate out."""

from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Any
from uuid import UUID

from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response

from exchange import errors
from exchange import services as exchange_services
from exchange.api import ExchangeView
from exchange.database import already_committed
from exchange.errors import BrokerNotFound, FieldError, SymbolNotFound
from exchange.paging import NEWEST_FIRST, Keyset
from exchange.rules import BrokerStatus, Scope, price_decimals
from exchange.schema import documented, header
from exchange.serializers import ReasonForm
from exchange.wire import Instant
from orders import market_data, sequencer, services
from orders.bodies import (
    BrokerStanding,
    BrokerTrade,
    BrokerTradePage,
    OrderBody,
    OrderPage,
    OrderSummary,
    TapePage,
    TapeTrade,
)
from orders.commands import CancelOrder, PlaceOrder, Replayed
from orders.filters import OrderFilters, TradeFilters
from orders.models import Order, OrderQuerySet, Trade
from orders.serializers import BookQuery, OrderLookup, PlaceOrderForm, QuoteQuery, SuspendForm
from orders.terms import CancelReason, Side

PLACE_REFUSALS = (
    SymbolNotFound,
    errors.ClientOrderIdConflict,
    errors.InsufficientBalance,
    errors.InsufficientHoldings,
    errors.InstrumentHalted,
    errors.BrokerSuspended,
    errors.TooManyFills,
)
REPLAYED = {"Idempotent-Replayed": "true"}


class OrdersView(ExchangeView):
    """Place an order, or find one by the id its broker gave it."""

    scopes = {"POST": (Scope.TRADE,), "GET": (Scope.READ,)}
    body_class = PlaceOrderForm
    query_class = OrderLookup

    @documented(
        "place_order",
        "Place an order",
        {201: OrderBody, 200: OrderBody},
        PLACE_REFUSALS,
        tags=["orders"],
        headers=[header("Idempotent-Replayed", "The order was placed before.", on=[200], required=True, enum=["true"])],
    )
    def post(self, request: Request) -> Response:
        outcome = sequencer.submit(PlaceOrder(**self.body))
        if isinstance(outcome, Replayed):
            return Response(_order_body(Order.objects.filter(pk=outcome.order_id)), headers=REPLAYED)
        body = OrderBody.with_trades(outcome.order, outcome.trades, outcome.price_decimals)
        return Response(body, status.HTTP_201_CREATED)

    @documented(
        "find_order", "Find an order by its client_order_id", {200: OrderBody}, [errors.OrderNotFound], tags=["orders"]
    )
    def get(self, request: Request) -> Response:
        broker_id = self.query.get("broker_id", self.principal.broker_id)
        return Response(
            _order_body(Order.objects.filter(broker=broker_id, client_order_id=self.query["client_order_id"]))
        )

    def _read_query(self, parameters: dict[str, str], errors: list[FieldError]) -> None:
        if self.principal.is_operator and "broker_id" not in parameters:
            errors.append(FieldError("broker_id", "required", "An operator says whose order."))
        super()._read_query(parameters, errors)


class OrderView(ExchangeView):
    """One order."""

    scopes = {"GET": (Scope.READ,), "DELETE": (Scope.TRADE, Scope.OPERATOR)}

    @documented("get_order", "Read an order", {200: OrderBody}, [errors.OrderNotFound], tags=["orders"])
    def get(self, request: Request, order_id: UUID) -> Response:
        return Response(_order_body(Order.objects.visible_to(self.principal.broker_id).filter(pk=order_id)))

    @documented(
        "cancel_order",
        "Cancel an order",
        {200: OrderBody},
        [errors.OrderNotFound, errors.OrderNotCancellable],
        tags=["orders"],
    )
    def delete(self, request: Request, order_id: UUID) -> Response:
        reason = CancelReason.BY_OPERATOR if self.principal.is_operator else CancelReason.BY_BROKER
        cancelled = sequencer.submit(CancelOrder(order_id, self.principal.broker_id, reason))
        with already_committed():
            return Response(_order_body(Order.objects.filter(pk=cancelled.order_id)))


class BrokerOrdersView(ExchangeView):
    """A broker's orders, newest first."""

    scopes = {"GET": (Scope.READ,)}
    filterset_class = OrderFilters
    keyset = NEWEST_FIRST

    @documented("list_orders", "List a broker's orders", {200: OrderPage}, [BrokerNotFound], tags=["orders"])
    def get(self, request: Request, broker_id: str) -> Response:
        exchange_services.require_broker(broker_id)
        orders = self.filtered(Order.objects.filter(broker=broker_id).select_related("instrument"))
        page, next_cursor = self.paged(orders)
        return Response(
            OrderPage(
                [OrderSummary.of(order, price_decimals(order.instrument.tick_size)) for order in page], next_cursor
            )
        )


class BrokerTradesView(ExchangeView):
    """A broker's own fills, newest first; a trade between two of its orders is two fills."""

    scopes = {"GET": (Scope.READ,)}
    filterset_class = TradeFilters
    keyset = Keyset(("-executed_at", Instant), ("-id", UUID), ("-side", str))

    @documented("list_fills", "List a broker's fills", {200: BrokerTradePage}, [BrokerNotFound], tags=["orders"])
    def get(self, request: Request, broker_id: str) -> Response:
        exchange_services.require_broker(broker_id)
        page, next_cursor = self.keyset.cut(self._fills(broker_id), self.page)
        return Response(BrokerTradePage([BrokerTrade.of(trade, Side(trade.side)) for trade in page], next_cursor))

    def _fills(self, broker_id: str) -> Iterator[Any]:
        """Both sides' trades, each from its own index, merged."""
        newest = (self.keyset.rows(self.filtered(Trade.objects.fills_of(broker_id, side)), self.page) for side in Side)
        return merge(*newest, key=lambda trade: (trade.executed_at, trade.id, trade.side), reverse=True)


class PriceView(ExchangeView):
    """Where an instrument trades."""

    scopes = {"GET": (Scope.READ,)}

    @documented("get_price", "Read an instrument's price", {200: market_data.PriceSummary}, [SymbolNotFound])
    def get(self, request: Request, symbol: str) -> Response:
        return Response(market_data.price_summary(symbol))


class BookView(ExchangeView):
    """An instrument's book."""

    scopes = {"GET": (Scope.READ,)}
    query_class = BookQuery

    @documented("get_book", "Read an instrument's book", {200: market_data.BookSnapshot}, [SymbolNotFound])
    def get(self, request: Request, symbol: str) -> Response:
        return Response(market_data.book_snapshot(symbol, self.query["depth"]))


class QuoteView(ExchangeView):
    """What a market order would get."""

    scopes = {"GET": (Scope.READ,)}
    query_class = QuoteQuery

    @documented("get_quote", "Quote a market order", {200: market_data.Quote}, [SymbolNotFound])
    def get(self, request: Request, symbol: str) -> Response:
        return Response(market_data.quote(symbol, self.query["side"], self.query["quantity"]))


class TapeView(ExchangeView):
    """An instrument's trades, newest first."""

    scopes = {"GET": (Scope.READ,)}
    keyset = Keyset(("-executed_at", Instant), ("-id", UUID))

    @documented("list_trades", "List an instrument's trades", {200: TapePage}, [SymbolNotFound])
    def get(self, request: Request, symbol: str) -> Response:
        decimals = price_decimals(exchange_services.instrument_of(symbol).tick_size)
        page, next_cursor = self.paged(Trade.objects.filter(instrument=symbol))
        return Response(TapePage([TapeTrade.of(trade, decimals) for trade in page], next_cursor))


class SuspendView(ExchangeView):
    """Refuse a broker's new orders."""

    scopes = {"POST": (Scope.OPERATOR,)}
    body_class = SuspendForm
    body_optional = True

    @documented("suspend_broker", "Suspend a broker", {200: BrokerStanding}, [BrokerNotFound])
    def post(self, request: Request, broker_id: str) -> Response:
        cancelled = services.suspend(broker_id, **self.body)
        return Response(BrokerStanding(broker_id, BrokerStatus.SUSPENDED, cancelled))


class ReinstateView(ExchangeView):
    """Accept a suspended broker's orders again."""

    scopes = {"POST": (Scope.OPERATOR,)}
    body_class = ReasonForm
    body_optional = True

    @documented("reinstate_broker", "Reinstate a broker", {200: BrokerStanding}, [BrokerNotFound])
    def post(self, request: Request, broker_id: str) -> Response:
        services.reinstate(broker_id, **self.body)
        return Response(BrokerStanding(broker_id, BrokerStatus.ACTIVE, cancelled_orders=0))


def _order_body(found: OrderQuerySet) -> OrderBody:
    """The one order found, as it is now, with its trades."""
    order = found.select_related("instrument").first()
    if order is None:
        raise errors.OrderNotFound
    trades = _counted(order, Trade.objects.of_order(order))
    return OrderBody.with_trades(order, trades, price_decimals(order.instrument.tick_size))


def _counted(order: Order, trades: Iterable[Trade]) -> Iterator[Trade]:
    """The trades that make up what the order had filled when it was read; more may have happened since."""
    filled = 0
    for trade in trades:
        if filled == order.filled_quantity:
            return
        filled += trade.quantity
        yield trade
