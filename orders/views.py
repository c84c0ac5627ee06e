"""Orders, trades and the market over REST: translate in, make one call, translate out."""

from collections.abc import Iterator, Mapping
from heapq import merge
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.conf import settings
from django.http import HttpRequest

from exchange import errors, rejects
from exchange import services as exchange_services
from exchange.database import already_committed
from exchange.errors import BrokerNotFound, ExchangeError, FieldError, SymbolNotFound
from exchange.http.api import ExchangeView, Response
from exchange.http.fields import MAX_ERRORS, validated
from exchange.http.middleware import request_id_of
from exchange.http.paging import NEWEST_FIRST, Keyset
from exchange.http.problems import problem_of
from exchange.http.schema import documented, header
from exchange.rules import BrokerStatus, Scope, price_decimals
from exchange.serializers import ReasonForm
from exchange.wire import Instant
from orders import market_data, reading, services
from orders.bodies import (
    BrokerStanding,
    BrokerTrade,
    BrokerTradePage,
    CancelledOrders,
    OrderBody,
    OrderPage,
    OrderResult,
    OrderResults,
    OrderSummary,
    TapePage,
    TapeTrade,
)
from orders.filters import OrderFilters, TradeFilters
from orders.matching import sequencer
from orders.matching.commands import Accepted, Outcome, PlaceOrder, Replayed
from orders.models import Order, Trade
from orders.order_responses import accepted_body, cancel_reason, cancelled, cancelling, placed
from orders.serializers import (
    BookQuery,
    CancelOrdersQuery,
    OrderLookup,
    PlaceOrderForm,
    PlaceOrdersForm,
    QuoteQuery,
    SuspendForm,
)
from orders.terms import Side

PLACE_REFUSALS = (
    SymbolNotFound,
    errors.ClientOrderIdConflict,
    errors.InsufficientBalance,
    errors.InsufficientHoldings,
    errors.InstrumentHalted,
    errors.BrokerSuspended,
    errors.TooManyOpenOrders,
    errors.TooManyFills,
)


class OrdersView(ExchangeView):
    """Place an order, find one by the id its broker gave it, or cancel many at once."""

    scopes = {"POST": (Scope.TRADE,), "GET": (Scope.READ,), "DELETE": (Scope.TRADE, Scope.OPERATOR)}
    body_class = PlaceOrderForm
    query_class = OrderLookup
    delete_query_class = CancelOrdersQuery
    cancels = True

    @documented(
        "place_order",
        "Place an order",
        {201: OrderBody, 200: OrderBody},
        PLACE_REFUSALS,
        tags=["orders"],
        headers=[header("Idempotent-Replayed", "The order was placed before.", on=[200], required=True, enum=["true"])],
    )
    def post(self, request: HttpRequest) -> Response:
        return Response(*placed(sequencer.submit(PlaceOrder(**self.body))))

    @documented(
        "find_order", "Find an order by its client_order_id", {200: OrderBody}, [errors.OrderNotFound], tags=["orders"]
    )
    def get(self, request: HttpRequest) -> Response:
        return Response(reading.order_body_by_client_order_id(self._owner, self.query["client_order_id"]))

    @documented(
        "cancel_orders",
        "Cancel a broker's working orders",
        {200: CancelledOrders},
        [SymbolNotFound, BrokerNotFound],
        tags=["orders"],
    )
    def delete(self, request: HttpRequest) -> Response:
        """Those of a symbol, of a side, of both, or `all=true`; an operator says whose with `broker_id`."""
        symbol, side = self.query.get("symbol"), self.query.get("side")
        exchange_services.require_broker(self._owner)
        if symbol is not None:
            exchange_services.instrument_of(symbol)  # a misspelt one must not look as if nothing had been working
        by = self.actor if self.principal.is_operator else None
        count = services.cancel_all(self._owner, reason=cancel_reason(self.principal), symbol=symbol, side=side, by=by)
        return Response(CancelledOrders(count))

    @property
    def _owner(self) -> str:
        """Whose orders are asked for."""
        owner = self.query.get("broker_id", self.principal.broker_id)
        assert isinstance(owner, str)
        return owner

    def _read_query(self, parameters: dict[str, str], errors: list[FieldError]) -> None:
        self._require_owner(parameters, errors)
        super()._read_query(parameters, errors)

    def _read_delete_query(self, parameters: dict[str, str], errors: list[FieldError]) -> None:
        self._require_owner(parameters, errors)
        super()._read_delete_query(parameters, errors)

    def _require_owner(self, parameters: dict[str, str], errors: list[FieldError]) -> None:
        if self.principal.is_operator and "broker_id" not in parameters:
            errors.append(FieldError("broker_id", "required", "An operator says whose order."))


