"""What the replay needs of a running exchange, over HTTP: it knows of it what a broker knows."""

import http.client
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from orders.enums import Side, TimeInForce
from tools.replay.files import FILE_LEVELS, Book, Level, ReplayError

HTTP_TIMEOUT_SECONDS = 20
TICK_SIZE = "0.0001"  # the unit of the file's prices: each of them is on tick
INITIAL_CASH = 10**15
INITIAL_SHARES = 10**12
DOCUMENT_NUMBER = "00000000000"


@dataclass(frozen=True, slots=True)
class Account:
    """A broker and its key."""

    broker_id: str
    key: str


@dataclass(frozen=True, slots=True)
class Placed:
    """What the exchange answered to a new order."""

    order_id: str
    filled_quantity: int
    remaining_quantity: int
    trades: int


class Exchange:
    """What the replay needs of a running exchange, over one connection that is kept open."""

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

    def open_account(self, broker_id: str, symbol: str) -> Account:
        holdings = [{"symbol": symbol, "quantity": INITIAL_SHARES}]
        broker = {"broker_id": broker_id, "initial_cash": INITIAL_CASH, "initial_holdings": holdings}
        return Account(broker_id, self._call(self._operator_key, "POST", "/brokers", broker)["api_key"])

    def place(self, account: Account, symbol: str, side: Side, level: Level, time_in_force: TimeInForce) -> Placed:
        order = {
            "type": "limit",
            "broker_id": account.broker_id,
            "document_number": DOCUMENT_NUMBER,
            "side": side,
            "symbol": symbol,
            "price": format(level.price, "f"),
            "quantity": level.quantity,
            "time_in_force": time_in_force,
        }
        answer = self._call(account.key, "POST", "/orders", order)
        return Placed(
            order_id=answer["order_id"],
            filled_quantity=answer["filled_quantity"],
            remaining_quantity=answer["remaining_quantity"],
            trades=len(answer["trades"]),
        )

    def cancel(self, account: Account, order_id: str) -> int:
        """Cancel the order and return how much of it was left: 0 when it was done already."""
        answer = self._call(account.key, "DELETE", f"/orders/{order_id}", accept=("order_not_cancellable",))
        remaining: int = answer.get("remaining_quantity", 0)
        return remaining

    def book(self, account: Account, symbol: str) -> Book:
        answer = self._call(account.key, "GET", f"/stocks/{symbol}/book?depth={FILE_LEVELS}")
        bids, asks = (
            tuple(Level(Decimal(level["price"]), level["total_quantity"]) for level in answer[side])
            for side in ("bids", "asks")
        )
        return Book(bids, asks)

    def _call(
        self, key: str, method: str, path: str, content: dict[str, Any] | None = None, accept: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The answer to one request; a refusal ends the replay, unless its code is one of `accept`."""
        status, answer = self._exchange(key, method, path, content)
        if status >= 300 and answer.get("code") not in accept:
            code, detail = answer.get("code", "without a code"), answer.get("detail", "no detail.")
            raise ReplayError(f"{method} {path} was refused ({status} {code}): {detail}")
        return answer

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
            answer = json.loads(received, parse_float=Decimal)  # money never passes through a binary float
        except ValueError as error:
            raise ReplayError(f"What answers at {self._base_url} is not the exchange.") from error
        return response.status, answer
