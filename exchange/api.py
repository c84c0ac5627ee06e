"""The base of every view: it refuses in the contract's order, then hands the view what was asked, checked and typed.

A view declares what it takes (`scopes`, `body_class`, `query_class`, `filterset_class`, `keyset`) and finds it in
`principal`, `body`, `query`, `filtered(...)` and `paged(...)`. What is left to it: one call, one answer.
"""

from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any, ClassVar, TypeVar, cast

from django.conf import settings
from django.db.models import Model, QuerySet
from django.http import UnreadablePostError
from rest_framework.request import Request
from rest_framework.views import APIView

from exchange.errors import (
    BrokerMismatch,
    FieldError,
    MalformedRequest,
    MethodNotAllowed,
    ScopeMissing,
    ValidationFailed,
)
from exchange.fields import MAX_ERRORS, MAX_NAME_SHOWN, StrictSerializer, validated
from exchange.filters import Filters
from exchange.keys import Principal
from exchange.paging import Keyset, Page, PageQuery
from exchange.rules import Scope

Row = TypeVar("Row", bound=Model)
READS = ("GET", "HEAD")


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

    body: dict[str, Any]  # checked
    query: dict[str, Any]
    page: Page

    @property
    def principal(self) -> Principal:
        """Who is asking."""
        assert isinstance(self.request.auth, Principal)
        return self.request.auth

    def filtered(self, queryset: QuerySet[Row]) -> QuerySet[Row]:
        """`queryset` narrowed by the query parameters of `filterset_class`."""
        narrowed: QuerySet[Row] = self._filters.filter_queryset(queryset)
        return narrowed

    def paged(self, queryset: QuerySet[Row]) -> tuple[list[Row], str | None]:
        """The rows of the page asked for, and the cursor of the next one."""
        assert self.keyset is not None
        return self.keyset.cut(self.keyset.rows(queryset, self.page), self.page)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuse what must be refused, in this order, before anything is looked up."""
        if request.method == "POST":
            self._receive(request)
        self.perform_authentication(request)
        if request.method not in self.allowed_methods:
            raise MethodNotAllowed
        if request.method == "POST":
            self._require_form(request)
        if self.authentication_classes:
            self._require_access(request)
        self._require_fields(request)

    def _receive(self, request: Request) -> None:
        """Take in the body, if it may be so long, while no connection is held: a client can be slow to send it."""
        self._measure_chunked(request)
        length = request.META.get("CONTENT_LENGTH") or "0"
        if length.isdecimal() and int(length) <= self.max_body_bytes:
            try:
                request._request.body  # noqa: B018 (a property that reads)
            except UnreadablePostError as error:
                raise MalformedRequest("The body could not be read.") from error

    def _require_form(self, request: Request) -> None:
        """Read the body: `request.data` raises what is wrong with its type, its size and its JSON."""
        if request.META.get("CONTENT_LENGTH") in (None, "", "0") and not self.body_optional:
            raise MalformedRequest("The body is empty.")
        request.data  # noqa: B018 (a property that parses)

    def _measure_chunked(self, request: Request) -> None:
        """Give a body sent in chunks its length: without one Django takes it for empty."""
        chunked = "HTTP_TRANSFER_ENCODING" in request.META and not request.META.get("CONTENT_LENGTH")
        if chunked and request.META.get("wsgi.input_terminated"):  # else the server cannot tell where it ends
            body = request.META["wsgi.input"].read(self.max_body_bytes + 1)
            request.META["CONTENT_LENGTH"] = str(len(body))
            request._request._stream = BytesIO(body)  # where Django reads it from

    def _require_access(self, request: Request) -> None:
        method = "GET" if request.method == "HEAD" else request.method
        accepted = self.scopes[str(method)]
        if not any(self.principal.may(scope) for scope in accepted):
            raise ScopeMissing(f"This needs a key with the scope {' or '.join(accepted)}.")
        own = self.principal.broker_id
        if own is not None and any(named != own for named in self._brokers_named(request)):
            raise BrokerMismatch(f"This key acts for {own} only.")

    def _brokers_named(self, request: Request) -> Iterable[str]:
        """Every broker the request names; what is not a string is left to the field's own check."""
        named = [self.kwargs.get("broker_id"), *request.query_params.getlist("broker_id")]
        if request.method == "POST":
            named.append(_object(request).get("broker_id"))
        return [broker_id for broker_id in named if isinstance(broker_id, str)]

    def _require_fields(self, request: Request) -> None:
        """Check body and query to the end, and name every bad field of either at once."""
        errors: list[FieldError] = []
        parameters = request.query_params.dict()
        if request.method == "POST" and self.body_class is not None:
            self.body = validated(self.body_class, _object(request), errors)
        if request.method in READS:
            self._read_query(parameters, errors)
        unknown = "There is no such query parameter here."
        errors += [FieldError(name[:MAX_NAME_SHOWN], "unknown_parameter", unknown) for name in parameters]
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


def _object(request: Request) -> dict[str, Any]:
    return cast(dict[str, Any], request.data)  # the parser refuses everything else


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
