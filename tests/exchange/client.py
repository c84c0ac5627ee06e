"""How tests speak to the exchange: JSON bytes in, an answer with its exact numbers out."""

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


class AsTheApi(BaseHandler):
    """Has the API's middleware and URLs, where the tests' settings are those of the back office, with all apps."""

    def load_middleware(self, is_async: bool = False) -> None:
        with override_settings(MIDDLEWARE=api.MIDDLEWARE):
            super().load_middleware(is_async)

    def get_response(self, request: HttpRequest) -> Any:
        request.urlconf = api.ROOT_URLCONF
        return super().get_response(request)


class ApiHandler(AsTheApi, ExchangeHandler):
    """Django, as the API's server calls it."""


class _ClientHandler(AsTheApi, ClientHandler):
    pass


_DJANGO = DjangoClient(raise_request_exception=False)  # one for all: each new one builds the middleware again
_DJANGO.handler = _ClientHandler(enforce_csrf_checks=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: numbers with a point are `Decimal`s as they were written."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return _DECODER.decode(self.content)

    @property
    def code(self) -> str:
        """The problem's code."""
        assert self.headers["Content-Type"] == "application/problem+json", self
        return str(self.body["code"])

    @property
    def fields(self) -> dict[str, str]:
        """The bad fields, with the code of each."""
        return {error["field"]: error["code"] for error in self.body.get("errors", [])}


class Client:
    """One key, or none."""

    def __init__(self, key: str | None) -> None:
        self.key = key

    def request(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json", **headers: str
    ) -> Answer:
        """`body` is sent as it is when it is bytes, else as JSON."""
        content = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        if self.key is not None:
            headers = {"Authorization": f"Bearer {self.key}"} | headers
        path, _, query = path.partition("?")
        response = _DJANGO.generic(method, path, content, content_type, headers=headers, QUERY_STRING=query)
        return Answer(response.status_code, dict(response.headers), response.content)

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: Any = None, **options: str) -> Answer:
        return self.request("POST", path, body, **options)

    def delete(self, path: str) -> Answer:
        return self.request("DELETE", path)
