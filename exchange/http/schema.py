"""The OpenAPI document, drawn from what the code goes by: the views' declarations, the fields, the answers' Structs."""

# mypy: disable-error-code="no-untyped-call"
# drf-spectacular is only half typed.

import inspect
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, TypeVar

import msgspec
from drf_spectacular.extensions import (
    OpenApiAuthenticationExtension,
    OpenApiSerializerExtension,
    OpenApiSerializerFieldExtension,
)
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from drf_spectacular.utils import Direction, OpenApiParameter, OpenApiResponse, extend_schema

from exchange import errors
from exchange.errors import ExchangeError
from exchange.http.fields import Choice, StrictField
from exchange.http.paging import PageQuerySerializer
from exchange.http.problems import MEDIA_TYPE, STATUSES
from exchange.json_codec import Problem

Handler = TypeVar("Handler", bound=Callable[..., Any])
JSONSchema = dict[str, Any]

_ALWAYS = (errors.MethodNotAllowed, errors.InternalError, errors.Overloaded, errors.OutcomeUnknown)
_OF_A_BODY = (errors.MalformedRequest, errors.TooLarge, errors.UnsupportedMediaType)


def header(name: str, description: str, *, on: Iterable[int] = (), **kwargs: Any) -> OpenApiParameter:
    """A header of the answers with these statuses, or of every answer."""
    return OpenApiParameter(
        name, location=OpenApiParameter.HEADER, description=description, response=list(on) or True, **kwargs
    )


_HEADERS = (
    header("X-Request-Id", "The id of this request, repeated in a problem and in the log.", required=True),
    header("WWW-Authenticate", "How to say who is asking.", on=[401], required=True),
    header("Retry-After", "In how many seconds to try again.", on=[429, 503], type=int),
)
_OF_A_KEY = (
    header(
        "RateLimit-Policy",
        "The limit that this request counts against, `requests` or `cancels`: so many at once (`q`), which come back "
        'within so many seconds (`w`): `"requests";q=4000;w=2`. Without a good key there is none.',
    ),
    header(
        "RateLimit",
        'What this key has left of it (`r`); there is more after so many seconds (`t`): `"requests";r=3999;t=1`.',
    ),
)


def documented(
    operation_id: str,
    summary: str,
    responses: Mapping[int, Any],
    refusals: Iterable[type[ExchangeError]] = (),
    *,
    tags: Iterable[str] = (),
    headers: Iterable[OpenApiParameter] = (),
) -> Callable[[Handler], Handler]:
    """Describe one action of an `ExchangeViewSet`: its answers by status, and the refusals that are its own.

    Body, parameters, and the refusals and headers that every request may meet, follow from the view.
    """
    decorate: Callable[[Handler], Handler] = extend_schema(
        operation_id=operation_id,
        summary=summary,
        tags=list(tags) or None,
        parameters=list(headers),
        responses={**responses, **_by_status(refusals)},
    )
    return decorate


def _by_status(refusals: Iterable[type[ExchangeError]]) -> dict[int, list[type[ExchangeError]]]:
    found: dict[int, list[type[ExchangeError]]] = {}
    for refusal in refusals:
        found.setdefault(STATUSES[refusal.code], []).append(refusal)
    return found


