"""The attacks of the benchmark, shortened: during each of them, another broker's orders are accepted."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bench import attacks
from orders.enums import Side
from orders.matching import service
from tests import live, trading

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.processes]

SECONDS = 1.0
CONNECTIONS_MAX, RESTING = 500, 1_500


@pytest.fixture(scope="module")
def attacked(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    """A separate server, because the attackers use up the rate limits of their address."""
    running = live.server(tmp_path_factory.mktemp("attacked") / "web.log")
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_orders_of_others_are_accepted_during_an_attack(attacked: live.Server, name: str) -> None:
    for symbol in (attacks.ATTACKED, attacks.TRADED):
        trading.instrument(symbol)
    keys = {"victim": trading.broker("victim", holdings={}), "victim_id": "victim"}
    keys["attacker"] = trading.broker("attacker", cash=210, holdings={attacks.ATTACKED: RESTING})
    for side, price in [(Side.BID, "0.01"), (Side.ASK, "1.00")]:
        resting = [trading.order(side, 1, price, by="attacker", symbol=attacks.ATTACKED) for _ in range(RESTING)]
        service.execute(resting)
    attack = attacks.ATTACKS[name]
    attack = replace(attack, connections=min(attack.connections, CONNECTIONS_MAX))

    async def both() -> dict[str, Any]:
        attacking = asyncio.create_task(attacks._attack(attacked.port, attack, keys["attacker"], SECONDS))
        found = await attacks._trade(attacked.port, keys, SECONDS)
        await attacking
        return found

    found = asyncio.run(both())
    assert found["faults"] == 0, found
    assert found["statuses"].keys() == {"201"}
