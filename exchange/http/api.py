"""The base of every view: it refuses in the contract's order, then hands the view what was asked, checked and typed.

A view declares what it takes (`scopes`, `body_class`, `query_class`, `filterset_class`, `keyset`) and finds it in
`principal`, `body`, `query`, `filtered(...)` and `paged(...)`. What is left to it: one call, one answer.
"""

import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from io import BytesIO
from itertools import islice
from typing import Any, ClassVar, TypeVar

from django.conf import settings
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict, UnreadablePostError
from rest_framework.views import APIView

from exchange.audit import Actor
from exchange.errors import (
    BrokerMismatch,
    FieldError,
    MalformedRequest,
    MethodNotAllowed,
    RateLimited,
    ScopeMissing,
    TooLarge,
    UnsupportedMediaType,
    ValidationFailed,
)
from exchange.http import limits
from exchange.http.authentication import ApiKeyAuthentication
from exchange.http.fields import MAX_ERRORS, MAX_NAME_SHOWN, StrictSerializer, validated
from exchange.http.filters import Filters
from exchange.http.middleware import actor_of, request_id_of
from exchange.http.paging import Keyset, Page, PageQuery
from exchange.http.problems import problem_response, refusal_of
from exchange.keys import Principal
from exchange.rules import Scope
from exchange.wire import decoded, encoded

Row = TypeVar("Row", bound=Model)
READS = ("GET", "HEAD")
MEDIA_TYPE = "application/json"  # JSON is UTF-8, and its media type has no charset
_NO_PARAMETERS = QueryDict()


