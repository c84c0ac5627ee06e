"""HTTP client of a running exchange, with the requests that the replay needs."""

import http.client
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from orders.enums import Side, TimeInForce
from tools.replay.files import FILE_LEVELS, Book, BookLevel, ReplayError

HTTP_TIMEOUT_SECONDS = 20
TICK_SIZE = "0.0001"  # the unit of the file's prices, so that all of them are on tick
INITIAL_CASH = 10**15
INITIAL_SHARES = 10**12
DOCUMENT_NUMBER = "00000000000"


@dataclass(frozen=True, slots=True)
class BrokerCredentials:
    """A broker's id and key."""

    broker_id: str
    key: str


@dataclass(frozen=True, slots=True)
class PlacedOrder:
    """The parts of the response to a new order that the replay uses."""

    order_id: str
    filled_quantity: int
    remaining_quantity: int
    trades: int


class ExchangeClient:
    """A running exchange, over one persistent connection."""

    def __init__(self, base_url: str, operator_key: str) -> None:
        self._base_url = base_url
        self._operator_key = operator_key
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or url.hostname is None:
            raise ReplayError(f"{base_url!r} is not the URL of an exchange.")
        self._path = url.path.rstrip("/")
        connection = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._connection = connection(url.hostname, url.port, timeout=HTTP_TIMEOUT_SECONDS)

    def close(self) -> None:
        self._connection.close()

    def list_instrument(self, symbol: str) -> None:
        instrument = {"symbol": symbol, "name": "Replayed order flow", "tick_size": TICK_SIZE}
        self._call(self._operator_key, "POST", "/stocks", instrument)

    def open_account(self, broker_id: str, symbol: str) -> BrokerCredentials:
        holdings = [{"symbol": symbol, "quantity": INITIAL_SHARES}]
        broker = {"broker_id": broker_id, "initial_cash": INITIAL_CASH, "initial_holdings": holdings}
        return BrokerCredentials(broker_id, self._call(self._operator_key, "POST", "/brokers", broker)["api_key"])

    def place(
        self, credentials: BrokerCredentials, symbol: str, side: Side, level: BookLevel, time_in_force: TimeInForce
    ) -> PlacedOrder:
        order = {
            "type": "limit",
            "broker_id": credentials.broker_id,
            "document_number": DOCUMENT_NUMBER,
            "side": side,
            "symbol": symbol,
            "price": format(level.price, "f"),
            "quantity": level.quantity,
            "time_in_force": time_in_force,
        }
        placed = self._call(credentials.key, "POST", "/orders", order)
        return PlacedOrder(
            order_id=placed["order_id"],
            filled_quantity=placed["filled_quantity"],
            remaining_quantity=placed["remaining_quantity"],
            trades=len(placed["trades"]),
        )

    def cancel(self, credentials: BrokerCredentials, order_id: str) -> int:
        """Cancel the order and return its remaining quantity, or 0 if it was final already."""
        cancelled = self._call(credentials.key, "DELETE", f"/orders/{order_id}", accept=("order_not_cancellable",))
        remaining: int = cancelled.get("remaining_quantity", 0)
        return remaining

    def book(self, credentials: BrokerCredentials, symbol: str) -> Book:
        book = self._call(credentials.key, "GET", f"/stocks/{symbol}/book?depth={FILE_LEVELS}")
        bids, asks = (
            tuple(BookLevel(Decimal(level["price"]), level["total_quantity"]) for level in book[side])
            for side in ("bids", "asks")
        )
        return Book(bids, asks)

    def _call(
        self, key: str, method: str, path: str, content: dict[str, Any] | None = None, accept: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Send one request and return the body of its response; an error outside `accept` ends the replay."""
        status, body = self._exchange(key, method, path, content)
        if status >= 300 and body.get("code") not in accept:
            code, detail = body.get("code", "without a code"), body.get("detail", "no detail.")
            raise ReplayError(f"{method} {path} was rejected ({status} {code}): {detail}")
        return body

    def _exchange(self, key: str, method: str, path: str, content: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {key}"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        sent = None if content is None else json.dumps(content).encode()
        try:
            self._connection.request(method, self._path + path, sent, headers)
            response = self._connection.getresponse()
            received = response.read()
        except TimeoutError as error:
            seconds = HTTP_TIMEOUT_SECONDS
            raise ReplayError(f"The exchange at {self._base_url} did not answer within {seconds} seconds.") from error
        except (OSError, http.client.HTTPException) as error:
            raise ReplayError(f"No exchange can be reached at {self._base_url}: start it with `make run`.") from error
        try:
            body = json.loads(received, parse_float=Decimal)  # money never passes through a binary float
        except ValueError as error:
            raise ReplayError(f"The server at {self._base_url} is not the exchange.") from error
        return response.status, body
