"""The harm that one client can do to others: attacks, each with a broker that trades in another instrument.

The broker places one `ioc` order after the other, with short pauses. Its latency is compared with its latency without
an attack. The broker and the attacker are separate processes, so that they do not slow each other in the client.
"""

import asyncio
import json
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from bench.generator import percentile
from bench.run import Run
from bench.venue import ROOT, SYMBOLS, Api, Venue
from config.local.processes import LocalError

ATTACKED, TRADED = SYMBOLS[0], SYMBOLS[1]
IDLE_CONNECTIONS, DEPTH, UNKNOWN_FIELDS = 10_000, 20_500, 100_000
BATCH = 500
VICTIMS, PAUSE_SECONDS = 2, 0.005
RETRY_SECONDS = 0.1
HEADER_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Attack:
    """Connections that repeat a request, or idle connections if there is no request."""

    connections: int
    request: Callable[[str], bytes] | None  # takes the attacker's key
    p99_at_most: float  # the victim's, as a multiple of its p99 without an attack


def http(method: str, path: str, key: str = "", body: Any = None) -> bytes:
    """Return the bytes of a request."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"] if body is not None else []
    return "\r\n".join(lines).encode() + HEADER_END + content


def order(broker_id: str, symbol: str, side: str, quantity: int, **more: Any) -> dict[str, Any]:
    return {"broker_id": broker_id, "document_number": "12345678900", "symbol": symbol, "side": side} | {
        "quantity": quantity,
        **more,
    }


def _market_orders(side: str) -> Callable[[str], bytes]:
    """Return a request of market orders for far more than the attacker has."""
    batch = {"orders": [order("attacker", ATTACKED, side, 10**12, type="market") for _ in range(25)]}
    return lambda key: http("POST", "/orders/batch", key, batch)


def _unknown_fields(key: str) -> bytes:
    return http("POST", "/orders/batch", key, {f"f{number}": 0 for number in range(UNKNOWN_FIELDS)})


ATTACKS = {
    "silent connections": Attack(IDLE_CONNECTIONS, None, 2),
    "asks without shares": Attack(2, _market_orders("ask"), 3),
    "market bids without cash": Attack(2, _market_orders("bid"), 3),
    "unknown fields": Attack(16, _unknown_fields, 2),
    "quotes": Attack(30, lambda key: http("GET", f"/stocks/{ATTACKED}/quote?side=ask&quantity={10**12}", key), 3),
    "readiness": Attack(64, lambda _: http("GET", "/readyz"), 3),
    "invalid keys": Attack(64, lambda _: http("GET", "/stocks", f"brs_{'0' * 12}_{'0' * 64}"), 3),
}


def measure(run: Run) -> None:
    """Run each attack once; each of the victim's orders that is not accepted is a fault."""
    seconds = run.lengths.attack
    with run.venue("attacks", processes=2) as (venue, _):
        keys = _prepare(venue)
        run.record("attacks", "no attack", measure_victim(venue, keys, None, seconds))
        for name in ATTACKS:
            run.record("attacks", name, measure_victim(venue, keys, name, seconds))


