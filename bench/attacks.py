"""What one client can do to the others: each attack for a while, beside a broker that trades in another instrument.

The broker places one `ioc` order after the other, with short pauses; how long it waits for the answers is compared with
how long it waits when nobody attacks. It and the attacker are processes of their own, so that they hold up each other
no more than strangers would.
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
AGAIN_SECONDS = 0.1
HEADER_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Attack:
    """So many connections that send the same over and over; or, with no requests, that are opened and left."""

    connections: int
    request: Callable[[str], bytes] | None  # by the attacker's key
    p99_at_most: float  # times what it is when nobody attacks


def http(method: str, path: str, key: str = "", body: Any = None) -> bytes:
    """A request as it goes over the wire."""
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
    """For far more than the attacker has."""
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
    """Each attack once; a fault is an order of the victim's that was not accepted."""
    seconds = run.lengths.attack
    with run.venue("attacks", processes=2) as (venue, _):
        keys = _prepare(venue)
        run.note("attacks", "nobody", beside(venue, keys, None, seconds))
        for name in ATTACKS:
            run.note("attacks", name, beside(venue, keys, name, seconds))


def _prepare(venue: Venue) -> Mapping[str, str]:
    """The victim's key and the attacker's, whose orders of one share make both sides of a book deep."""
    shares = [{"symbol": ATTACKED, "quantity": DEPTH}]
    attacker = {"broker_id": "attacker", "initial_cash": 210, "initial_holdings": shares}
    key = venue.operator().made("/brokers", attacker)["api_key"]
    api = Api(venue.port, key)
    for side, price in [("bid", 0.01), ("ask", 1.00)]:
        resting = order("attacker", ATTACKED, side, 1, price=price, time_in_force="gtc")
        for _ in range(DEPTH // BATCH):
            while api.call("POST", "/orders/batch", {"orders": [resting] * BATCH})[0] != 200:  # 429: it is too fast
                time.sleep(AGAIN_SECONDS)
    victim = venue.world["brokers"][0]
    return {"attacker": key, "victim": victim["key"], "victim_id": victim["id"]}


def beside(venue: Venue, keys: Mapping[str, str], attack: str | None, seconds: float) -> dict[str, Any]:
    """What the victim saw while the attack, if any, was going on."""
    told = {"port": venue.port, "keys": keys, "seconds": seconds}
    attacking = _start(told | {"attack": attack, "seconds": seconds + 5}) if attack else None
    try:
        if attacking is not None and attacking.stdout is not None and not attacking.stdout.readline():
            raise LocalError(f"The attack {attack} did not begin.")
        found: dict[str, Any] = json.loads(_start(told | {"attack": None}).communicate()[0])
    finally:
        if attacking is not None:
            attacking.kill()
            attacking.wait()
    return found


def _start(told: Mapping[str, Any]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bench.attacks", json.dumps(told)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603


# --- In a process of its own ----------------------------------------------------------------------------------------


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send a request and read all of its answer; its status."""
    writer.write(request)
    head = await reader.readuntil(HEADER_END)
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            await reader.readexactly(int(value))
    return int(head.split(b" ", 2)[1])


async def _attack(port: int, attack: Attack, key: str, seconds: float) -> None:
    """Begin, say so, and go on for so long."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with ExitStack() as opened:
        if attack.request is None:
            await _open_and_leave(port, min(attack.connections, limit - 100), opened)
        sys.stdout.write("begun\n")
        sys.stdout.flush()
        if attack.request is None:
            await asyncio.sleep(seconds)
        else:
            request, ends_at = attack.request(key), time.monotonic() + seconds
            await asyncio.gather(*[_ask_again(port, request, ends_at) for _ in range(attack.connections)])


async def _open_and_leave(port: int, how_many: int, opened: ExitStack) -> None:
    """A third of them silent, a third after a whole request, a third in the middle of one."""
    sent = [b"", http("GET", "/healthz"), http("POST", "/orders", body={})[:-1]]
    for number in range(how_many):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        opened.enter_context(closing(writer))
        writer.write(sent[number % 3])


async def _ask_again(port: int, request: bytes, ends_at: float) -> None:
    while time.monotonic() < ends_at:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(writer):
                while time.monotonic() < ends_at:
                    await _ask(reader, writer, request)
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(AGAIN_SECONDS)


async def _trade(port: int, keys: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Orders that meet nothing, one after the other over a few connections."""
    body = order(keys["victim_id"], TRADED, "bid", 1, price=0.01, time_in_force="ioc")
    request = http("POST", "/orders", keys["victim"], body)
    waited: list[float] = []
    statuses: Counter[str] = Counter()

    async def one_after_the_other() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        ends_at = time.monotonic() + seconds
        with closing(writer):
            while (asked_at := time.monotonic()) < ends_at:
                statuses[str(await _ask(reader, writer, request))] += 1
                waited.append(time.monotonic() - asked_at)
                await asyncio.sleep(PAUSE_SECONDS * 2 * random.random())  # noqa: S311 - a pause, no secret

    await asyncio.gather(*[one_after_the_other() for _ in range(VICTIMS)])
    return {
        "p50_ms": percentile(waited, 0.5),
        "p99_ms": percentile(waited, 0.99),
        "statuses": dict(statuses),
        "faults": sum(count for status, count in statuses.items() if status != "201"),
    }


def main(told: dict[str, Any]) -> None:
    if told["attack"] is not None:
        asyncio.run(_attack(told["port"], ATTACKS[told["attack"]], told["keys"]["attacker"], told["seconds"]))
    else:
        sys.stdout.write(json.dumps(asyncio.run(_trade(told["port"], told["keys"], told["seconds"]))))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
