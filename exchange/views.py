"""View sets of brokers, transfers, keys and instruments, and the health and document endpoints."""

from typing import Any

import msgspec
from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.settings import spectacular_settings
from drf_spectacular.utils import OpenApiResponse, extend_schema, extend_schema_view
from drf_spectacular.views import SpectacularSwaggerSplitView
from rest_framework.decorators import action
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.request import Request
from rest_framework.response import Response

from exchange import errors, json_codec, readiness, serializers, services
from exchange.http.paging import NEWEST_FIRST, Keyset
from exchange.http.schema import documented
from exchange.http.threads import compute_once
from exchange.http.viewsets import BrokerListViewSet, ExchangeViewSet
from exchange.models import ApiKey, Broker, Instrument, Transfer
from exchange.response_bodies import (
    AdmittedBrokerBody,
    BalanceBody,
    BrokerPage,
    HealthBody,
    InstrumentBody,
    IssuedKeyBody,
    KeyPage,
    ReadinessBody,
    StockPage,
    TransferBody,
    TransferPage,
    admitted_broker_body,
    balance_body,
)
from exchange.rules import Scope

OPERATORS = (Scope.OPERATOR,)
READERS = (Scope.READ,)

# Content security policy of `/docs`: Swagger UI evaluates code and sets inline styles.
_DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


@extend_schema_view(
    list=documented("list_brokers", "List brokers", {200: BrokerPage}, description="All brokers, by id.")
)
class BrokerViewSet(ListModelMixin, ExchangeViewSet[Broker]):
    """Brokers and their balances."""

    queryset = Broker.objects.all()
    lookup_url_kwarg = lookup_value_converter = "broker_id"
    keyset, page_class = Keyset(("id", str)), BrokerPage
    scopes = {"list": OPERATORS, "create": OPERATORS, "balance": READERS}
    serializer_class = serializers.BrokerSerializer
    body_serializers = {"create": serializers.CreateBrokerSerializer}

    @documented("create_broker", "Admit a broker", {201: AdmittedBrokerBody}, [errors.BrokerAlreadyExists])
    def create(self, request: Request) -> Response:
        """Create a broker with its first balance and its first key."""
        broker, key = services.create_broker(**self.body, by=self.actor)
        return Response(admitted_broker_body(broker, self.body["initial_holdings"], key), status=201)

    @documented("get_balance", "Read a balance", {200: BalanceBody}, [errors.BrokerNotFound])
    @action(detail=True)
    def balance(self, request: Request, broker_id: str) -> Response:
        """Return the broker's cash and shares: in total, reserved by its working orders, and available."""
        return Response(balance_body(broker_id))


@extend_schema_view(list=documented("list_transfers", "List transfers", {200: TransferPage}, [errors.BrokerNotFound]))
class TransferViewSet(BrokerListViewSet[Transfer]):
    """A broker's transfers, newest first."""

    queryset = Transfer.objects.all()
    keyset, page_class = NEWEST_FIRST, TransferPage
    scopes = {"list": OPERATORS, "create": OPERATORS}
    serializer_class = serializers.TransferSerializer
    body_serializers = {"create": serializers.CreateTransferSerializer}

    @documented(
        "create_transfer",
        "Transfer cash or shares",
        {201: TransferBody, 200: OpenApiResponse(TransferBody, description="The first transfer with this reference.")},
        [
            errors.BrokerNotFound,
            errors.SymbolNotFound,
            errors.TransferReferenceConflict,
            errors.InsufficientBalance,
            errors.InsufficientHoldings,
        ],
    )
    def create(self, request: Request, broker_id: str) -> Response:
        """Deposit or withdraw cash or shares, once per `reference`: a repeated request changes nothing."""
        transfer, is_new = services.transfer(broker_id, **self.body, by=self.actor)
        return Response(self.get_serializer(transfer).data, status=201 if is_new else 200)


@extend_schema_view(list=documented("list_keys", "List keys", {200: KeyPage}, [errors.BrokerNotFound]))
class KeyViewSet(BrokerListViewSet[ApiKey]):
    """A broker's keys, newest first, including revoked ones."""

    queryset = ApiKey.objects.all()
    lookup_url_kwarg, lookup_value_converter = "prefix", "key_prefix"
    keyset, page_class = Keyset(("-created_at", json_codec.Instant), ("-prefix", str)), KeyPage
    scopes = {"list": OPERATORS, "create": OPERATORS, "destroy": OPERATORS}
    serializer_class = serializers.KeySerializer
    body_serializers = {"create": serializers.CreateKeySerializer}

    @documented("create_key", "Issue a key", {201: IssuedKeyBody}, [errors.BrokerNotFound])
    def create(self, request: Request, broker_id: str) -> Response:
        """Create another key of the broker."""
        key, secret = services.issue_key(broker_id, **self.body, by=self.actor)
        body = IssuedKeyBody(**msgspec.structs.asdict(self.get_serializer(key).data), api_key=secret)
        return Response(body, status=201)

    @documented("revoke_key", "Revoke a key", {204: None}, [errors.BrokerNotFound, errors.KeyNotFound])
    def destroy(self, request: Request, broker_id: str, prefix: str) -> Response:
        """Revoke a key, which stops working within five seconds."""
        services.revoke_key(broker_id, prefix, by=self.actor)
        return Response(status=204)