class OrderBatchView(ExchangeView):
    """Place many orders in one request."""

    scopes = {"POST": (Scope.TRADE,)}
    body_class = PlaceOrdersForm
    max_body_bytes = settings.MAX_BATCH_BODY_BYTES
    errors_left = settings.MAX_BATCH_ERRORS

    def cost(self, request: HttpRequest) -> int:
        """As many as it has orders; one with too many is refused for that."""
        orders = self.data.get("orders")
        return min(len(orders), settings.MAX_BATCH_ORDERS) if isinstance(orders, list) else 1

    @documented("place_orders", "Place several orders", {200: OrderResults}, tags=["orders"])
    def post(self, request: HttpRequest) -> Response:
        """Each stands alone and is answered in its place as it would have been by itself: `status`, and the order or
        the problem. With a `client_order_id` in each, a batch can be repeated as it is.
        """
        asked = [self._asked(body) for body in self.body["orders"]]
        commands = [each for each in asked if isinstance(each, PlaceOrder)]
        outcomes = iter(sequencer.submit_all(commands) if commands else [])
        decided = [next(outcomes) if isinstance(each, PlaceOrder) else each for each in asked]
        with already_committed():
            earlier = reading.order_bodies([each.order_id for each in decided if isinstance(each, Replayed)])
        results = [self._result(each, earlier) for each in decided]
        rejects.note(sum(rejects.is_refusal(each.status) for each in results))
        return Response(OrderResults(results))

    def _asked(self, body: Any) -> PlaceOrder | ExchangeError:
        """What one of the bodies asks for, or why it cannot: as a request by itself is refused, and in that order.

        When the batch's errors are used up, only the first of each order is named.
        """
        if not isinstance(body, dict):
            return errors.MalformedRequest("An order must be a JSON object.")
        own = self.principal.broker_id
        if isinstance(body.get("broker_id"), str) and body["broker_id"] != own:
            return errors.BrokerMismatch(f"This key acts for {own} only.")
        bad: list[FieldError] = []
        values = validated(PlaceOrderForm, body, bad, max_errors=max(min(self.errors_left, MAX_ERRORS), 1))
        self.errors_left -= len(bad)
        return errors.ValidationFailed(errors=bad) if bad else PlaceOrder(**values)

    def _result(self, outcome: Outcome, earlier: Mapping[UUID, OrderBody]) -> OrderResult:
        match outcome:
            case Accepted():
                return OrderResult(HTTPStatus.CREATED, order=accepted_body(outcome))
            case Replayed():
                return OrderResult(HTTPStatus.OK, order=earlier[outcome.order_id])
        assert isinstance(outcome, ExchangeError)
        problem = problem_of(outcome, request_id_of(self.request.META))
        return OrderResult(problem.status, error=problem)


