"""View sets of orders, trades, market data and the status of brokers."""

from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.conf import settings
from django.http import HttpResponse
from drf_spectacular.utils import OpenApiResponse, extend_schema_view
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from exchange import errors, rejection_counts
from exchange import services as exchange_services
from exchange.database import already_committed
from exchange.errors import BrokerNotFound, ExchangeError, FieldError, SymbolNotFound
from exchange.http.fields import MAX_ERRORS, validate
from exchange.http.middleware import request_id_of
from exchange.http.paging import NEWEST_FIRST, Keyset
from exchange.http.problems import problem_of
from exchange.http.schema import documented, header
from exchange.http.viewsets import BrokerListViewSet, ExchangeViewSet
from exchange.json_codec import Instant
from exchange.models import Broker, Instrument
from exchange.rules import BrokerStatus, Scope, price_decimals
from exchange.serializers import ReasonSerializer
from orders import market_data, order_queries, serializers, services
from orders.enums import Side
from orders.filters import OrderFilters, TradeFilters
from orders.matching import sequencer
from orders.matching.commands import Accepted, Outcome, PlaceOrder, Replayed
from orders.models import Order, Trade
from orders.order_responses import cancel_command, cancel_reason, cancel_response, order_body, place_response
from orders.response_bodies import (
    BrokerStanding,
    BrokerTrade,
    BrokerTradePage,
    CancelledOrders,
    OrderBody,
    OrderPage,
    OrderResult,
    OrderResults,
    TapePage,
    TapeTrade,
)

PLACE_ERRORS = (
    SymbolNotFound,
    errors.ClientOrderIdConflict,
    errors.InsufficientBalance,
    errors.InsufficientHoldings,
    errors.InstrumentHalted,
    errors.BrokerSuspended,
    errors.TooManyOpenOrders,
    errors.TooManyFills,
)
READERS = (Scope.READ,)
TRADERS = (Scope.TRADE,)
CANCELLERS = (Scope.TRADE, Scope.OPERATOR)
OPERATORS = (Scope.OPERATOR,)


