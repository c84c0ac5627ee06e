"""How tests speak to the exchange: JSON bytes in, an answer with its exact numbers out."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from django.test import Client as DjangoClient

_DECODER = msgspec.json.Decoder(float_hook=Decimal)
_DJANGO = DjangoClient(raise_request_exception=False)  # one for all: each new one builds the middleware again


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
