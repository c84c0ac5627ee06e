"""The OpenAPI document of the code: views, serializer fields and the Structs of responses describe themselves.

`config.openapi` completes it with the descriptions of fields and with the events.
"""

# mypy: disable-error-code="no-untyped-call"
# drf-spectacular is only half typed.

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from drf_spectacular.extensions import (
    OpenApiAuthenticationExtension,
    OpenApiSerializerExtension,
    OpenApiSerializerFieldExtension,
)
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import Direction, OpenApiParameter, OpenApiResponse, extend_schema

from exchange import errors
from exchange.errors import ExchangeError
from exchange.http.fields import Choice, StrictField
from exchange.http.paging import PageQuerySerializer
from exchange.http.problems import MEDIA_TYPE, STATUSES
from exchange.json_codec import Problem
from exchange.rules import Scope

Handler = TypeVar("Handler", bound=Callable[..., Any])
JSONSchema = dict[str, Any]

_GENERAL_ERRORS = (errors.MethodNotAllowed, errors.InternalError, errors.Overloaded, errors.OutcomeUnknown)
_KEY_ERRORS = (errors.Unauthenticated, errors.ScopeMissing, errors.BrokerMismatch, errors.RateLimited)
_BODY_ERRORS = (errors.MalformedRequest, errors.TooLarge, errors.UnsupportedMediaType)


def header(name: str, description: str, *, on: Iterable[int] = (), **kwargs: Any) -> OpenApiParameter:
    """Header of the responses with these statuses, or of every response."""
    return OpenApiParameter(
        name, location=OpenApiParameter.HEADER, description=description, response=list(on) or True, **kwargs
    )


_HEADERS = (
    header("X-Request-Id", "Id of this request, repeated in problems and in the log.", required=True),
    header("WWW-Authenticate", "The authentication scheme, `Bearer`.", on=[401], required=True),
    header("Accept-Encoding", "`identity`, if the body had a Content-Encoding.", on=[415]),
    header("Retry-After", "Seconds to wait before a retry.", on=[429, 503], type=OpenApiTypes.INT64),
)
_KEY_HEADERS = (
    header(
        "RateLimit-Policy",
        "Rate limit of this request, `requests` or `cancels`: burst size (`q`) and the seconds in which it refills "
        '(`w`), such as `"requests";q=4000;w=2`. Absent without a valid key.',
    ),
    header(
        "RateLimit",
        "Remaining requests of this key (`r`), and the seconds until there are more (`t`), such as "
        '`"requests";r=3999;t=1`.',
    ),
)


def documented(
    operation_id: str,
    summary: str,
    responses: Mapping[int, Any],
    own_errors: Iterable[type[ExchangeError]] = (),
    *,
    description: str | None = None,
    tags: Iterable[str] = (),
    headers: Iterable[OpenApiParameter] = (),
) -> Callable[[Handler], Handler]:
    """Describe an action of an `ExchangeViewSet`: its responses by status, and its specific errors.

    The view determines the body, the parameters, and the general errors and headers. The description is the docstring
    unless given.
    """
    decorate: Callable[[Handler], Handler] = extend_schema(
        operation_id=operation_id,
        summary=summary,
        description=description,
        tags=list(tags) or None,
        parameters=list(headers),
        responses={**responses, **_by_status(own_errors)},
    )
    return decorate


def _by_status(kinds: Iterable[type[ExchangeError]]) -> dict[int, list[type[ExchangeError]]]:
    grouped: dict[int, list[type[ExchangeError]]] = {}
    for kind in kinds:
        grouped.setdefault(STATUSES[kind.code], []).append(kind)
    return grouped


class Schema(AutoSchema):
    """Schema of the operations of an `ExchangeViewSet`."""

    view: Any

    def get_operation(self, *args: Any) -> Any:
        """Add the scopes to the description: a key needs any one of them."""
        operation = super().get_operation(*args)
        if operation and self.view.scopes:
            scopes = " or ".join(f"`{scope}`" for scope in self.view.scopes[self.view.action])
            operation["description"] += f"\n\nScope: {scopes}."
        return operation

    def get_description(self) -> str:  # type: ignore[override]  # as in the base class
        """Return the docstring of the action or, without one, of the view set."""
        return _own_doc(getattr(self.view, self.view.action)) or _own_doc(type(self.view))

    def get_tags(self) -> list[str]:
        """Return the tag of operators, or the first part of the path."""
        only_operators = self.view.scopes.get(self.view.action) == (Scope.OPERATOR,)
        return ["operators"] if only_operators else list(super().get_tags())

    def get_request_serializer(self) -> Any:
        return self.view.body_serializers.get(self.view.action)

    def get_override_parameters(self) -> list[Any]:
        """Return the response headers, the query serializer's fields, the list's filters, and paging."""
        view, parameters = self.view, [*_HEADERS, *(_KEY_HEADERS if self.view.authentication_classes else ())]
        if view.action in view.query_serializers:
            parameters.append(view.query_serializers[view.action])
        if view.action == "list" and view.filterset_class:
            parameters += [
                OpenApiParameter(name, self._field(each.value_field), OpenApiParameter.QUERY)
                for name, each in view.filterset_class.base_filters.items()
            ]
        if view.action == "list" and view.pagination_class:
            parameters.append(PageQuerySerializer)
        return parameters

    def _is_list_view(self, serializer: Any = None) -> bool:
        """False: a page is an object, and its parameters are among the override parameters."""
        return False

    def _field(self, field: StrictField) -> JSONSchema:
        return dict(self._map_serializer_field(field, "request"))

    def get_response_serializers(self) -> Any:
        """Return no responses for an action without `documented`."""
        return {}

    def _get_request_body(self, direction: Direction = "request") -> Any:
        body = super()._get_request_body(direction)
        if body is not None:
            body["required"] = self.view.needs_body
        return body

    def _get_response_bodies(self, direction: Direction = "response") -> JSONSchema:
        """Return the declared responses, and a problem for each status of an error, with the codes it may carry."""
        declared: dict[int, Any] = self.get_response_serializers()
        own_errors = [kind for each in declared.values() if isinstance(each, list) for kind in each]
        bodies = {
            str(status): self._get_response_for_code(_with_description(response), str(status))
            for status, response in declared.items()
            if not isinstance(response, list)
        }
        for status, kinds in sorted(_by_status(dict.fromkeys([*self._general_errors(), *own_errors])).items()):
            if str(int(status)) not in bodies:
                codes = "\n".join(f"- `{kind.code}`: {_own_doc(kind)}" for kind in kinds)
                problem = OpenApiResponse(Problem, description=codes)
                bodies[str(int(status))] = self._get_response_for_code(problem, str(int(status)), [MEDIA_TYPE])
        return bodies

    def _general_errors(self) -> list[type[ExchangeError]]:
        kinds: list[type[ExchangeError]] = [*_GENERAL_ERRORS, errors.ValidationFailed]
        if self.view.authentication_classes:
            kinds += _KEY_ERRORS
        if self.method == "POST":
            kinds += _BODY_ERRORS
        if "{" in self.path:
            kinds.append(errors.NotFound)
        return kinds


