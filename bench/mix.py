"""The load of `load/mix.lua` in Python: about two thirds new orders, one third cancels."""

import json
import math
import random
import time
from datetime import UTC, datetime, timedelta
from typing import Any

RESTING_MIN, CANCELS = 40, 0.36
HEAD = "{} {} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n"


class Mix:
    """Source of requests as bytes, which depend on the orders accepted so far."""

    def __init__(self, world: dict[str, Any], seed: int) -> None:
        self._symbols, self._brokers = world["symbols"], world["brokers"]
        self._keys = {broker["id"]: broker["key"] for broker in self._brokers}
        self._random = random.Random(seed)  # noqa: S311 - orders, no secrets
        self._prefix, self._count = seed, 0
        self._resting: list[tuple[str, str]] = []

    def next(self) -> bytes:
        """Return a cancel with some probability if enough orders rest, otherwise a new order."""
        if len(self._resting) > RESTING_MIN and self._random.random() < CANCELS:
            index = self._random.randrange(len(self._resting))
            self._resting[index], self._resting[-1] = self._resting[-1], self._resting[index]
            order_id, key = self._resting.pop()
            return (HEAD.format("DELETE", f"/orders/{order_id}", key) + "\r\n").encode()
        broker = self._random.choice(self._brokers)
        body = json.dumps(self._order(broker["id"]))
        return f"{HEAD.format('POST', '/orders', broker['key'])}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    def accepted(self, body: bytes) -> None:
        """Store a resting order, for a later cancel."""
        order = json.loads(body)
        if order["status"] in ("pending", "partially_filled"):
            self._resting.append((order["order_id"], self._keys[order["broker_id"]]))

    def _order(self, broker_id: str) -> dict[str, Any]:
        symbol, better = self._random.choice(self._symbols), self._random.choice((1, -1))
        mid = symbol["mid"] + math.floor(30 * math.sin(time.time() / 10 + len(symbol["name"]) + symbol["mid"])) / 100
        order = {"broker_id": broker_id, "document_number": "12345678900", "symbol": symbol["name"]}
        order |= {"side": "bid" if better == 1 else "ask", "quantity": self._random.randint(10, 100)}
        order |= self._life() | {"price": f"{mid + better * 0.05:.2f}"}
        draw = self._random.random()
        if draw < 0.5:  # rests
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

    def _life(self) -> dict[str, str]:
        draw = self._random.random()
        if draw < 0.9:
            return {"time_in_force": "gtc" if draw < 0.7 else "day"}
        return {"expires_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="seconds")}