class Response(HttpResponse):
    """An answer: a Struct, or whatever else msgspec encodes; or nothing."""

    def __init__(
        self, body: object = None, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(b"" if body is None else encoded(body), MEDIA_TYPE, status, headers=headers)
        if body is None:
            del self["Content-Type"]


class ExchangeView(APIView):
    """One path; `get`, `post` and `delete` are what can be done there."""

    http_method_names = ["get", "post", "delete", "head"]
    format_kwarg = None  # there is one form of answer

    scopes: ClassVar[Mapping[str, tuple[Scope, ...]]] = {}  # by method: any one of these will do
    body_class: ClassVar[type[StrictSerializer] | None] = None  # of a POST
    body_optional: ClassVar[bool] = False
    max_body_bytes: ClassVar[int] = settings.MAX_BODY_BYTES
    query_class: ClassVar[type[StrictSerializer] | None] = None  # of a GET, as are the next two
    filterset_class: ClassVar[type[Filters] | None] = None
    keyset: ClassVar[Keyset | None] = None  # the view is a list in this order
    delete_query_class: ClassVar[type[StrictSerializer] | None] = None  # of a DELETE
    cancels: ClassVar[bool] = False  # a DELETE here has the limit of cancels, which other requests do not use up

    principal: Principal  # who is asking
    data: dict[str, Any]  # the body as it came
    body: dict[str, Any]  # checked
    query: dict[str, Any]
    page: Page

    @property
    def actor(self) -> Actor:
        """Who is asking, as the audit tells it."""
        return actor_of(self.principal, self.request.META)

    def cost(self, request: HttpRequest) -> int:
        """How many requests this one counts as, whatever the length of its body, which is a JSON object by now."""
        return 1

    def filtered(self, queryset: QuerySet[Row]) -> QuerySet[Row]:
        """`queryset` narrowed by the query parameters of `filterset_class`."""
        narrowed: QuerySet[Row] = self._filters.filter_queryset(queryset)
        return narrowed

    def paged(self, queryset: QuerySet[Row]) -> tuple[list[Row], str | None]:
        """The rows of the page asked for, and the cursor of the next one."""
        assert self.keyset is not None
        return self.keyset.cut(self.keyset.rows(queryset, self.page), self.page)

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Answer, or say why not.

        It stands in for REST framework's, with its own Request, Response, parsers and renderers: there is one form of
        everything here, and a request passed through many more calls of theirs than are made below.
        """
        self.headers = {}
        try:
            self._admit(request)
            response: HttpResponse = getattr(self, str(request.method).lower())(request, *args, **kwargs)
        except Exception as exception:
            response = problem_response(refusal_of(exception), request_id_of(request.META))
            if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
                response["Allow"] = ", ".join(self.allowed_methods)
        for name, value in self.headers.items():
            response[name] = value
        return response

    def _admit(self, request: HttpRequest) -> None:
        """Refuse what must be refused, in this order, before anything is looked up."""
        if request.method == "POST":
            self._receive(request)
        if self.authentication_classes:
            self.principal, _ = ApiKeyAuthentication().authenticate(request)
            request.auth = self.principal  # type: ignore[attr-defined]  # the log tells who it was
        tokens = limits.tokens_of(self._received_bytes(request))
        self._count(request, tokens)
        if str(request.method).lower() not in self.http_method_names or not hasattr(self, str(request.method).lower()):
            raise MethodNotAllowed
        if request.method == "POST":
            self._require_form(request)
            self._count(request, max(self.cost(request), tokens), held=tokens)
        if self.authentication_classes:
            self._require_access(request)
        self._require_fields(request)

    def _receive(self, request: HttpRequest) -> None:
        """Take in the body, if it may be so long, while no connection is held: a client can be slow to send it."""
        self._measure_chunked(request)
        if self._received_bytes(request):
            try:
                request.body  # noqa: B018 (a property that reads)
            except UnreadablePostError as error:
                raise MalformedRequest("The body could not be read.") from error

    def _received_bytes(self, request: HttpRequest) -> int:
        """How many bytes of the body are taken in; of one that is too long, or is not looked at, none."""
        length = _length(request) if request.method == "POST" else 0
        return length if length <= self.max_body_bytes else 0

    def _count(self, request: HttpRequest, tokens: int, *, held: int = 0) -> None:
        """Take what the request costs from its key's limit, and say in the answer what is left, or refuse."""
        if not self.authentication_classes or tokens == held:
            return
        limit = limits.cancels() if self.cancels and request.method == "DELETE" else limits.requests()
        allowance = limit.take(self.principal.key_prefix, tokens, time.monotonic_ns(), held=held)
        self.headers |= limit.headers(allowance)
        if not allowance.is_granted:
            raise RateLimited(
                f"This key may send {limit.per_second} {limit.name} a second, and {limit.burst} at once; "
                f"wait {allowance.seconds} s.",
                retry_after_seconds=allowance.seconds,
            )

    def _require_form(self, request: HttpRequest) -> None:
        """Read the JSON of the body, if it is one, all there, and not too long."""
        self.data = {}
        length = _length(request)
        if length == 0:
            if not self.body_optional:
                raise MalformedRequest("The body is empty.")
            return
        if request.content_type != MEDIA_TYPE:
            raise UnsupportedMediaType
        if length > self.max_body_bytes:
            raise TooLarge(f"The body may have at most {self.max_body_bytes} bytes.")
        if len(request.body) < length:
            raise MalformedRequest("The body ended before its Content-Length.")
        self.data = decoded(request.body)

    def _measure_chunked(self, request: HttpRequest) -> None:
        """Give a body sent in chunks its length: without one Django takes it for empty."""
        chunked = "HTTP_TRANSFER_ENCODING" in request.META and not request.META.get("CONTENT_LENGTH")
        if chunked and request.META.get("wsgi.input_terminated"):  # else the server cannot tell where it ends
            try:
                body = request.META["wsgi.input"].read(self.max_body_bytes + 1)
            except OSError as error:
                raise MalformedRequest("The body could not be read.") from error
            request.META["CONTENT_LENGTH"] = str(len(body))
            request._stream = BytesIO(body)  # where Django reads it from

    def _require_access(self, request: HttpRequest) -> None:
        method = "GET" if request.method == "HEAD" else request.method
        accepted = self.scopes[str(method)]
        if not any(self.principal.may(scope) for scope in accepted):
            raise ScopeMissing(f"This needs a key with the scope {' or '.join(accepted)}.")
        own = self.principal.broker_id
        if own is not None and any(named != own for named in self._brokers_named(request)):
            raise BrokerMismatch(f"This key acts for {own} only.")

    def _brokers_named(self, request: HttpRequest) -> Iterable[str]:
        """Every broker the request names; what is not a string is left to the field's own check."""
        named = [self.kwargs.get("broker_id"), *_parameters(request).getlist("broker_id")]
        if request.method == "POST":
            named.append(self.data.get("broker_id"))
        return [broker_id for broker_id in named if isinstance(broker_id, str)]

    def _require_fields(self, request: HttpRequest) -> None:
        """Check body and query to the end, and name every bad field of either at once."""
        errors: list[FieldError] = []
        parameters = {name: str(value) for name, value in _parameters(request).dict().items()}
        if request.method == "POST" and self.body_class is not None:
            self.body = validated(self.body_class, self.data, errors)
        if request.method in READS:
            self._read_query(parameters, errors)
        if request.method == "DELETE":
            self._read_delete_query(parameters, errors)
        unknown = "There is no such query parameter here."
        shown = (name[:MAX_NAME_SHOWN] for name in islice(parameters, MAX_ERRORS))
        errors += [FieldError(name, "unknown_parameter", unknown) for name in shown]
        if errors:
            raise ValidationFailed(errors=errors[:MAX_ERRORS])

    def _read_query(self, parameters: dict[str, str], errors: list[FieldError]) -> None:
        """Take what this view knows out of `parameters`."""
        if self.query_class is not None:
            self.query = validated(self.query_class, _taken(parameters, self.query_class._declared_fields), errors)
        if self.filterset_class is not None:
            self._filters = self.filterset_class(_taken(parameters, self.filterset_class.base_filters))
            errors += self._filters.field_errors()
        if self.keyset is not None:
            self.page = _page(self.keyset, _taken(parameters, PageQuery._declared_fields), errors)

    def _read_delete_query(self, parameters: dict[str, str], errors: list[FieldError]) -> None:
        if self.delete_query_class is not None:
            known = _taken(parameters, self.delete_query_class._declared_fields)
            self.query = validated(self.delete_query_class, known, errors)


def _length(request: HttpRequest) -> int:
    """How many bytes the body is said to have."""
    length = request.META.get("CONTENT_LENGTH") or "0"
    return int(length) if length.isdecimal() else 0


def _parameters(request: HttpRequest) -> QueryDict:
    return request.GET if request.META["QUERY_STRING"] else _NO_PARAMETERS


def _taken(parameters: dict[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: parameters.pop(name) for name in names if name in parameters}


def _page(keyset: Keyset, parameters: dict[str, str], errors: list[FieldError]) -> Page:
    query = validated(PageQuery, parameters, errors)
    position = None
    if "cursor" in parameters and all(error.field != "cursor" for error in errors):
        try:
            position = keyset.read(parameters["cursor"])
        except ValueError:
            errors.append(FieldError("cursor", "invalid", "Must be the next_cursor of an earlier page of this list."))
    return Page(query.get("limit", 0), position)
