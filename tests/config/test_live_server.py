"""The live web server of tests over real sockets."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests import api, live, trading
from tests.live import Server

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.processes]

AT_ONCE = 20
ANSWER_SECONDS = 30.0
PATHS = [
    *["/docs", "/docs?script=", "/healthz", "/openapi.json", "/readyz", "/stocks"],
    *["/stocks/AAPL/book", "/stocks/AAPL/price", "/brokers/alice/orders"],
]


@pytest.fixture
def fresh_server(transactional_db: None, tmp_path: Path) -> Iterator[Server]:
    """A web server that has received only `/healthz`."""
    running = live.server(tmp_path / "web.log")
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_a_restarted_server_has_the_same_port(server: Server) -> None:
    before, port = server.pid, server.port
    assert server.is_up()
    server.restart()
    assert server.is_up()
    assert (server.pid != before, server.port) == (True, port)


def ask_at_once(server: Server, paths: list[str]) -> list[httpx.Response]:
    """Send a GET request for each path concurrently, with a broker's key."""
    headers = {"Authorization": f"Bearer {api.broker('alice').key}"}
    ask = partial(httpx.get, headers=headers, timeout=ANSWER_SECONDS, trust_env=False)
    return trading.run_concurrently([partial(ask, server.url + path) for path in paths])


@pytest.mark.parametrize("paths", [["/openapi.json"], ["/readyz"], PATHS], ids=["openapi", "readyz", "all"])
def test_the_first_requests_may_be_concurrent(fresh_server: Server, paths: list[str]) -> None:
    responses = ask_at_once(fresh_server, [*paths * AT_ONCE][:AT_ONCE])

    assert len(responses) == AT_ONCE
    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses if response.url.path == "/openapi.json"}) <= 1
