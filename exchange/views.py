"""Brokers, their balances, transfers and keys; instruments; and what tells that the exchange runs."""

from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.settings import spectacular_settings
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularSwaggerSplitView
from rest_framework.request import Request
from rest_framework.response import Response as DocsResponse

from exchange import readiness, services, wire
from exchange.api import ExchangeView, Response
from exchange.bodies import (
    BalanceBody,
    BrokerPage,
    HealthBody,
    InstrumentBody,
    KeyPage,
    NewBrokerBody,
    NewKeyBody,
    ReadinessBody,
    StockPage,
    TransferBody,
    TransferPage,
    balance_body,
    broker_body,
    instrument_body,
    key_body,
    new_broker_body,
    new_key_body,
    transfer_body,
)
from exchange.errors import (
    BrokerAlreadyExists,
    BrokerNotFound,
    InsufficientBalance,
    InsufficientHoldings,
    KeyNotFound,
    SymbolAlreadyListed,
    SymbolNotFound,
    TransferReferenceConflict,
)
from exchange.models import ApiKey, Broker, Instrument, Transfer
from exchange.paging import NEWEST_FIRST, Keyset
from exchange.rules import Scope
from exchange.schema import documented
from exchange.serializers import (
    CreateBrokerForm,
    CreateKeyForm,
    CreateTransferForm,
    ListInstrumentForm,
    ReasonForm,
)
from exchange.threads import once

OPERATORS = (Scope.OPERATOR,)
READERS = (Scope.READ,)

# What `/docs` may load: Swagger UI, which evaluates code and sets styles.
_DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class BrokersView(ExchangeView):
    scopes = {"GET": OPERATORS, "POST": OPERATORS}
    body_class = CreateBrokerForm
    keyset = Keyset(("id", str))

    @documented("list_brokers", "All brokers, by id", {200: BrokerPage})
    def get(self, request: HttpRequest) -> Response:
        brokers, next_cursor = self.paged(Broker.objects.all())
        return Response(BrokerPage([broker_body(broker) for broker in brokers], next_cursor))

    @documented("create_broker", "Admit a broker", {201: NewBrokerBody}, [BrokerAlreadyExists])
    def post(self, request: HttpRequest) -> Response:
        broker, key = services.create_broker(**self.body, by=self.actor)
        return Response(new_broker_body(broker, self.body["initial_holdings"], key), status=201)


class BalanceView(ExchangeView):
    scopes = {"GET": READERS}

    @documented("get_balance", "A broker's cash and shares", {200: BalanceBody}, [BrokerNotFound])
    def get(self, request: HttpRequest, broker_id: str) -> Response:
        return Response(balance_body(broker_id))


class TransfersView(ExchangeView):
    scopes = {"GET": OPERATORS, "POST": OPERATORS}
    body_class = CreateTransferForm
    keyset = NEWEST_FIRST

    @documented("list_transfers", "A broker's transfers, newest first", {200: TransferPage}, [BrokerNotFound])
    def get(self, request: HttpRequest, broker_id: str) -> Response:
        services.require_broker(broker_id)
        transfers, next_cursor = self.paged(Transfer.objects.filter(broker_id=broker_id))
        return Response(TransferPage([transfer_body(transfer) for transfer in transfers], next_cursor))

    @documented(
        "create_transfer",
        "Book cash or shares in or out, once per reference",
        {201: TransferBody, 200: TransferBody},
        [BrokerNotFound, SymbolNotFound, TransferReferenceConflict, InsufficientBalance, InsufficientHoldings],
    )
    def post(self, request: HttpRequest, broker_id: str) -> Response:
        transfer, is_new = services.transfer(broker_id, **self.body, by=self.actor)
        return Response(transfer_body(transfer), status=201 if is_new else 200)


class KeysView(ExchangeView):
    scopes = {"GET": OPERATORS, "POST": OPERATORS}
    body_class = CreateKeyForm
    keyset = Keyset(("-created_at", wire.Instant), ("-prefix", str))

    @documented("list_keys", "A broker's keys, newest first, revoked ones too", {200: KeyPage}, [BrokerNotFound])
    def get(self, request: HttpRequest, broker_id: str) -> Response:
        services.require_broker(broker_id)
        keys, next_cursor = self.paged(ApiKey.objects.filter(broker_id=broker_id))
        return Response(KeyPage([key_body(key) for key in keys], next_cursor))

    @documented("create_key", "Make a key for a broker", {201: NewKeyBody}, [BrokerNotFound])
    def post(self, request: HttpRequest, broker_id: str) -> Response:
        key, secret = services.issue_key(broker_id, **self.body, by=self.actor)
        return Response(new_key_body(key, secret), status=201)