class OrderViewSet(ExchangeViewSet[Order]):
    """Orders: place one or several, find or read one, cancel one or many."""

    queryset = Order.objects.all()
    lookup_url_kwarg, lookup_value_converter = "order_id", "id"
    pagination_class = None  # `list` returns the one order with a `client_order_id`
    scopes = {
        "create": TRADERS,
        "batch": TRADERS,
        "list": READERS,
        "retrieve": READERS,
        "destroy": CANCELLERS,
        "destroy_all": CANCELLERS,
    }
    body_serializers = {"create": serializers.PlaceOrderSerializer, "batch": serializers.PlaceOrdersSerializer}
    query_serializers = {
        "list": serializers.OrderLookupSerializer,
        "destroy_all": serializers.CancelOrdersQuerySerializer,
    }
    cancels = ("destroy", "destroy_all")
    remaining_errors = settings.MAX_BATCH_ERRORS

    def get_cost(self) -> int:
        """The number of orders. A batch with too many is rejected anyway."""
        orders = self.data.get("orders") if self.action == "batch" else None
        return min(len(orders), settings.MAX_BATCH_ORDERS) if isinstance(orders, list) else 1

    @documented(
        "place_order",
        "Place an order",
        {
            201: OrderBody,
            200: OpenApiResponse(OrderBody, description="The first order with this client_order_id, now."),
        },
        PLACE_ERRORS,
        headers=[header("Idempotent-Replayed", "The order was placed before.", on=[200], required=True, enum=["true"])],
    )
    def create(self, request: Request) -> HttpResponse:
        """Match the order with the book, and return the result with its trades.

        Send a `client_order_id` with every order: after a timeout or another unknown outcome, repeat the same request.
        The [broker's guide](/static/docs/brokers.md#place-an-order) explains the fields, prices and results.
        """
        return place_response(sequencer.submit(PlaceOrder(**self.body))).as_django()

    @documented("find_order", "Find an order by its client_order_id", {200: OrderBody}, [errors.OrderNotFound])
    def list(self, request: Request) -> Response:
        """Return the order in its current state, with its trades."""
        return Response(order_queries.read_order_by_client_order_id(self._broker_id, self.query["client_order_id"]))

    @documented("cancel_orders", "Cancel many orders", {200: CancelledOrders}, [SymbolNotFound, BrokerNotFound])
    def destroy_all(self, request: Request) -> Response:
        """Cancel a broker's working orders: of a `symbol`, of a `side`, of both, or all of them (`all=true`)."""
        symbol, side = self.query.get("symbol"), self.query.get("side")
        exchange_services.require_broker(self._broker_id)
        if symbol is not None:
            exchange_services.get_instrument(symbol)  # an unknown symbol is an error, not 0 orders
        by = self.actor if self.principal.is_operator else None
        reason = cancel_reason(self.principal)
        cancelled = services.cancel_all(self._broker_id, reason=reason, symbol=symbol, side=side, by=by)
        return Response(CancelledOrders(cancelled))

    @documented("get_order", "Read an order", {200: OrderBody}, [errors.OrderNotFound])
    def retrieve(self, request: Request, order_id: UUID) -> Response:
        """Return the order in its current state, with its trades."""
        return Response(order_queries.read_order(order_id, owner=self.principal.broker_id))

    @documented("cancel_order", "Cancel an order", {200: OrderBody}, [errors.OrderNotFound, errors.OrderNotCancellable])
    def destroy(self, request: Request, order_id: UUID) -> HttpResponse:
        """Cancel the unfilled quantity of a working order, and return the order. Its trades stand."""
        return cancel_response(sequencer.submit(cancel_command(order_id, self.principal, request.META))).as_django()

    @documented("place_orders", "Place several orders", {200: OrderResults})
    @action(detail=False, methods=["post"], max_body_bytes=settings.MAX_BATCH_BODY_BYTES)
    def batch(self, request: Request) -> Response:
        """Place each order independently, and return its `status` with the order or the problem.

        The results are in the order of the request. With a `client_order_id` in each order, the whole batch can be
        repeated. The rate limit counts orders.
        """
        parsed = [self._parse_order(body) for body in self.body["orders"]]
        commands = [each for each in parsed if isinstance(each, PlaceOrder)]
        outcomes = iter(sequencer.submit_all(commands) if commands else [])
        all_outcomes = [next(outcomes) if isinstance(each, PlaceOrder) else each for each in parsed]
        with already_committed():
            earlier = order_queries.read_orders([each.order_id for each in all_outcomes if isinstance(each, Replayed)])
        results = [self._result(each, earlier) for each in all_outcomes]
        rejection_counts.add(sum(rejection_counts.is_rejection(each.status) for each in results))
        return Response(OrderResults(results))

    @property
    def _broker_id(self) -> str:
        """The broker whose orders the request is about."""
        broker_id = self.query.get("broker_id", self.principal.broker_id)
        assert isinstance(broker_id, str)
        return broker_id

    def read_query(self, parameters: dict[str, str]) -> Sequence[FieldError]:
        names_broker = "broker_id" in parameters
        found = super().read_query(parameters)
        if names_broker or not self.principal.is_operator or self.action not in self.query_serializers:
            return found
        return [FieldError("broker_id", "required", "An operator key must send the broker_id of the orders."), *found]

    def _parse_order(self, body: Any) -> PlaceOrder | ExchangeError:
        """The command of one order of a batch, or the error that this order would get by itself.

        After `MAX_BATCH_ERRORS` errors in a batch, only the first error of each order is listed.
        """
        if not isinstance(body, dict):
            return errors.MalformedRequest("An order must be a JSON object.")
        own = self.principal.broker_id
        if isinstance(body.get("broker_id"), str) and body["broker_id"] != own:
            return errors.BrokerMismatch(f"This key acts for {own} only.")
        bad: list[FieldError] = []
        max_errors = max(min(self.remaining_errors, MAX_ERRORS), 1)
        values = validate(serializers.PlaceOrderSerializer, body, bad, max_errors=max_errors)
        self.remaining_errors -= len(bad)
        return errors.ValidationFailed(errors=bad) if bad else PlaceOrder(**values)

    def _result(self, outcome: Outcome, earlier: Mapping[UUID, OrderBody]) -> OrderResult:
        match outcome:
            case Accepted():
                return OrderResult(HTTPStatus.CREATED, order=order_body(outcome))
            case Replayed():
                return OrderResult(HTTPStatus.OK, order=earlier[outcome.order_id])
        assert isinstance(outcome, ExchangeError)
        problem = problem_of(outcome, request_id_of(self.request.META))
        return OrderResult(problem.status, error=problem)


@extend_schema_view(
    list=documented("list_orders", "List a broker's orders", {200: OrderPage}, [BrokerNotFound], tags=["orders"])
)
class BrokerOrderViewSet(BrokerListViewSet[Order]):
    """A broker's orders without their trades, newest first."""

    queryset = Order.objects.select_related("instrument")
    filterset_class = OrderFilters
    keyset, page_class = NEWEST_FIRST, OrderPage
    scopes = {"list": READERS}
    serializer_class = serializers.OrderSummarySerializer


