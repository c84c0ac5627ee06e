"""A small market for screenshots, created over REST, with data for every page of the back office."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from bench.venue import Api, Venue, manage

INSTRUMENTS = {  # with their starting prices
    "AAPL": ("Apple Inc.", 148.0),
    "GOOG": ("Alphabet Inc.", 172.5),
    "MSFT": ("Microsoft Corporation", 415.2),
    "PETR4": ("Petróleo Brasileiro S.A.", 37.4),
    "VALE3": ("Vale S.A.", 61.9),
    "NVDA": ("NVIDIA Corporation", 121.7),
}
HALTED, QUIET, SUSPENDED = "NVDA", "VALE3", "cedar"
BROKERS = ["aurora", "banyan", SUSPENDED, "delta-1"]
EVENTS = ["trade.executed", "order.expired", "order.cancelled"]
CASH, SHARES = 50_000_000, 1_000_000
ORDERS = 500  # before the first screenshot
PAUSE_SECONDS = 0.15  # between later orders

# Bars of the trading day so far, minute by minute.
_DAY = """
INSERT INTO orders_bar (minute, symbol, orders, trades, volume, value, open, high, low, close)
SELECT minute, symbol, 5 + (30 * random())::int, trades, volume, volume * price, price - step, price + 2 * abs(step),
       price - 2 * abs(step), price
FROM (
  SELECT minute, symbol, (random() * 12)::int AS trades, 100 * (1 + (random() * 40)::int) AS volume,
         round((%(price)s * (1 + 0.01 * sin(extract(epoch FROM minute) / 4000))
                + %(price)s * 0.001 * (random() - 0.5))::numeric, 2) AS price,
         round((%(price)s * 0.0005 * (random() - 0.5))::numeric, 2) AS step
  FROM generate_series(date_trunc('minute', now() - interval '5 hours'), now() - interval '3 minutes', '1 minute')
         AS minute, (SELECT %(symbol)s AS symbol) AS listed
) AS drawn
ON CONFLICT DO NOTHING
"""


@dataclass
class DemoMarket:
    """The clients of the market and its current prices."""

    operator: Api
    brokers: dict[str, Api]
    prices: dict[str, float] = field(
        default_factory=lambda: {symbol: price for symbol, (_, price) in INSTRUMENTS.items()}
    )
    dice: random.Random = field(default_factory=lambda: random.Random(5))

    def order(self, symbol: str) -> str | None:
        """Place a random order. Return its ID if it was accepted."""
        dice = self.dice
        price = self.prices[symbol] = self.prices[symbol] * (1 + dice.gauss(0, 0.0004))
        broker_id, side = dice.choice(list(self.brokers)), dice.choice(["bid", "ask"])
        away = dice.choice([-0.001, 0.0005, 0.001, 0.002, 0.004, 0.006]) * (1 if side == "ask" else -1)
        body: dict[str, Any] = {
            "broker_id": broker_id,
            "document_number": f"{dice.randrange(10**11):011}",
            "side": side,
            "symbol": symbol,
            "quantity": 100 * dice.randint(1, 20),
            "client_order_id": f"{broker_id}-{dice.randrange(10**9)}",
        }
        if dice.random() < 0.15:
            body |= {"type": "market"}
        else:
            body |= {"price": f"{price * (1 + away):.2f}", "time_in_force": dice.choice(["gtc", "gtc", "day", "ioc"])}
        if body.get("time_in_force") == "gtc" and dice.random() < 0.1:
            soon = datetime.now(UTC) + timedelta(seconds=dice.choice([3, 3_600]))
            body |= {"time_in_force": "gtd", "expires_at": soon.isoformat()}
        _, answer = self.brokers[broker_id].call("POST", "/orders", body)
        order_id: str | None = answer.get("order_id")
        return order_id

    def trade(self, count: int, symbols: list[str]) -> None:
        """Place orders and cancel one in ten."""
        for _ in range(count):
            order_id = self.order(self.dice.choice(symbols))
            if order_id and self.dice.random() < 0.1:
                next(iter(self.brokers.values())).call("DELETE", f"/orders/{order_id}")

    @contextmanager
    def trading(self) -> Iterator[None]:
        """Keep trading in a thread, except in halted and quiet instruments."""
        symbols = [symbol for symbol in INSTRUMENTS if symbol not in (HALTED, QUIET)]
        is_over = threading.Event()

        def go_on() -> None:
            while not is_over.wait(PAUSE_SECONDS):
                self.trade(1, symbols)

        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def create(venue: Venue) -> DemoMarket:
    """Create the market on an empty venue."""
    operator = Api(venue.port, manage(venue.env, "create_operator_key"))
    for symbol, (name, _) in INSTRUMENTS.items():
        operator.create("/stocks", {"symbol": symbol, "name": name})
    holdings = [{"symbol": symbol, "quantity": SHARES} for symbol in INSTRUMENTS]
    keys = {
        broker_id: operator.create(
            "/brokers", {"broker_id": broker_id, "initial_cash": CASH, "initial_holdings": holdings}
        )["api_key"]
        for broker_id in BROKERS
    }
    market = DemoMarket(operator, {broker_id: Api(venue.port, key) for broker_id, key in keys.items()})
    _subscribe(market, f"http://127.0.0.1:{venue.servers.receiver_port}")
    market.trade(ORDERS, list(INSTRUMENTS))
    _perform_operator_actions(market)
    _insert_past_bars(venue, market)
    manage(venue.env, "reconcile")
    return market


def _subscribe(market: DemoMarket, receiver: str) -> None:
    """Subscribe three brokers. The endpoint of the third does not exist."""
    addresses = {"aurora": f"{receiver}/aurora", "banyan": f"{receiver}/hooks", "delta-1": "http://127.0.0.1:9/hooks"}
    for broker_id, url in addresses.items():
        body = {"broker_id": broker_id, "url": url, "events": EVENTS}
        market.brokers[broker_id].create("/webhooks", body)


def _perform_operator_actions(market: DemoMarket) -> None:
    """Perform the operator actions of a day."""
    made = market.operator.create
    made("/brokers/aurora/transfers", {"reference": "wire-4711", "cash": 250_000, "reason": "wire of the morning"})
    shares = {"reference": "custody-12", "symbol": "AAPL", "quantity": -500, "reason": "to custody"}
    made("/brokers/banyan/transfers", shares)
    made("/brokers/aurora/keys", {"name": "reporting", "scopes": ["read"]})
    made(f"/brokers/{SUSPENDED}/suspend", {"reason": "margin call not met", "cancel_orders": True})
    made("/stocks", {"symbol": "ITUB4", "name": "Itaú Unibanco Holding S.A."})
    made("/stocks/GOOG/halt", {"reason": "news pending"})
    made("/stocks/GOOG/resume", {"reason": "news out"})
    made(f"/stocks/{HALTED}/halt", {"reason": "price moved 12 % in a minute"})
    del market.brokers[SUSPENDED]


def _insert_past_bars(venue: Venue, market: DemoMarket) -> None:
    with venue.servers.connect(venue.database) as connection:
        for symbol, price in market.prices.items():
            if symbol != QUIET:
                connection.execute(_DAY, {"symbol": symbol, "price": price})
