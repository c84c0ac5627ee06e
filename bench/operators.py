"""Latency of a broker's orders while 45 clients try to log in and 8 export, and without them.

Each login uses another name and address, so that none is locked out and each password is hashed. The clients run in a
separate process at the lowest priority, so that their own CPU time does not slow the exchange.
"""

import http.client
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode

from bench import attacks
from bench.run import Run
from bench.venue import ROOT, Venue, manage
from config.local.processes import LocalError

LOGINS, EXPORTS = 45, 8
TRADES = 300_000
SETTLE_SECONDS = 2.0
RESPONSE_TIMEOUT_SECONDS = 120.0
TOKEN = "a" * 32  # CSRF token of the form and of the cookie
EXPORT = "/admin/orders/trade/export/"
IDLE, OPERATORS = "no operators", "logins and exports"

# Trades of brokers that do not exist; they are deleted before the run is reconciled.
_ADD_TRADES = """
INSERT INTO orders_trade (
  id, symbol, price, quantity, taker_side, bid_order_id, ask_order_id, bid_broker_id, ask_broker_id, executed_at)
SELECT uuidv7(n * interval '1 second' - interval '10 days'), 'SYM0', 10, 1, 'bid', uuidv7(), uuidv7(),
       'nobody', 'nobody', now() - interval '10 days' + n * interval '1 second'
FROM generate_series(1, %s) AS n
"""
_REMOVE_TRADES = "DELETE FROM orders_trade WHERE bid_broker_id = 'nobody'"


def measure(run: Run) -> None:
    """Alternate both for several rounds; each order that is not accepted is a fault."""
    with run.venue("operators", processes=2, has_backoffice=True) as (venue, _):
        password = secrets.token_urlsafe()
        env = {**venue.env, "DJANGO_SUPERUSER_PASSWORD": password}
        manage(env, "createsuperuser", "--no-input", "--username", "root", "--email", "root@localhost")
        victim = venue.world["brokers"][0]
        keys = {"victim": victim["key"], "victim_id": victim["id"]}
        with venue.servers.connect(venue.database) as connection:
            connection.execute(_ADD_TRADES, [TRADES])
            rounds: dict[str, list[dict[str, Any]]] = {IDLE: [], OPERATORS: []}
            for _ in range(run.lengths.rounds):
                rounds[IDLE].append(attacks.measure_victim(venue, keys, None, run.lengths.attack))
                with _operators(venue, password):
                    rounds[OPERATORS].append(attacks.measure_victim(venue, keys, None, run.lengths.attack))
            connection.execute(_REMOVE_TRADES)
    for name, every in rounds.items():
        median = sorted(every, key=lambda found: float(found["p99_ms"]))[(len(every) - 1) // 2]
        faults = sum(found["faults"] for found in every)
        run.record(
            "operators", name, median | {"faults": faults, "rounds": [{"p99_ms": each["p99_ms"]} for each in every]}
        )


@contextmanager
def _operators(venue: Venue, password: str) -> Iterator[None]:
    """Run all clients in a separate process."""
    arguments = json.dumps({"port": venue.backoffice_port, "password": password})
    command = [sys.executable, "-m", "bench.operators", arguments]
    clients = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own program
    try:
        if clients.stdout is None or not clients.stdout.readline():
            raise LocalError("The operators did not begin.")
        time.sleep(SETTLE_SECONDS)
        yield
        if clients.poll() is not None:
            raise LocalError("The operators ended too early.")
    finally:
        clients.kill()
        clients.wait()


# --- The process of the clients -------------------------------------------------------------------------------------


def _log_in(port: int, name: str, password: str) -> http.client.HTTPResponse:
    address = ".".join(str(secrets.randbelow(254) + 1) for _ in range(4))
    form = urlencode({"username": name, "password": password, "csrfmiddlewaretoken": TOKEN})
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": f"csrftoken={TOKEN}"}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=RESPONSE_TIMEOUT_SECONDS)) as client:
        client.request("POST", "/admin/login/", form, headers | {"X-Forwarded-For": address})
        response = client.getresponse()
        response.read()
        return response


def _try_passwords(port: int) -> None:
    while True:
        _log_in(port, secrets.token_hex(4), "wrong")


def _export(port: int, session: str) -> None:
    while True:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=RESPONSE_TIMEOUT_SECONDS)) as client:
            client.request("GET", EXPORT, headers={"Cookie": f"sessionid={session}"})
            response = client.getresponse()
            while response.read(2**16):
                pass


def main(port: int, password: str) -> None:
    os.nice(19)
    response = _log_in(port, "root", password)
    session = SimpleCookie("; ".join(response.headers.get_all("Set-Cookie", [])))["sessionid"].value
    clients = [partial(_try_passwords, port)] * LOGINS + [partial(_export, port, session)] * EXPORTS
    for client in clients:
        threading.Thread(target=client, daemon=True).start()
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