class OrderView(ExchangeView):
    """One order."""

    scopes = {"GET": (Scope.READ,), "DELETE": (Scope.TRADE, Scope.OPERATOR)}
    cancels = True

    @documented("get_order", "Read an order", {200: OrderBody}, [errors.OrderNotFound], tags=["orders"])
    def get(self, request: HttpRequest, order_id: UUID) -> Response:
        return Response(reading.order_body(order_id, owner=self.principal.broker_id))

    @documented(
        "cancel_order",
        "Cancel an order",
        {200: OrderBody},
        [errors.OrderNotFound, errors.OrderNotCancellable],
        tags=["orders"],
    )
    def delete(self, request: HttpRequest, order_id: UUID) -> Response:
        return Response(*cancelled(sequencer.submit(cancelling(order_id, self.principal, request.META))))


class BrokerOrdersView(ExchangeView):
    """A broker's orders, newest first."""

    scopes = {"GET": (Scope.READ,)}
    filterset_class = OrderFilters
    keyset = NEWEST_FIRST

    @documented("list_orders", "List a broker's orders", {200: OrderPage}, [BrokerNotFound], tags=["orders"])
    def get(self, request: HttpRequest, broker_id: str) -> Response:
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
    def get(self, request: HttpRequest, broker_id: str) -> Response:
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
    def get(self, request: HttpRequest, symbol: str) -> Response:
        return Response(market_data.price_summary(symbol))


class BookView(ExchangeView):
    """An instrument's book."""

    scopes = {"GET": (Scope.READ,)}
    query_class = BookQuery

    @documented("get_book", "Read an instrument's book", {200: market_data.BookSnapshot}, [SymbolNotFound])
    def get(self, request: HttpRequest, symbol: str) -> Response:
        return Response(market_data.book_snapshot(symbol, self.query["depth"]))


class QuoteView(ExchangeView):
    """What a market order would get.

    At most the best 1,000 resting orders are looked at. With more of them, `fillable_quantity` is a lower bound. A
    quote counts as one request for each 25 shares that it asks about, but for no more than 40.
    """

    scopes = {"GET": (Scope.READ,)}
    query_class = QuoteQuery

    @documented("get_quote", "Quote a market order", {200: market_data.Quote}, [SymbolNotFound])
    def get(self, request: HttpRequest, symbol: str) -> Response:
        self._count(request, market_data.quote_cost(self.query["quantity"]), held=1)
        return Response(market_data.quote(symbol, self.query["side"], self.query["quantity"]))


class TapeView(ExchangeView):
    """An instrument's trades, newest first."""

    scopes = {"GET": (Scope.READ,)}
    keyset = Keyset(("-executed_at", Instant), ("-id", UUID))

    @documented("list_trades", "List an instrument's trades", {200: TapePage}, [SymbolNotFound])
    def get(self, request: HttpRequest, symbol: str) -> Response:
        decimals = price_decimals(exchange_services.instrument_of(symbol).tick_size)
        page, next_cursor = self.paged(Trade.objects.filter(instrument=symbol))
        return Response(TapePage([TapeTrade.of(trade, decimals) for trade in page], next_cursor))


class SuspendView(ExchangeView):
    """Refuse a broker's new orders."""

    scopes = {"POST": (Scope.OPERATOR,)}
    body_class = SuspendForm
    body_optional = True

    @documented("suspend_broker", "Suspend a broker", {200: BrokerStanding}, [BrokerNotFound])
    def post(self, request: HttpRequest, broker_id: str) -> Response:
        cancelled = services.suspend(broker_id, **self.body, by=self.actor)
        return Response(BrokerStanding(broker_id, BrokerStatus.SUSPENDED, cancelled))


class ReinstateView(ExchangeView):
    """Accept a suspended broker's orders again."""

    scopes = {"POST": (Scope.OPERATOR,)}
    body_class = ReasonForm
    body_optional = True

    @documented("reinstate_broker", "Reinstate a broker", {200: BrokerStanding}, [BrokerNotFound])
    def post(self, request: HttpRequest, broker_id: str) -> Response:
        services.reinstate(broker_id, **self.body, by=self.actor)
        return Response(BrokerStanding(broker_id, BrokerStatus.ACTIVE, cancelled_orders=0))