class Schema(AutoSchema):
    """Reads an `ExchangeViewSet`'s declarations."""

    view: Any

    def get_description(self) -> str:  # type: ignore[override]  # as in the base class
        """The docstring of the action, or of a view set that has one action only."""
        of_action = _own_doc(getattr(self.view, self.view.action))
        return of_action or (_own_doc(type(self.view)) if len(self.view.scopes) == 1 else "")

    def get_request_serializer(self) -> Any:
        return self.view.body_serializers.get(self.view.action)

    def get_override_parameters(self) -> list[Any]:
        """The answers' headers; the query serializer's fields, the list's filters, and paging."""
        view, parameters = self.view, [*_HEADERS, *(_OF_A_KEY if self.view.authentication_classes else ())]
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
        """Never: a page is an object, and its parameters are among the override parameters."""
        return False

    def _field(self, field: StrictField) -> JSONSchema:
        return dict(self._map_serializer_field(field, "request"))

    def get_response_serializers(self) -> Any:
        """Without `documented` there is nothing to tell."""
        return {}

    def _get_request_body(self, direction: Direction = "request") -> Any:
        body = super()._get_request_body(direction)
        if body is not None:
            body["required"] = not self.view.body_optional
        return body

    def _get_response_bodies(self, direction: Direction = "response") -> JSONSchema:
        """The answers, and each status' problem with the codes it may carry."""
        declared: dict[int, Any] = self.get_response_serializers()
        answers = {status: each for status, each in declared.items() if not isinstance(each, list)}
        refusals = [refusal for each in declared.values() if isinstance(each, list) for refusal in each]
        bodies = {str(s): self._get_response_for_code(answer, str(s)) for s, answer in answers.items()}
        for status, kinds in sorted(_by_status(dict.fromkeys([*self._general_refusals(), *refusals])).items()):
            if str(int(status)) not in bodies:
                codes = "\n".join(f"- `{kind.code}`: {(kind.__doc__ or '').strip()}" for kind in kinds)
                problem = OpenApiResponse(Problem, description=codes)
                bodies[str(int(status))] = self._get_response_for_code(problem, str(int(status)), [MEDIA_TYPE])
        return bodies

    def _general_refusals(self) -> list[type[ExchangeError]]:
        kinds: list[type[ExchangeError]] = [*_ALWAYS, errors.ValidationFailed]
        if self.view.authentication_classes:
            kinds += [errors.Unauthenticated, errors.ScopeMissing, errors.BrokerMismatch, errors.RateLimited]
        if self.method == "POST":
            kinds += _OF_A_BODY
        if "{" in self.path:
            kinds.append(errors.NotFound)
        return kinds


class BearerScheme(OpenApiAuthenticationExtension):
    target_class = "exchange.http.authentication.ApiKeyAuthentication"
    name = "key"

    def get_security_definition(self, auto_schema: AutoSchema) -> JSONSchema:
        return {"type": "http", "scheme": "bearer"}


class FieldExtension(OpenApiSerializerFieldExtension):
    """Schema of a strict field. An enum is a shared component, also where only some of its members are accepted."""

    target_class = "exchange.http.fields.StrictField"
    match_subclasses = True

    def map_serializer_field(self, auto_schema: AutoSchema, direction: Direction) -> JSONSchema:
        field = self.target
        schema: JSONSchema = field.schema()
        if not isinstance(field, Choice):
            return schema
        reference = _described(auto_schema, field.enum)
        return reference if field.takes_all_members else reference | {"enum": schema["enum"]}


class StrictSerializerExtension(OpenApiSerializerExtension):
    """What comes in has no other fields than those named."""

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
    """What goes out is a Struct, and msgspec knows its schema."""

    target_class = "msgspec.Struct"
    match_subclasses = True

    def get_name(self, auto_schema: AutoSchema, direction: Direction) -> str:
        return str(self.target.__name__)

    def get_identity(self, auto_schema: AutoSchema, direction: Direction) -> str:
        return str(self.target.__name__)

    def map_serializer(self, auto_schema: AutoSchema, direction: Direction) -> JSONSchema:
        return _components(auto_schema, self.target)[self.target.__name__]


def _own_doc(described: Any) -> str:
    """The docstring of a class or function, if it has one of its own."""
    return inspect.cleandoc(described.__doc__ or "")


def _described(auto_schema: AutoSchema, enum: type[Enum]) -> JSONSchema:
    """A reference to the enum's component."""
    _components(auto_schema, enum)
    return {"$ref": f"#/components/schemas/{enum.__name__}"}


def _components(auto_schema: AutoSchema, kind: type) -> dict[str, JSONSchema]:
    """The schemas of a type and of all that it contains; the latter (and an enum itself) become components."""
    _, schemas = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    schemas = {name: _as_sent(schema) for name, schema in schemas.items()}
    for name, schema in schemas.items():
        if name != kind.__name__ or issubclass(kind, Enum):
            component = ResolvedComponent(name=name, type=ResolvedComponent.SCHEMA, object=name, schema=schema)
            auto_schema.registry.register_on_missing(component)
    return schemas


def _as_sent(schema: Any) -> Any:
    """`schema` as it is sent: decimals are numbers."""
    if isinstance(schema, list):
        return [_as_sent(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "decimal":
        return {"type": "number"}
    if "enum" in schema:
        return {"type": "string", **schema}
    return {key: _as_sent(value) for key, value in schema.items() if not _is_title(key, value)}


def _is_title(key: str, value: Any) -> bool:
    """Whether this is the name of a Python class, not a property that is called so."""
    return key == "title" and isinstance(value, str)
