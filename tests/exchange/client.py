"""Test client of the API, which sends JSON and returns responses with exact numbers."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from django.core.handlers.base import BaseHandler
from django.http import HttpRequest
from django.test import Client as DjangoClient
from django.test import override_settings
from django.test.client import ClientHandler

from config.settings import api
from gateway.django_handler import ExchangeHandler

_DECODER = msgspec.json.Decoder(float_hook=Decimal)


class ApiSettingsHandler(BaseHandler):
    """Handler with the API's middleware and URLs, since the tests use the settings of the back office."""

    def load_middleware(self, is_async: bool = False) -> None:
        with override_settings(MIDDLEWARE=api.MIDDLEWARE):
            super().load_middleware(is_async)

    def get_response(self, request: HttpRequest) -> Any:
        request.urlconf = api.ROOT_URLCONF
        return super().get_response(request)


class ApiHandler(ApiSettingsHandler, ExchangeHandler):
    """The Django handler of the API's server."""


class _ClientHandler(ApiSettingsHandler, ClientHandler):
    pass


_DJANGO = DjangoClient(raise_request_exception=False)  # shared, because each new client creates the middleware again
_DJANGO.handler = _ClientHandler(enforce_csrf_checks=False)


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """A response, whose numbers with a decimal point are exact `Decimal`s."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return _DECODER.decode(self.content)

    @property
    def code(self) -> str:
        """The `code` of the problem."""
        assert self.headers["Content-Type"] == "application/problem+json", self
        return str(self.body["code"])

    @property
    def fields(self) -> dict[str, str]:
        """The code of each invalid field."""
        return {error["field"]: error["code"] for error in self.body.get("errors", [])}


class Client:
    """A client with one key, or without a key."""

    def __init__(self, key: str | None) -> None:
        self.key = key

    def request(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json", **headers: str
    ) -> ApiResponse:
        """Send a request with a body of bytes, or of a value to be encoded as JSON."""
        content = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        if self.key is not None:
            headers = {"Authorization": f"Bearer {self.key}"} | headers
        path, _, query = path.partition("?")
        response = _DJANGO.generic(method, path, content, content_type, headers=headers, QUERY_STRING=query)
        return ApiResponse(response.status_code, dict(response.headers), response.content)

    def get(self, path: str, **headers: str) -> ApiResponse:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: Any = None, **options: str) -> ApiResponse:
        return self.request("POST", path, body, **options)

    def delete(self, path: str) -> ApiResponse:
        return self.request("DELETE", path)
