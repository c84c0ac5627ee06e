"""The loads of the open loop: `Mix` is `load/mix.lua` in Python, `Day` a trading day of a national exchange."""

import itertools
import json
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

RESTING, RESTING_MIN, CANCELS = 0.5, 40, 0.36
ORDERS_PER_SECOND, CANCELS_PER_SECOND, READS = 700, 245, 0.28  # a day; the reads as a share of all requests
EXPIRING = 0.3 / RESTING  # share of the resting orders; 30 % of all orders
EXPIRE_SECONDS = (0.5, 10.0)
READ_KINDS = {"price": 30, "book": 30, "own order": 20, "balance": 10, "orders": 5, "trades": 5}


class Mix:
    """Source of requests as bytes: two thirds new orders, built before they are due, and one third cancels."""

    def __init__(self, world: dict[str, Any], seed: int, dues: Sequence[float]) -> None:
        """Prepare a request for each of these times of the monotonic clock."""
        self._symbols, self._brokers = world["symbols"], world["brokers"]
        self._keys = {broker["id"]: broker["key"] for broker in self._brokers}
        self._random = random.Random(seed)  # noqa: S311 - orders, no secrets
        self._prefix, self._count = seed, 0
        self._resting: list[tuple[str, str, str | None]] = [  # with their keys and their ends
            (each["id"], self._keys[each["broker"]], None) for each in world.get("resting", [])
        ]
        self._clock_offset = time.time() - time.monotonic()
        self._prepared = deque(map(self._prepare, dues))

    def next(self) -> tuple[str, bytes]:
        """Return a cancel with some probability if enough orders rest, otherwise a new order."""
        if len(self._resting) > RESTING_MIN and self._random.random() < CANCELS:
            order_id, key, _ = self._pick()
            return "cancel", _request("DELETE", f"/orders/{order_id}", key)
        return self._prepared.popleft()

    def accepted(self, body: bytes) -> None:
        """Store a resting order, for a later cancel."""
        order = json.loads(body)
        if order["status"] in ("pending", "partially_filled"):
            self._resting.append((order["order_id"], self._keys[order["broker_id"]], order["expires_at"]))

    def _prepare(self, due: float) -> tuple[str, bytes]:
        broker = self._random.choice(self._brokers)
        order = self._order(broker["id"], self._symbol(), due + self._clock_offset)
        return "order", _request("POST", "/orders", broker["key"], json.dumps(order))

    def _pick(self) -> tuple[str, str, str | None]:
        """Remove and return one of the accepted orders that have not expired; an unknown one if there is none."""
        now = _time(time.time())
        while self._resting:
            index = self._random.randrange(len(self._resting))
            self._resting[index], self._resting[-1] = self._resting[-1], self._resting[index]
            order_id, key, expires_at = self._resting.pop()
            if expires_at is None or expires_at > now:
                return order_id, key, expires_at
        return str(uuid4()), self._brokers[0]["key"], None

    def _symbol(self) -> dict[str, Any]:
        symbol: dict[str, Any] = self._random.choice(self._symbols)
        return symbol

    def _order(self, broker_id: str, symbol: dict[str, Any], due: float) -> dict[str, Any]:
        better = self._random.choice((1, -1))
        mid = symbol["mid"] + math.floor(30 * math.sin(due / 10 + len(symbol["name"]) + symbol["mid"])) / 100
        order = {"broker_id": broker_id, "document_number": "12345678900", "symbol": symbol["name"]}
        order |= {"side": "bid" if better == 1 else "ask", "quantity": self._random.randint(10, 100)}
        draw = self._random.random()
        order |= self._life(due, rests=draw < RESTING) | {"price": f"{mid + better * 0.05:.2f}"}
        if draw < RESTING:
            order["price"] = f"{mid - better * self._random.randint(1, 20) / 100:.2f}"
            order["quantity"] *= 10
        elif draw < 0.92:  # crosses
            pass
        elif draw < 0.95:
            order = {name: order[name] for name in order.keys() - {"price", "time_in_force", "expires_at"}}
            order["type"] = "market"
        elif draw < 0.97:
            order.pop("expires_at", None)
            order["time_in_force"] = "ioc"
        elif draw < 0.985:
            order |= {"side": "ask", "quantity": 10**12}  # more shares than any broker has: 409
        else:
            order["price"] += "5"  # off the tick: 400
        if self._random.random() < 0.5:
            self._count += 1
            order["client_order_id"] = f"{self._prefix}-{self._count}"
        return order

    def _life(self, due: float, *, rests: bool) -> dict[str, str]:
        draw = self._random.random()
        if draw < 0.9:
            return {"time_in_force": "gtc" if draw < 0.7 else "day"}
        return {"expires_at": _time(due + 3_600)}


class Day(Mix):
    """Orders, cancels and reads of a trading day: popular symbols have most of them, and many orders expire soon."""

    def __init__(self, world: dict[str, Any], seed: int, dues: Sequence[float]) -> None:
        ranks = range(1, len(world["symbols"]) + 1)
        self._popularity = list(itertools.accumulate(1 / rank for rank in ranks))  # Zipf
        self._shares = list(itertools.accumulate(kind_rates(1).values()))
        self._kinds = list(kind_rates(1))
        super().__init__(world, seed, dues)

    def next(self) -> tuple[str, bytes]:
        kind, request = self._prepared.popleft()
        if request:
            return kind, request
        order_id, key, expires_at = self._pick()
        if kind == "own order":
            self._resting.append((order_id, key, expires_at))
        return kind, _request("GET" if kind == "own order" else "DELETE", f"/orders/{order_id}", key)

    def _prepare(self, due: float) -> tuple[str, bytes]:
        (kind,) = self._random.choices(self._kinds, cum_weights=self._shares)
        if kind == "order":
            return super()._prepare(due)
        if kind not in _PATHS:
            return kind, b""  # depends on the orders accepted until then
        broker = self._random.choice(self._brokers)
        path = _PATHS[kind].format(broker=broker["id"], symbol=self._symbol()["name"])
        return kind, _request("GET", path, broker["key"])

    def _symbol(self) -> dict[str, Any]:
        (symbol,) = self._random.choices(self._symbols, cum_weights=self._popularity)
        found: dict[str, Any] = symbol
        return found

    def _life(self, due: float, *, rests: bool) -> dict[str, str]:
        if rests and self._random.random() < EXPIRING:
            return {"expires_at": _time(due + self._random.uniform(*EXPIRE_SECONDS))}
        return {"time_in_force": "gtc"}


MIXES: dict[str, Callable[[dict[str, Any], int, Sequence[float]], Mix]] = {"mix": Mix, "day": Day}
_PATHS = {
    "price": "/stocks/{symbol}/price",
    "book": "/stocks/{symbol}/book",
    "balance": "/brokers/{broker}/balance",
    "orders": "/brokers/{broker}/orders",
    "trades": "/brokers/{broker}/trades",
}


def kind_rates(load: float) -> dict[str, float]:
    """Return the requests per second of each kind, at this multiple of a day's load."""
    reads = (ORDERS_PER_SECOND + CANCELS_PER_SECOND) * READS / (1 - READS)
    rates = {"order": float(ORDERS_PER_SECOND), "cancel": float(CANCELS_PER_SECOND)}
    rates |= {kind: reads * share / sum(READ_KINDS.values()) for kind, share in READ_KINDS.items()}
    return {kind: load * rate for kind, rate in rates.items()}


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


def _request(method: str, path: str, key: str, body: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n{body}".encode()