@extend_schema_view(
    list=documented("list_stocks", "List instruments", {200: StockPage}, description="All instruments, by symbol."),
    retrieve=documented(
        "get_stock",
        "Read an instrument",
        {200: InstrumentBody},
        [errors.SymbolNotFound],
        description="An instrument, with the rules for its orders.",
    ),
)
class InstrumentViewSet(ListModelMixin, RetrieveModelMixin, ExchangeViewSet[Instrument]):
    """Instruments (`/stocks`), and listing, removing, halting and resuming them."""

    queryset = Instrument.objects.all()
    lookup_url_kwarg = lookup_value_converter = "symbol"
    keyset, page_class = Keyset(("symbol", str)), StockPage
    scopes = {"list": READERS, "retrieve": READERS} | dict.fromkeys(["create", "destroy", "halt", "resume"], OPERATORS)
    serializer_class = serializers.InstrumentSerializer
    body_serializers = {
        "create": serializers.ListInstrumentSerializer,
        "halt": serializers.ReasonSerializer,
        "resume": serializers.ReasonSerializer,
    }

    def get_object(self) -> Instrument:
        return services.get_instrument(self.kwargs["symbol"])

    @documented("create_stock", "Add an instrument", {201: InstrumentBody}, [errors.SymbolAlreadyListed])
    def create(self, request: Request) -> Response:
        """List an instrument. Trading starts immediately."""
        instrument = services.list_instrument(**self.body, by=self.actor)
        return Response(self.get_serializer(instrument).data, status=201)

    @documented("delete_stock", "Remove an instrument", {204: None}, [errors.SymbolNotFound, errors.InstrumentInUse])
    def destroy(self, request: Request, symbol: str) -> Response:
        """Remove an instrument that was never ordered or held."""
        services.remove_instrument(symbol, by=self.actor)
        return Response(status=204)

    @documented("halt_stock", "Halt an instrument", {200: InstrumentBody}, [errors.SymbolNotFound])
    @action(detail=True, methods=["post"])
    def halt(self, request: Request, symbol: str) -> Response:
        """Reject new orders in the instrument. Its working orders stay, and can be cancelled."""
        return Response(self.get_serializer(services.halt(symbol, **self.body, by=self.actor)).data)

    @documented("resume_stock", "Resume an instrument", {200: InstrumentBody}, [errors.SymbolNotFound])
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, symbol: str) -> Response:
        """Accept orders in the instrument again."""
        return Response(self.get_serializer(services.resume(symbol, **self.body, by=self.actor)).data)


class SystemViewSet(ExchangeViewSet[Any]):
    """Health checks, the OpenAPI document and its page, which need no key."""

    authentication_classes = ()
    permission_classes = ()
    throttle_classes = ()
    query_serializers = {"docs": serializers.DocsQuerySerializer}

    @documented("get_health", "Check that the process is alive", {200: HealthBody}, tags=["health"])
    @action(detail=False)
    def healthz(self, request: Request) -> Response:
        """Return `200` while the web process is alive."""
        return Response(HealthBody("ok"))

    @documented("get_readiness", "Check readiness", {200: ReadinessBody, 503: ReadinessBody}, tags=["health"])
    @action(detail=False)
    def readyz(self, request: Request) -> Response:
        """Return `200` if the exchange can accept orders, and `503` otherwise."""
        body = readiness.current()
        return Response(body, status=body.status)

    @extend_schema(exclude=True)
    @action(detail=False, url_path="openapi.json")
    def openapi(self, request: Request) -> HttpResponse:
        return HttpResponse(_openapi_document(), content_type="application/json")

    @extend_schema(exclude=True)
    @action(detail=False)
    def docs(self, request: Request) -> HttpResponse:
        """Return Swagger UI, a page and its script, served from local files."""
        response: HttpResponse = _swagger_ui(request._request).render()
        response["Content-Security-Policy"] = _DOCS_POLICY
        return response


_swagger_ui = SpectacularSwaggerSplitView.as_view(url="/openapi.json", authentication_classes=(), throttle_classes=())


@compute_once
def _openapi_document() -> bytes:
    generator = SchemaGenerator(urlconf=spectacular_settings.SERVE_URLCONF)  # type: ignore[no-untyped-call]  # drf-spectacular is only half typed
    return json_codec.encode_json(generator.get_schema(request=None, public=True))  # type: ignore[no-untyped-call]  # as above


def to_back_office(request: HttpRequest, rest: str = "") -> HttpResponse:
    """Redirect to the back office if `BACKOFFICE_URL` is set, otherwise respond with 404."""
    if not settings.BACKOFFICE_URL:
        raise Http404
    return HttpResponseRedirect(settings.BACKOFFICE_URL + request.get_full_path(), preserve_request=True)