class BearerScheme(OpenApiAuthenticationExtension):
    target_class = "exchange.http.authentication.ApiKeyAuthentication"
    name = "key"

    def get_security_definition(self, auto_schema: AutoSchema) -> JSONSchema:
        description = "An API key, sent as `Authorization: Bearer <key>`. The scope `trade` includes `read`."
        return {"type": "http", "scheme": "bearer", "description": description}


class FieldExtension(OpenApiSerializerFieldExtension):
    """Schema of a strict field. An enum is a shared component."""

    target_class = "exchange.http.fields.StrictField"
    match_subclasses = True

    def map_serializer_field(self, auto_schema: AutoSchema, direction: Direction) -> JSONSchema:
        field = self.target
        schema: JSONSchema = field.schema()
        if not isinstance(field, Choice):
            return schema
        accepted = {} if field.takes_all_members else {"enum": schema["enum"]}
        return _register(auto_schema, field.component_name, struct_schemas(field.enum)[field.enum.__name__] | accepted)


class StrictSerializerExtension(OpenApiSerializerExtension):
    """Schema of a request body, without other fields than the serializer's."""

    target_class = "exchange.http.fields.StrictSerializer"
    match_subclasses = True

    def get_name(self, auto_schema: AutoSchema, direction: Direction) -> str:
        """Return the name of the component, which is a class of generated clients: `PlaceOrderForm`."""
        return type(self.target).__name__.removesuffix("Serializer") + "Form"

    def map_serializer(self, auto_schema: AutoSchema, direction: Direction) -> JSONSchema:
        schema: JSONSchema = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        schema["description"] = _own_doc(type(self.target))
        return schema | {"additionalProperties": False}


class StructExtension(OpenApiSerializerExtension):
    """Schema of a response body, by msgspec."""

    target_class = "msgspec.Struct"
    match_subclasses = True

    def get_name(self, auto_schema: AutoSchema, direction: Direction) -> str:
        return str(self.target.__name__)

    def get_identity(self, auto_schema: AutoSchema, direction: Direction) -> str:
        return str(self.target.__name__)

    def map_serializer(self, auto_schema: AutoSchema, direction: Direction) -> JSONSchema:
        schemas = struct_schemas(self.target)
        schema = schemas.pop(self.target.__name__)
        for name, contained in schemas.items():
            _register(auto_schema, name, contained)
        return schema


def struct_schemas(kind: type) -> dict[str, JSONSchema]:
    """Return the schemas of a Struct or enum and of all Structs and enums that it contains, by component name."""
    _, schemas = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    return {name: _as_encoded(schema) for name, schema in schemas.items()}


def _register(auto_schema: AutoSchema, name: str, schema: JSONSchema) -> JSONSchema:
    """Add a component unless it exists, and return the reference to it."""
    component = ResolvedComponent(name=name, type=ResolvedComponent.SCHEMA, object=name, schema=schema)
    auto_schema.registry.register_on_missing(component)
    return {"$ref": f"#/components/schemas/{name}"}


def _with_description(response: Any) -> Any:
    """Add the docstring of a Struct as the description of the response."""
    is_struct = isinstance(response, type) and issubclass(response, msgspec.Struct)
    return OpenApiResponse(response, description=_own_doc(response)) if is_struct else response


def _own_doc(described: Any) -> str:
    """Return the docstring of a class or function, without an inherited one."""
    return inspect.cleandoc(described.__doc__ or "")


def _as_encoded(schema: Any) -> Any:
    """Adapt a schema of msgspec to our encoding (decimals are numbers) and to code generators (64-bit integers)."""
    if isinstance(schema, list):
        return [_as_encoded(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "decimal":
        return {"type": "number"}
    if schema.get("type") == "integer":
        return {**schema, "format": "int64"}
    if "enum" in schema:
        schema = {"type": "string", **schema}
    schema = {key: _as_encoded(value) for key, value in schema.items() if not _is_class_name(key, value)}
    if isinstance(schema.get("description"), str):
        schema["description"] = inspect.cleandoc(schema["description"])
    return schema


def _is_class_name(key: str, value: Any) -> bool:
    """True if this is the name of a Python class, not a property called `title`."""
    return key == "title" and isinstance(value, str)
