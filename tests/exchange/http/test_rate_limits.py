"""Rate limits of keys (contract: "Rate limits"): burst, rejection, refill, and the headers of responses."""

import json
import re
import time
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from pytest_django import Settings

from exchange import services
from exchange.http import rate_limits
from exchange.http.rate_limits import Allowance, RateLimit
from exchange.rules import Scope
from orders.models import Order
from orders.serializers import PlaceOrderSerializer
from tests import api, trading
from tests.api import LIMIT
from tests.exchange.client import ApiResponse, Client
from tests.trading import BY

SECOND = 1_000_000_000
START = 123_456_789_012_345  # an arbitrary time of a monotonic clock
UNKNOWN_ORDER = f"/orders/{UUID(int=0)}"


def limit(per_second: int = 10, burst: int = 20, max_keys: int = 1_000) -> RateLimit:
    return RateLimit("requests", per_second=per_second, burst=burst, max_keys=max_keys)


def granted(of: RateLimit, times: int, now: int, key: str = "a") -> int:
    """Return the number of granted requests."""
    return sum(of.take(key, 1, now).is_granted for _ in range(times))


# --- The bucket -----------------------------------------------------------------------------------------------------


def test_a_burst_is_granted_and_then_the_refilled_tokens() -> None:
    bucket = limit(per_second=10, burst=20)

    assert granted(bucket, 50, START) == 20
    assert granted(bucket, 50, START + SECOND // 10 - 1) == 0
    assert granted(bucket, 50, START + SECOND // 10) == 1
    assert granted(bucket, 50, START + SECOND) == 9
    assert granted(bucket, 50, START + 60 * SECOND) == 20


@pytest.mark.parametrize("per_second", [1, 3, 7, 2_000])
def test_no_token_is_lost_or_gained_by_rounding(per_second: int) -> None:
    bucket, now = limit(per_second, burst=5), START
    passed = granted(bucket, 5, now)
    for step in range(1, 3_001):
        now = START + step * SECOND // (per_second * 2)  # twice the rate of the refill
        passed += granted(bucket, 1, now)

    assert passed == 5 + (now - START) * per_second // SECOND


def test_tokens_are_granted_all_together_or_not_at_all() -> None:
    bucket = limit(per_second=10, burst=20)

    assert bucket.take("a", 15, START) == Allowance(True, 5, 1)
    assert bucket.take("a", 6, START) == Allowance(False, 5, 1)
    assert bucket.take("a", 5, START) == Allowance(True, 0, 1)


def test_a_request_larger_than_the_bucket_is_granted_when_the_bucket_is_full() -> None:
    bucket = limit(per_second=10, burst=20)

    assert bucket.take("a", 500, START).is_granted
    assert not bucket.take("a", 500, START + 2 * SECOND - 1).is_granted
    assert bucket.take("a", 500, START + 2 * SECOND).is_granted


def test_tokens_already_taken_count_and_are_returned_on_a_rejection() -> None:
    bucket = limit(per_second=10, burst=20)
    bucket.take("a", 1, START)

    assert bucket.take("a", 20, START, already_taken=1) == Allowance(True, 0, 1)
    assert bucket.take("b", 5, START).remaining == 15
    bucket.take("b", 1, START)
    assert bucket.take("b", 16, START, already_taken=1) == Allowance(False, 15, 1)


@pytest.mark.parametrize("tokens", [1, 7, 20])
@pytest.mark.parametrize("used", [1, 13, 20])
@pytest.mark.parametrize("per_second", [1, 3, 10])
def test_a_request_repeated_after_the_returned_seconds_is_granted(tokens: int, used: int, per_second: int) -> None:
    bucket = limit(per_second, burst=20)
    bucket.take("a", used, START)

    rejected = bucket.take("a", tokens, START)
    if rejected.is_granted:
        return
    assert bucket.take("a", tokens, START + rejected.seconds * SECOND).is_granted
    before = limit(per_second, burst=20)
    before.take("a", used, START)
    assert not before.take("a", tokens, START + (rejected.seconds - 1) * SECOND).is_granted


def test_each_key_has_its_own_bucket() -> None:
    bucket = limit(burst=3)

    assert granted(bucket, 9, START, "a") == 3
    assert granted(bucket, 9, START, "b") == 3


def test_the_least_recently_used_keys_are_evicted() -> None:
    bucket = limit(burst=3, max_keys=100)
    for number in range(100_000):
        bucket.take(f"key-{number}", 1, START)
        bucket.take("busy", 1, START)

    assert len(bucket._full_at) == 100
    assert granted(bucket, 1, START, "busy") == 0


def test_concurrent_threads_share_the_limit_of_a_key() -> None:
    bucket = limit(per_second=5_000, burst=1_000)
    started = time.monotonic_ns()

    def hammer() -> int:
        return sum(bucket.take("a", 1, time.monotonic_ns()).is_granted for _ in range(500))

    passed = sum(trading.run_concurrently([hammer] * 64))

    assert 1_000 <= passed <= 1_000 + 5_000 * (time.monotonic_ns() - started) // SECOND


# --- The API --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _slow(settings: Settings) -> None:
    """Bursts of three requests and two cancels, then one of each per second."""
    settings.RATE_LIMIT_PER_SECOND, settings.RATE_LIMIT_BURST = 1, 3
    settings.RATE_LIMIT_CANCELS_PER_SECOND, settings.RATE_LIMIT_CANCELS_BURST = 1, 2


def repeat_until_rejected(client: Client, method: str, path: str, body: Any = None) -> tuple[int, ApiResponse]:
    """Repeat a request until it is rejected, and return the number of granted ones with the rejection."""
    for passed in range(100):
        response = client.request(method, path, body)
        if response.status == 429:
            return passed, response
    raise AssertionError("never rejected")


def rate_limit_headers(response: ApiResponse) -> tuple[str, str]:
    return response.headers["RateLimit-Policy"], response.headers["RateLimit"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_slow")
def test_a_request_over_the_limit_is_rejected_and_not_executed(alice: Client) -> None:
    body = LIMIT | {"side": "ask"}
    passed, rejection = repeat_until_rejected(alice, "POST", "/orders", body)

    assert passed >= 3
    assert Order.objects.count() == passed
    api.assert_problem(rejection)
    assert rejection.code == "rate_limited"
    assert rate_limit_headers(rejection) == ('"requests";q=3;w=3', '"requests";r=0;t=1')
    assert rejection.headers["Retry-After"] == "1"
    time.sleep(1)
    assert alice.post("/orders", body).status == 201


@pytest.mark.usefixtures("_slow")
def test_a_request_over_the_limit_is_rejected_before_its_validation(alice: Client) -> None:
    repeat_until_rejected(alice, "GET", "/stocks")

    for method, path, body in [("POST", "/orders", b"{"), ("PUT", "/orders", b""), ("GET", "/stocks?x=1", None)]:
        assert alice.request(method, path, body).code == "rate_limited"
    assert alice.get("/nothing").code == "rate_limited"
    assert Client(None).get("/stocks").code == "unauthenticated"


@pytest.mark.usefixtures("_slow")
def test_cancels_have_a_separate_limit(alice: Client, operator: Client) -> None:
    repeat_until_rejected(alice, "GET", "/stocks")
    passed, rejection = repeat_until_rejected(alice, "DELETE", UNKNOWN_ORDER)

    assert passed >= 2
    assert rate_limit_headers(rejection) == ('"cancels";q=2;w=2', '"cancels";r=0;t=1')
    repeat_until_rejected(operator, "DELETE", UNKNOWN_ORDER)
    assert operator.get("/stocks").status == 200
    other_deletes = operator.delete("/brokers/alice/keys/0123456789ab")
    assert rate_limit_headers(other_deletes)[0] == '"requests";q=3;w=3'


@pytest.mark.usefixtures("_slow")
def test_keys_of_one_broker_have_separate_limits(alice: Client) -> None:
    second = Client(services.issue_key("alice", scopes=[Scope.TRADE], by=BY)[1])
    repeat_until_rejected(alice, "GET", "/stocks")

    assert second.get("/stocks").status == 200


@pytest.mark.django_db(transaction=True)
def test_every_response_to_a_valid_key_has_the_remaining_tokens(alice: Client, bob: Client) -> None:
    order = LIMIT | {"side": "ask", "client_order_id": "once"}
    placed = alice.post("/orders", order)
    cancel = f"/orders/{placed.body['order_id']}"
    responses = [
        placed,
        alice.post("/orders", order),
        alice.post("/orders", {}),
        alice.post("/orders", order | {"broker_id": "bob"}),
        bob.get(cancel),
        alice.post("/orders", order | {"quantity": 1}),
        alice.request("PUT", "/orders"),
        alice.post("/orders", b" " * 70_000),
    ]
    cancels = [alice.delete(cancel), alice.delete(cancel)]

    assert [response.status for response in responses] == [201, 200, 400, 403, 404, 409, 405, 413]
    assert [response.status for response in cancels] == [200, 409]
    for name, group in (("requests", responses), ("cancels", cancels)):
        for response in group:
            policy, remaining = rate_limit_headers(response)
            assert policy == f'"{name}";q=4000;w=2'
            assert re.fullmatch(rf'"{name}";r=39\d\d;t=1', remaining), remaining


def test_other_responses_have_no_rate_limit_headers(alice: Client) -> None:
    for response in [Client(None).get("/stocks"), Client(None).get("/healthz"), alice.get("/nothing")]:
        assert not {"RateLimit", "RateLimit-Policy"} & response.headers.keys()


def remaining(response: ApiResponse) -> int:
    return int(response.headers["RateLimit"].split(";")[1].removeprefix("r="))


def test_a_batch_counts_its_orders_and_is_granted_completely_or_not_at_all(settings: Settings, alice: Client) -> None:
    settings.RATE_LIMIT_PER_SECOND, settings.RATE_LIMIT_BURST = 1, 100

    assert remaining(alice.get("/stocks")) == 99
    first = alice.post("/orders/batch", {"orders": [{}] * 60})
    assert (first.status, remaining(first)) in [(200, each) for each in range(39, 45)]
    too_many = api.assert_rejected(alice, "POST", "/orders/batch", {"orders": [LIMIT | {"side": "ask"}] * 90})
    assert too_many.code == "rate_limited"
    assert int(too_many.headers["Retry-After"]) == 90 - remaining(too_many) <= 90 - 39
    assert alice.post("/orders/batch", {"orders": [{}] * 39}).status == 200


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("path", "body", "length", "tokens"),
    [
        ("/orders", b"{}", 1_024, 1),
        ("/orders", b"{}", 1_025, 2),
        ("/orders", b"{", 65_536, 64),
        ("/orders", b"{}", 65_537, 1),
        ("/orders/batch", b'{"orders": [{}, {}, {}]}', 2_048, 3),
        ("/orders/batch", b'{"orders": [{}, {}, {}]}', 1_048_576, 1_024),
        ("/orders/batch", b"{", 1_048_576, 1_024),
    ],
)
def test_a_long_body_counts_by_its_length_unless_it_is_too_long_to_be_read(
    settings: Settings, alice: Client, path: str, body: bytes, length: int, tokens: int
) -> None:
    settings.RATE_LIMIT_PER_SECOND, settings.RATE_LIMIT_BURST = 1, 4_000
    before = remaining(alice.get("/stocks"))

    assert 0 <= remaining(alice.post(path, body.ljust(length))) - (before - tokens) <= 5  # the refill of some seconds


def test_a_long_body_over_the_limit_is_not_decoded(settings: Settings, alice: Client) -> None:
    settings.RATE_LIMIT_PER_SECOND, settings.RATE_LIMIT_BURST = 1, 50
    alice.get("/stocks")

    assert alice.post("/orders", b"{".ljust(65_536)).code == "rate_limited"
    assert alice.post("/orders", b"{").code == "malformed_request"


LONGEST = {
    "type": "limit",
    "broker_id": "b" * 64,
    "document_number": "1" * 32,
    "side": "bid",
    "symbol": "A" * 12,
    "price": f"{'9' * 16}.1234",
    "quantity": 10**12,
    "expires_at": "2099-12-31T23:59:59.123456+00:00",
    "time_in_force": "gtd",
    "client_order_id": "c" * 64,
}


def test_the_longest_order_without_padding_counts_as_one(alice: Client) -> None:
    assert LONGEST.keys() == PlaceOrderSerializer().fields.keys()
    batch = json.dumps({"orders": [LONGEST] * 500}, indent=4)

    assert rate_limits.tokens_for_body(len(json.dumps(LONGEST, indent=4))) == 1
    assert rate_limits.tokens_for_body(len(batch)) <= 500


@pytest.mark.django_db(transaction=True)
def test_concurrent_requests_do_not_exceed_the_limit_of_a_key(settings: Settings) -> None:
    settings.RATE_LIMIT_PER_SECOND, settings.RATE_LIMIT_BURST = 20, 50
    client = api.broker("alice")
    started = time.monotonic()

    def hammer() -> list[int]:
        return [client.get("/stocks").status for _ in range(10)]

    statuses = [status for each in trading.run_concurrently([partial(hammer)] * 16) for status in each]

    assert set(statuses) == {200, 429}
    assert 50 <= statuses.count(200) <= 50 + 20 * (time.monotonic() - started) + 1
