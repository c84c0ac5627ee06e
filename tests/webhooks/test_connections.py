"""Kept-alive connections: no event is lost when a receiver closes one, and none is read twice by one that responds."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from uuid import uuid4

import aiohttp
import pytest

from tests import receiver as receiving
from tests.receiver import HEAD_END, Behaviour, Connection, Receiver, respond
from webhooks import http_client
from webhooks.delivery_queue import ClaimedDelivery, DeliveryOutcome

CLOSE_SECONDS = [0, 0.002, 0.005, 0.04, 0.5]  # after the response
ENDS = [receiving.close, receiving.reset]
LANES, EVENTS_PER_LANE = 100, 3
OK = (200, None)

Outcome = tuple[int | None, str | None]


def delivery(url: str) -> ClaimedDelivery:
    return ClaimedDelivery(uuid4(), uuid4(), url, [url], "trade.executed", 1, "{}")


def result(outcome: DeliveryOutcome) -> Outcome:
    return outcome.status_code, outcome.error


def send_in_turn(*urls: str, pause_seconds: float = 0) -> list[Outcome]:
    """Send an event to each URL, one after the other, over the connections of one dispatcher."""

    async def send_all() -> list[Outcome]:
        outcomes = []
        async with http_client.create_connector() as connector:
            for url in urls:
                outcomes.append(result(await http_client.send(connector, delivery(url))))
                await asyncio.sleep(pause_seconds)
        return outcomes

    return asyncio.run(send_all())


def times_read(receiver: Receiver) -> list[int]:
    """Count the requests of each event, in the order of the first one."""
    return list(Counter(request.headers["x-delivery-id"] for request in receiver.requests).values())


# --- Receivers that respond and close -------------------------------------------------------------------------------


def respond_and_end(after_seconds: float, end: Callable[[Connection], None]) -> Behaviour:
    """Respond, and end the connection later without having announced it."""

    def end_if_open(connection: Connection) -> None:
        if not connection.transport.is_closing():
            end(connection)

    def does(connection: Connection) -> None:
        respond()(connection)
        if after_seconds:
            asyncio.get_running_loop().call_later(after_seconds, end_if_open, connection)
        else:
            end(connection)

    return does


def test_every_event_is_read_once_by_receivers_that_respond_and_close(receiver: Receiver) -> None:
    """All receivers at the same time; each lane sends its next event when the receiver is about to close."""
    random = Random(1)
    cases = {(end.__name__, seconds): respond_and_end(seconds, end) for end in ENDS for seconds in CLOSE_SECONDS}
    urls = {case: receiver.on(f"/{case[0]}/{case[1]}", does) for case, does in cases.items()}

    async def send_lane(connector: aiohttp.BaseConnector, url: str, pause_seconds: float) -> list[Outcome]:
        outcomes = []
        for _ in range(EVENTS_PER_LANE):
            outcomes.append(result(await http_client.send(connector, delivery(url))))
            await asyncio.sleep(pause_seconds * random.uniform(0.9, 1.1))
        return outcomes

    async def send_case(case: tuple[str, float]) -> Counter[Outcome]:
        async with http_client.create_connector() as connector:
            lanes = await asyncio.gather(*(send_lane(connector, urls[case], case[1]) for _ in range(LANES)))
        return Counter(outcome for lane in lanes for outcome in lane)

    async def send_all() -> Sequence[Counter[Outcome]]:
        return await asyncio.gather(*map(send_case, cases))

    outcomes = dict(zip(cases, asyncio.run(send_all()), strict=True))
    assert outcomes == {case: Counter({OK: LANES * EVENTS_PER_LANE}) for case in cases}
    assert times_read(receiver) == [1] * (len(cases) * LANES * EVENTS_PER_LANE)


def test_nothing_is_written_to_a_connection_that_is_visibly_closed(receiver: Receiver) -> None:
    """The receiver still reads after its close, and would read the event twice."""

    def respond_and_half_close(connection: Connection) -> None:
        respond()(connection)
        connection.transport.write_eof()

    url = receiver.on("/", respond_and_half_close)

    async def send_twice() -> list[Outcome]:
        async with http_client.create_connector() as connector:
            first = await http_client.send(connector, delivery(url))
            time.sleep(0.1)  # the close arrives, and the event loop does not read it
            return [result(first), result(await http_client.send(connector, delivery(url)))]

    assert asyncio.run(send_twice()) == [OK, OK]
    assert times_read(receiver) == [1, 1]


def test_a_response_without_a_request_is_not_taken_for_the_next_one(receiver: Receiver) -> None:
    """For example the 408 of a server that closes an idle connection."""

    timed_out = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0" + HEAD_END

    def respond_and_time_out(connection: Connection) -> None:
        respond()(connection)
        asyncio.get_running_loop().call_later(0.01, connection.transport.write, timed_out)

    url = receiver.on("/", respond_and_time_out)

    assert send_in_turn(url, url, pause_seconds=0.1) == [OK, OK]
    assert times_read(receiver) == [1, 1]


# --- Receivers that read and close ----------------------------------------------------------------------------------


def test_a_request_that_meets_a_close_is_sent_once_more_over_a_new_connection(receiver: Receiver) -> None:
    """The receiver closes three idle connections with the next request, so that no idle connection can be used."""
    url, closing = receiver.url(), receiver.on("/closing", receiving.close)

    async def send_all() -> list[Outcome]:
        async with http_client.create_connector() as connector:
            await asyncio.gather(*(http_client.send(connector, delivery(url)) for _ in range(3)))
            return [result(await http_client.send(connector, delivery(closing)))]

    assert asyncio.run(send_all()) == [(None, "disconnected")]
    first, again = receiver.requests_to("/closing")
    assert (first.headers, first.body) == (again.headers, again.body)
    assert again.connection == 4
    assert receiver.connection_count == 4


def test_a_request_over_a_new_connection_is_sent_once(receiver: Receiver) -> None:
    assert send_in_turn(receiver.on("/", receiving.close)) == [(None, "disconnected")]
    assert times_read(receiver) == [1]


@pytest.mark.parametrize("start", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 102 Processing" + HEAD_END])
def test_a_request_with_the_start_of_a_response_is_sent_once(receiver: Receiver, start: bytes) -> None:
    def start_and_close(connection: Connection) -> None:
        connection.transport.write(start)
        connection.transport.close()

    assert send_in_turn(receiver.url(), receiver.on("/starts", start_and_close)) == [OK, (None, "disconnected")]
    assert times_read(receiver) == [1, 1]
    assert receiver.connection_count == 1


# --- Long response heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 204, 503])
@pytest.mark.parametrize(
    "headers",
    [[f"X-Long: {'x' * 9_000}"], [f"X-Long: {'x' * 100_000}"], [f"X-{number}: x" for number in range(200)]],
    ids=["9 kB", "100 kB", "200 headers"],
)
def test_a_response_with_long_headers_has_its_status(receiver: Receiver, status: int, headers: list[str]) -> None:
    url = receiver.on("/", respond(status, headers=headers))
    assert send_in_turn(url, url) == [(status, None)] * 2
    assert times_read(receiver) == [1, 1]
