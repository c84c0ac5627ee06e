"""Every operation of `/openapi.json`, asked 100 times with each kind of key: no 5xx, no answer outside the schema.

Run by `make schemathesis`; the name keeps it out of `make test`. The requests are the same in every run.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from tests.live import Server
from tests.schema import market, steering
from tests.schema.steering import AnyCase, Operation

EXAMPLES = 100
REPRODUCIBLE = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # the first request that fails is shown as it was sent
    suppress_health_check=list(HealthCheck),
)
CONFIG = {
    "generation": {"with-security-parameters": False},
    "checks": {
        "negative_data_rejection": {"expected-statuses": ["4xx"]},
        # The schema cannot say all: not whose broker_id it is, nor what the market's rules refuse.
        "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "403", "404", "409"]},
    },
    "operations": [
        {
            "include-operation-id": "place_orders",  # an order that is none is refused in its place, by a 200
            "checks": {"negative_data_rejection": {"expected-statuses": ["200", "4xx"]}},
        }
    ],
}
FORBIDDEN = {"broker": market.OPERATORS_ONLY, "operator": {"place_order", "place_orders", "subscribe", "unsubscribe"}}


@dataclass(frozen=True, slots=True)
class Caller:
    """Sends requests with one key, and counts the statuses of the answers by operation."""

    url: str
    key: str
    session: requests.Session
    seen: dict[str, Counter[int]] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def ask(self, case: AnyCase) -> None:
        """Send one request; its answer must be what the schema says."""
        name = operation_id(case.operation)
        again = [checks.ignored_auth] if name in self.succeeded() else []  # it repeats what was done, without the key
        response = case.call(self.url, self.session, self.headers)
        self.seen[name][response.status_code] += 1
        case.validate_response(
            response,
            excluded_checks=again,
            headers=self.headers,
            transport_kwargs={"base_url": self.url, "session": self.session},
        )

    def ask_for(self, operation: Operation, existing: dict[str, list[Any]]) -> None:
        """Send as many different requests for one operation as there are examples."""
        name = operation_id(operation)
        self.seen[name] = Counter()
        existing |= self.cursors(operation, existing)

        @REPRODUCIBLE
        @given(case=steering.requests(operation, existing, market.BODIES.get(name, [])))
        def ask(case: AnyCase) -> None:
            self.ask(case)

        ask()

    def cursors(self, operation: Operation, existing: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """If the operation is a list that this key may read: the cursor of its second page."""
        if "cursor" not in operation.query:
            return {}
        path = operation.path.format_map({name: values[0] for name, values in existing.items()})
        answer = self.session.get(f"{self.url}{path}?limit=1", headers=self.headers).json()
        return {"cursor": [answer["next_cursor"]]} if answer.get("next_cursor") else {}

    def succeeded(self) -> set[str]:
        """The operations that were done at least once."""
        return {name for name, statuses in self.seen.items() if any(200 <= status < 300 for status in statuses)}


def operation_id(operation: Operation) -> str:
    name = operation.definition.raw["operationId"]
    assert isinstance(name, str)
    return name


def operations(server: Server) -> Iterator[Operation]:
    """What the running server says that it can do."""
    document = httpx.get(f"{server.url}/openapi.json", trust_env=False).raise_for_status().json()
    config = schemathesis.Config.from_dict(CONFIG)
    for found in schemathesis.openapi.from_dict(document, config=config).get_all_operations():
        assert isinstance(found, Ok), found
        yield found.ok()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("role", ["broker", "operator"])
def test_every_operation_answers_within_the_schema(
    server: Server, role: str, subtests: pytest.Subtests, capsys: pytest.CaptureFixture[str]
) -> None:
    open_market = market.opened()
    with requests.Session() as session:
        session.trust_env = False  # no proxy between here and here
        caller = Caller(server.url, open_market.keys[role], session)
        for operation in operations(server):
            with subtests.test(operation=operation_id(operation)):
                caller.ask_for(operation, open_market.existing())
    with capsys.disabled():
        show(caller.seen, role)
    assert caller.succeeded() == set(caller.seen) - FORBIDDEN[role]


def show(seen: dict[str, Counter[int]], role: str) -> None:
    """One line per operation: how many requests, and how many answers of each status."""
    sys.stdout.write("\n")
    for name, statuses in sorted(seen.items()):
        counts = "  ".join(f"{status}: {count:3}" for status, count in sorted(statuses.items()))
        sys.stdout.write(f"{role:10}{name:18}{statuses.total():4}   {counts}\n")