class BrokerTradeViewSet(ExchangeViewSet[Trade]):
    """A broker's trades, newest first. A trade between two of its own orders is two rows, one per side."""

    filterset_class = TradeFilters
    keyset = Keyset(("-executed_at", Instant), ("-id", UUID), ("-side", str))
    scopes = {"list": READERS}

    @documented("list_fills", "List a broker's trades", {200: BrokerTradePage}, [BrokerNotFound], tags=["orders"])
    def list(self, request: Request, broker_id: str) -> Response:
        exchange_services.require_broker(broker_id)
        page, next_cursor = self.keyset.split(self._fills(broker_id), self.page)
        return Response(BrokerTradePage([BrokerTrade.of(trade, Side(trade.side)) for trade in page], next_cursor))

    def _fills(self, broker_id: str) -> Iterator[Any]:
        """The trades of both sides, merged, because each side has its own index."""
        sides = (self.filter_queryset(Trade.objects.fills_of(broker_id, side)) for side in Side)
        newest = (self.keyset.page_queryset(trades, self.page) for trades in sides)
        return merge(*newest, key=lambda trade: (trade.executed_at, trade.id, trade.side), reverse=True)


class MarketDataViewSet(ExchangeViewSet[Instrument]):
    """The price, the book and quotes of an instrument."""

    lookup_url_kwarg = lookup_value_converter = "symbol"
    scopes = {"price": READERS, "book": READERS, "quote": READERS}
    query_serializers = {"book": serializers.BookQuerySerializer, "quote": serializers.QuoteQuerySerializer}

    @documented("get_price", "Read an instrument's price", {200: market_data.PriceSummary}, [SymbolNotFound])
    @action(detail=True)
    def price(self, request: Request, symbol: str) -> Response:
        """Return the last price, the mean price of the last five minutes and the best bid and ask."""
        return Response(market_data.price_summary(symbol))

    @documented("get_book", "Read an instrument's book", {200: market_data.BookSnapshot}, [SymbolNotFound])
    @action(detail=True)
    def book(self, request: Request, symbol: str) -> Response:
        """Return the best levels of both sides, as of one moment."""
        return Response(market_data.book_snapshot(symbol, self.query["depth"]))

    @documented("get_quote", "Quote a market order", {200: market_data.Quote}, [SymbolNotFound])
    @action(detail=True)
    def quote(self, request: Request, symbol: str) -> Response:
        """Return the trades that a market order would make now, by price.

        At most the best 1,000 resting orders are read; with more of them, `fillable_quantity` is a lower bound. A quote
        counts as one request per 25 shares, at most 40.
        """
        self.charge(market_data.quote_cost(self.query["quantity"]))
        return Response(market_data.quote(symbol, self.query["side"], self.query["quantity"]))


class TapeViewSet(ExchangeViewSet[Trade]):
    """An instrument's trades, newest first."""

    queryset = Trade.objects.all()
    keyset, page_class = Keyset(("-executed_at", Instant), ("-id", UUID)), TapePage
    scopes = {"list": READERS}

    @documented("list_trades", "List an instrument's trades", {200: TapePage}, [SymbolNotFound])
    def list(self, request: Request, symbol: str) -> Response:
        decimals = price_decimals(exchange_services.get_instrument(symbol).tick_size)
        page = self.paginate_queryset(self.get_queryset().filter(instrument=symbol)) or []
        return self.get_paginated_response([TapeTrade.of(trade, decimals) for trade in page])


class BrokerStatusViewSet(ExchangeViewSet[Broker]):
    """The status of a broker: active or suspended."""

    lookup_url_kwarg = lookup_value_converter = "broker_id"
    scopes = {"suspend": OPERATORS, "reinstate": OPERATORS}
    body_serializers = {"suspend": serializers.SuspendSerializer, "reinstate": ReasonSerializer}

    @documented("suspend_broker", "Suspend a broker", {200: BrokerStanding}, [BrokerNotFound])
    @action(detail=True, methods=["post"])
    def suspend(self, request: Request, broker_id: str) -> Response:
        """Reject the broker's new orders. Its working orders stay, unless `cancel_orders` is true."""
        cancelled = services.suspend(broker_id, **self.body, by=self.actor)
        return Response(BrokerStanding(broker_id, BrokerStatus.SUSPENDED, cancelled))

    @documented("reinstate_broker", "Reinstate a broker", {200: BrokerStanding}, [BrokerNotFound])
    @action(detail=True, methods=["post"])
    def reinstate(self, request: Request, broker_id: str) -> Response:
        """Accept the broker's orders again."""
        services.reinstate(broker_id, **self.body, by=self.actor)
        return Response(BrokerStanding(broker_id, BrokerStatus.ACTIVE, cancelled_orders=0))
