"""Orders over HTTP: the clients and bodies that tests of the API share, and what every refusal must look like."""

from http import HTTPStatus
from typing import Any

import msgspec

from exchange import services
from exchange.rules import Scope
from tests import trading
from tests.exchange.client import Answer, Client
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
    """A new broker's client; it has ample cash and shares of AAPL, or what is said."""
    return Client(trading.broker(broker_id, **funds))


def operator() -> Client:
    return Client(services.issue_key(None, scopes=[Scope.OPERATOR], by=BY)[1])


def limit(side: str, quantity: int, price: str, **more: Any) -> dict[str, Any]:
    """The body of alice's gtc limit order, or of what `more` makes of it."""
    return LIMIT | {"side": side, "quantity": quantity, "price": price} | more


def market(side: str, quantity: int, **more: Any) -> dict[str, Any]:
    """The body of alice's market order."""
    return MARKET | {"side": side, "quantity": quantity} | more


def token(text: str) -> msgspec.Raw:
    """A JSON value, sent exactly as it is written here."""
    return msgspec.Raw(text.encode())


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


def placed(client: Client, body: Any) -> Any:
    """The answer to an order that must be new."""
    answer = client.post("/orders", body)
    assert answer.status == 201, answer
    return answer.body


def refused(client: Client, method: str, path: str, body: Any = None, **options: str) -> Answer:
    """Send what must be refused: a whole problem is the answer, and nothing was written."""
    before = trading.everything()
    answer = client.request(method, path, body, **options)
    assert 400 <= answer.status < 500, answer
    assert_problem(answer)
    assert trading.everything() == before
    return answer


def assert_problem(answer: Answer) -> None:
    """`answer` is `application/problem+json`, all of it."""
    body = answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert list(body) in (PROBLEM, [*PROBLEM, "errors"])
    assert (body["type"], body["status"]) == ("about:blank", answer.status)
    assert body["title"] == HTTPStatus(answer.status).phrase
    assert body["detail"]
    assert body["request_id"] == answer.headers["X-Request-Id"] != ""
    for error in body.get("errors", []):
        assert list(error) == ["field", "code", "detail"]
        assert error["code"]
        assert error["detail"]


def walk(client: Client, path: str, plural: str, limit: int) -> list[list[Any]]:
    """Every page of a list."""
    separator, pages = "&" if "?" in path else "?", []
    cursor: str | None = ""
    while cursor is not None:
        body = client.get(f"{path}{separator}limit={limit}" + (f"&cursor={cursor}" if cursor else "")).body
        assert list(body) == [plural, "next_cursor"]
        pages.append(body[plural])
        cursor = body["next_cursor"]
    return pages
