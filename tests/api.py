"""Shared clients, bodies and assertions for tests of orders over HTTP."""

from http import HTTPStatus
from typing import Any

import msgspec

from exchange import services
from exchange.rules import Scope
from tests import trading
from tests.exchange.client import ApiResponse, Client
from tests.trading import BY

LIMIT = {
    "broker_id": "alice",
    "document_number": "12345678900",
    "side": "bid",
    "symbol": "AAPL",
    "price": "10",
    "quantity": 5,
    "time_in_force": "gtc",
}
MARKET = {name: LIMIT[name] for name in ("broker_id", "document_number", "side", "symbol", "quantity")} | {
    "type": "market"
}
LATER = "2099-01-01T00:00:00Z"
PROBLEM = ["type", "title", "status", "detail", "code", "request_id"]


def broker(broker_id: str, **funds: Any) -> Client:
    """Create a broker, by default with ample cash and shares of AAPL, and return its client."""
    return Client(trading.broker(broker_id, **funds))


def operator() -> Client:
    return Client(services.issue_key(None, scopes=[Scope.OPERATOR], by=BY)[1])


def limit(side: str, quantity: int, price: str, **more: Any) -> dict[str, Any]:
    """Return the body of a gtc limit order of alice, with the fields of `more`."""
    return LIMIT | {"side": side, "quantity": quantity, "price": price} | more


def market(side: str, quantity: int, **more: Any) -> dict[str, Any]:
    """Return the body of a market order of alice."""
    return MARKET | {"side": side, "quantity": quantity} | more


def token(text: str) -> msgspec.Raw:
    """Return a JSON value that is sent exactly as it is written."""
    return msgspec.Raw(text.encode())


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


def place_order(client: Client, body: Any) -> Any:
    """Place an order that must be accepted, and return the body of the response."""
    response = client.post("/orders", body)
    assert response.status == 201, response
    return response.body


def assert_rejected(client: Client, method: str, path: str, body: Any = None, **options: str) -> ApiResponse:
    """Send a request that must be rejected with a problem, assert that nothing was written, return the response."""
    before = trading.snapshot()
    response = client.request(method, path, body, **options)
    assert 400 <= response.status < 500, response
    assert_problem(response)
    assert trading.snapshot() == before
    return response


def assert_problem(response: ApiResponse) -> None:
    """Assert that the response is a complete `application/problem+json`."""
    body = response.body
    assert response.headers["Content-Type"] == "application/problem+json"
    assert list(body) in (PROBLEM, [*PROBLEM, "errors"])
    assert (body["type"], body["status"]) == ("about:blank", response.status)
    assert body["title"] == HTTPStatus(response.status).phrase
    assert body["detail"]
    assert body["request_id"] == response.headers["X-Request-Id"] != ""
    for error in body.get("errors", []):
        assert list(error) == ["field", "code", "detail"]
        assert error["code"]
        assert error["detail"]


def all_pages(client: Client, path: str, plural: str, limit: int) -> list[list[Any]]:
    """Return every page of a list."""
    separator, pages = "&" if "?" in path else "?", []
    cursor: str | None = ""
    while cursor is not None:
        body = client.get(f"{path}{separator}limit={limit}" + (f"&cursor={cursor}" if cursor else "")).body
        assert list(body) == [plural, "next_cursor"]
        pages.append(body[plural])
        cursor = body["next_cursor"]
    return pages