def _prepare(venue: Venue) -> Mapping[str, str]:
    """Return the keys of the victim and the attacker, and fill a book with the attacker's orders of one share."""
    shares = [{"symbol": ATTACKED, "quantity": DEPTH}]
    attacker = {"broker_id": "attacker", "initial_cash": 210, "initial_holdings": shares}
    key = venue.operator().create("/brokers", attacker)["api_key"]
    api = Api(venue.port, key)
    for side, price in [("bid", 0.01), ("ask", 1.00)]:
        resting = order("attacker", ATTACKED, side, 1, price=price, time_in_force="gtc")
        for _ in range(DEPTH // BATCH):
            while api.call("POST", "/orders/batch", {"orders": [resting] * BATCH})[0] != 200:  # 429: rate limit
                time.sleep(RETRY_SECONDS)
    victim = venue.world["brokers"][0]
    return {"attacker": key, "victim": victim["key"], "victim_id": victim["id"]}


def measure_victim(venue: Venue, keys: Mapping[str, str], attack: str | None, seconds: float) -> dict[str, Any]:
    """Measure the victim's orders during the attack, if any."""
    arguments = {"port": venue.port, "keys": keys, "seconds": seconds}
    attacking = _start(arguments | {"attack": attack, "seconds": seconds + 5}) if attack else None
    try:
        if attacking is not None and attacking.stdout is not None and not attacking.stdout.readline():
            raise LocalError(f"The attack {attack} did not begin.")
        found: dict[str, Any] = json.loads(_start(arguments | {"attack": None}).communicate()[0])
    finally:
        if attacking is not None:
            attacking.kill()
            attacking.wait()
    return found


def _start(arguments: Mapping[str, Any]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bench.attacks", json.dumps(arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603


# --- The process of the attacker or the victim ----------------------------------------------------------------------


async def _send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send a request, read the whole response and return its status."""
    writer.write(request)
    head = await reader.readuntil(HEADER_END)
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            await reader.readexactly(int(value))
    return int(head.split(b" ", 2)[1])


async def _attack(port: int, attack: Attack, key: str, seconds: float) -> None:
    """Begin the attack, print a line, and continue for `seconds`."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with ExitStack() as opened:
        if attack.request is None:
            await _open_idle_connections(port, min(attack.connections, limit - 100), opened)
        sys.stdout.write("begun\n")
        sys.stdout.flush()
        if attack.request is None:
            await asyncio.sleep(seconds)
        else:
            request, ends_at = attack.request(key), time.monotonic() + seconds
            await asyncio.gather(*[_repeat(port, request, ends_at) for _ in range(attack.connections)])


async def _open_idle_connections(port: int, how_many: int, opened: ExitStack) -> None:
    """Open idle connections: a third without a request, a third after a request, a third within one."""
    sent = [b"", http("GET", "/healthz"), http("POST", "/orders", body={})[:-1]]
    for number in range(how_many):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        opened.enter_context(closing(writer))
        writer.write(sent[number % 3])


async def _repeat(port: int, request: bytes, ends_at: float) -> None:
    while time.monotonic() < ends_at:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(writer):
                while time.monotonic() < ends_at:
                    await _send(reader, writer, request)
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(RETRY_SECONDS)


async def _trade(port: int, keys: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Place orders that match nothing, one after the other over a few connections."""
    body = order(keys["victim_id"], TRADED, "bid", 1, price=0.01, time_in_force="ioc")
    request = http("POST", "/orders", keys["victim"], body)
    waited: list[float] = []
    statuses: Counter[str] = Counter()

    async def one_after_the_other() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        ends_at = time.monotonic() + seconds
        with closing(writer):
            while (sent_at := time.monotonic()) < ends_at:
                statuses[str(await _send(reader, writer, request))] += 1
                waited.append(time.monotonic() - sent_at)
                await asyncio.sleep(PAUSE_SECONDS * 2 * random.random())  # noqa: S311 - a pause, no secret

    await asyncio.gather(*[one_after_the_other() for _ in range(VICTIMS)])
    return {
        "p50_ms": percentile(waited, 0.5),
        "p99_ms": percentile(waited, 0.99),
        "statuses": dict(statuses),
        "faults": sum(count for status, count in statuses.items() if status != "201"),
    }


def main(arguments: dict[str, Any]) -> None:
    if arguments["attack"] is not None:
        asyncio.run(
            _attack(
                arguments["port"], ATTACKS[arguments["attack"]], arguments["keys"]["attacker"], arguments["seconds"]
            )
        )
    else:
        sys.stdout.write(json.dumps(asyncio.run(_trade(arguments["port"], arguments["keys"], arguments["seconds"]))))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