class KeyView(ExchangeView):
    scopes = {"DELETE": OPERATORS}

    @documented("revoke_key", "Revoke a key", {204: None}, [BrokerNotFound, KeyNotFound])
    def delete(self, request: HttpRequest, broker_id: str, prefix: str) -> Response:
        services.revoke_key(broker_id, prefix, by=self.actor)
        return Response(status=204)


class StocksView(ExchangeView):
    scopes = {"GET": READERS, "POST": OPERATORS}
    body_class = ListInstrumentForm
    keyset = Keyset(("symbol", str))

    @documented("list_stocks", "All instruments, by symbol", {200: StockPage})
    def get(self, request: HttpRequest) -> Response:
        instruments, next_cursor = self.paged(Instrument.objects.all())
        return Response(StockPage([instrument_body(instrument) for instrument in instruments], next_cursor))

    @documented("create_stock", "List an instrument", {201: InstrumentBody}, [SymbolAlreadyListed])
    def post(self, request: HttpRequest) -> Response:
        return Response(instrument_body(services.list_instrument(**self.body, by=self.actor)), status=201)


class StockView(ExchangeView):
    scopes = {"GET": READERS}

    @documented("get_stock", "An instrument and its rules", {200: InstrumentBody}, [SymbolNotFound])
    def get(self, request: HttpRequest, symbol: str) -> Response:
        return Response(instrument_body(services.instrument_of(symbol)))


class HaltView(ExchangeView):
    scopes = {"POST": OPERATORS}
    body_class = ReasonForm
    body_optional = True

    @documented("halt_stock", "Refuse new orders in an instrument", {200: InstrumentBody}, [SymbolNotFound])
    def post(self, request: HttpRequest, symbol: str) -> Response:
        return Response(instrument_body(services.halt(symbol, **self.body, by=self.actor)))


class ResumeView(ExchangeView):
    scopes = {"POST": OPERATORS}
    body_class = ReasonForm
    body_optional = True

    @documented("resume_stock", "Take orders in an instrument again", {200: InstrumentBody}, [SymbolNotFound])
    def post(self, request: HttpRequest, symbol: str) -> Response:
        return Response(instrument_body(services.resume(symbol, **self.body, by=self.actor)))


class HealthView(ExchangeView):
    authentication_classes = ()

    @documented("get_health", "Whether this process lives", {200: HealthBody}, tags=["health"])
    def get(self, request: HttpRequest) -> Response:
        return Response(HealthBody("ok"))


class ReadinessView(ExchangeView):
    authentication_classes = ()

    @documented(
        "get_readiness", "Whether orders can be taken", {200: ReadinessBody, 503: ReadinessBody}, tags=["health"]
    )
    def get(self, request: HttpRequest) -> Response:
        body = readiness.current()
        return Response(body, status=body.status)


@extend_schema(exclude=True)
class OpenApiView(ExchangeView):
    authentication_classes = ()

    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(_openapi_document(), content_type="application/json")


@once
def _openapi_document() -> bytes:
    generator = SchemaGenerator(urlconf=spectacular_settings.SERVE_URLCONF)  # type: ignore[no-untyped-call]  # drf-spectacular is only half typed
    return wire.encoded(generator.get_schema(request=None, public=True))  # type: ignore[no-untyped-call]  # as above


@extend_schema(exclude=True)
class DocsView(SpectacularSwaggerSplitView):
    """Swagger UI, from files of ours."""

    http_method_names = ["get", "head"]

    authentication_classes = ()
    url = "/openapi.json"

    def get(self, request: Request, *args: Any, **kwargs: Any) -> DocsResponse:
        response: DocsResponse = super().get(request, *args, **kwargs)  # type: ignore[no-untyped-call]  # as above
        response["Content-Security-Policy"] = _DOCS_POLICY
        return response


def to_back_office(request: HttpRequest, rest: str = "") -> HttpResponse:
    """Redirect to the back office, which has an address of its own, if this process knows it."""
    if not settings.BACKOFFICE_URL:
        raise Http404
    return HttpResponseRedirect(settings.BACKOFFICE_URL + request.get_full_path(), preserve_request=True)
