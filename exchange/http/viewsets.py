"""Base class of the view sets. `initial()` implements the contract's error precedence (contract: "Conventions")."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, TypeVar

from django.conf import settings
from django.db.models import Model, QuerySet
from django.http import QueryDict
from django.utils.functional import cached_property
from rest_framework.mixins import ListModelMixin
from rest_framework.request import Request
from rest_framework.viewsets import GenericViewSet

from exchange import services
from exchange.audit import Actor
from exchange.errors import FieldError, MalformedRequest, ValidationFailed
from exchange.http import json_media, rate_limits
from exchange.http.fields import MAX_ERRORS, StrictSerializer, validate
from exchange.http.filters import Filters
from exchange.http.middleware import actor_of
from exchange.http.paging import Keyset, PageQuerySerializer, PageRequest, parse_page
from exchange.json_codec import MAX_NAME_SHOWN
from exchange.keys import Principal
from exchange.rules import Scope

Row = TypeVar("Row", bound=Model)
_NO_PARAMETERS = QueryDict()


class ExchangeViewSet(GenericViewSet[Row]):
    """View set that declares the input of its actions. The validated input is in `body`, `query` and `page`."""

    http_method_names = ["get", "post", "delete", "head"]
    format_kwarg = None  # JSON is the only format

    scopes: ClassVar[Mapping[str, tuple[Scope, ...]]] = {}  # by action: a key needs one of these
    body_serializers: ClassVar[Mapping[str, type[StrictSerializer]]] = {}  # by action, for POST
    query_serializers: ClassVar[Mapping[str, type[StrictSerializer]]] = {}  # by action
    filterset_class: ClassVar[type[Filters] | None] = None  # filters of the action `list`
    keyset: ClassVar[Keyset]  # sort order of the action `list`
    page_class: ClassVar[type[Any]]  # response of the action `list`
    cancels: ClassVar[tuple[str, ...]] = ()  # actions with a rate limit of their own
    max_body_bytes: int = settings.MAX_BODY_BYTES  # an argument of `@action`

    data: dict[str, Any]  # the body of a POST before validation
    body: dict[str, Any]
    query: dict[str, Any]
    page: PageRequest
    cost = 0  # tokens that the request takes from its key's rate limit
    already_taken = 0  # the part of `cost` taken by an earlier `charge`

    @cached_property
    def principal(self) -> Principal:
        """The key's owner and scopes."""
        principal = self.request.auth
        assert isinstance(principal, Principal)
        return principal

    @cached_property
    def parameters(self) -> QueryDict:
        """The query parameters. Most requests have none, and parsing an empty query string is not free."""
        return self.request.query_params if self.request.META["QUERY_STRING"] else _NO_PARAMETERS

    @property
    def needs_body(self) -> bool:
        """True if the body has a required field."""
        serializer = self.body_serializers.get(self.action)
        return serializer is not None and any(field.required for field in serializer._declared_fields.values())

    @property
    def actor(self) -> Actor:
        """The key as the audit log records it."""
        return actor_of(self.principal, self.request.META)

    @property
    def default_response_headers(self) -> dict[str, str]:
        """Empty: `Allow` is sent only with 405, and throttles add their own headers."""
        return {}

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Reject a request in the contract's order, before anything is looked up."""
        request.accepted_renderer, request.accepted_media_type = self.perform_content_negotiation(request)
        self.perform_authentication(request)  # 401
        is_allowed = request.method in self.allowed_methods
        has_body = is_allowed and request.method == "POST"
        received = json_media.read_body(request._request, self.max_body_bytes) if has_body else 0
        self.charge(rate_limits.tokens_for_body(received))  # 429
        if not is_allowed:
            self.http_method_not_allowed(request)  # 405
        self.data = self._parse_body(request) if has_body else {}  # 413, 415, 400 (format)
        self.charge(self.get_cost())  # 429
        self.check_permissions(request)  # 403
        self.check_fields()  # 400 (fields)

    def charge(self, tokens: int) -> None:
        """Raise the cost of the request to at least `tokens`, or reject it if its key does not have them."""
        if tokens > self.cost:
            self.already_taken, self.cost = self.cost, tokens
            self.check_throttles(self.request)

    def get_cost(self) -> int:
        """The cost of a request by the content of its body."""
        return 1

    def check_fields(self) -> None:
        """Validate body and query. All errors of both are reported at once."""
        errors: list[FieldError] = []
        if self.action in self.body_serializers:
            self.body = validate(self.body_serializers[self.action], self.data, errors)
        errors += self._query_errors()
        if errors:
            raise ValidationFailed(errors=errors[:MAX_ERRORS])

    def _query_errors(self) -> list[FieldError]:
        """Validate the query. A repeated parameter has no other error: it is not known which value is meant."""
        repeated = [name[:MAX_NAME_SHOWN] for name, values in self.parameters.lists() if len(values) > 1]
        parameters = {name: str(value) for name, value in self.parameters.items()}
        found = [*self.read_query(parameters)]
        shown = (name[:MAX_NAME_SHOWN] for name in islice(parameters, MAX_ERRORS))
        found += [FieldError(name, "unknown_parameter", "Unknown query parameter.") for name in shown]
        errors = [FieldError(name, "repeated", "Send this parameter only once.") for name in repeated[:MAX_ERRORS]]
        return errors + [error for error in found if error.field not in repeated]

    def read_query(self, parameters: dict[str, str]) -> Sequence[FieldError]:
        """Validate the query parameters of this action, remove them from `parameters`, and return their errors."""
        errors: list[FieldError] = []
        query_serializer = self.query_serializers.get(self.action)
        if query_serializer is not None:
            self.query = validate(query_serializer, _pop(parameters, query_serializer._declared_fields), errors)
        if self.action == "list" and self.filterset_class is not None:
            errors += self.filterset_class.field_errors(_pop(parameters, self.filterset_class.base_filters))
        if self.action == "list" and self.pagination_class is not None:
            self.page = parse_page(self.keyset, _pop(parameters, PageQuerySerializer._declared_fields), errors)
        return errors

    def _parse_body(self, request: Request) -> dict[str, Any]:
        if json_media.content_length(request.META):
            assert isinstance(request.data, dict)
            return request.data
        if self.needs_body:
            raise MalformedRequest("The body is empty.")
        return {}


class BrokerListViewSet(ListModelMixin, ExchangeViewSet[Row]):
    """View set of the rows of the broker in its path, with a list of them."""

    def get_queryset(self) -> QuerySet[Row]:
        services.require_broker(self.kwargs["broker_id"])
        return super().get_queryset().filter(broker=self.kwargs["broker_id"])


def _pop(parameters: dict[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: parameters.pop(name) for name in names if name in parameters}
