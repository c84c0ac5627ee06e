"""Cancels and reads (of an order, a book, a balance), each kind separately with 16 clients."""

import http.client
import itertools
from typing import Any

from bench import wrk
from bench.run import Run
from bench.venue import Api, Venue
from config.local.processes import LocalError

CLIENTS = 16
BATCH = 500


def measure(run: Run) -> None:
    with run.venue("requests", processes=run.best_processes()) as (venue, _):
        placed = _place(venue, 2_000 if run.quick else 15_000)
        brokers, symbols = venue.world["brokers"], venue.world["symbols"]
        lists = {
            "GET order": [_get(f"/orders/{each['path']}", each["key"]) for each in placed],
            "GET book": [  # with the keys of all brokers, because each key has a rate limit
                _get(f"/stocks/{symbol['name']}/book", broker["key"])
                for symbol, broker in itertools.product(symbols, brokers)
            ],
            "GET balance": [_get(f"/brokers/{each['id']}/balance", each["key"]) for each in brokers],
            "DELETE order": [{**each, "method": "DELETE", "path": f"/orders/{each['path']}"} for each in placed],
        }
        for name, requests in lists.items():
            often = "once" if name.startswith("DELETE") else "again"
            arguments = [wrk.write_lua("list", requests), often]
            found = wrk.run("list.lua", venue.url, arguments, clients=CLIENTS, seconds=run.lengths.cell)
            run.record("requests", name, found)


def _get(path: str, key: str) -> dict[str, Any]:
    return {"method": "GET", "path": path, "key": key}


def _place(venue: Venue, count: int) -> list[dict[str, Any]]:
    """Place resting bids over all brokers and books, and return their ids with their brokers' keys."""
    placed = []
    api = Api(venue.port)
    symbols, brokers = venue.world["symbols"], venue.world["brokers"]
    for first in range(0, count, BATCH):
        broker = brokers[first // BATCH % len(brokers)]
        api.key = broker["key"]
        orders = [_bid(broker["id"], symbols[number % len(symbols)]) for number in range(min(BATCH, count - first))]
        status, response = api.call("POST", "/orders/batch", {"orders": orders})
        if status != http.client.OK:
            raise LocalError(f"POST /orders/batch answered {status}: {response}")
        placed += [{"path": each["order"]["order_id"], "key": broker["key"]} for each in response["results"]]
    return placed


def _bid(broker_id: str, symbol: dict[str, Any]) -> dict[str, Any]:
    fields = {"side": "bid", "price": round(symbol["mid"] / 2, 2), "quantity": 10, "time_in_force": "gtc"}
    return fields | {"broker_id": broker_id, "document_number": "12345678900", "symbol": symbol["name"]}
