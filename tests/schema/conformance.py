"""Send 100 requests per operation of `/openapi.json` with each kind of key: no 5xx, no response outside the schema.

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
    phases=[Phase.generate],  # shows the first failing request as it was sent
    suppress_health_check=list(HealthCheck),
)
CONFIG = {
    "generation": {"with-security-parameters": False},
    "checks": {
        "negative_data_rejection": {"expected-statuses": ["4xx"]},
        # The schema cannot express everything: the key's own broker_id, the decimals of a price as a number (they
        # have no binary form for `multipleOf`), the rules of the market.
        "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "403", "404", "409"]},
    },
    "operations": [
        {
            "include-operation-id": "place_orders",  # an invalid order of a batch is an error in its result, in a 200
            "checks": {"negative_data_rejection": {"expected-statuses": ["200", "4xx"]}},
        }
    ],
}
FORBIDDEN = {"broker": market.OPERATORS_ONLY, "operator": {"place_order", "place_orders", "subscribe", "unsubscribe"}}


@dataclass(frozen=True, slots=True)
class Caller:
    """Client with one key, which counts the statuses of the responses by operation."""

    url: str
    key: str
    session: requests.Session
    seen: dict[str, Counter[int]] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def send(self, case: AnyCase) -> None:
        """Send one request, and validate the response."""
        name = operation_id(case.operation)
        # The check of authentication repeats the request without the key: it needs one success per operation.
        excluded = [checks.ignored_auth] if name in self.succeeded() else []
        response = case.call(self.url, self.session, self.headers)
        self.seen[name][response.status_code] += 1
        case.validate_response(
            response,
            excluded_checks=excluded,
            headers=self.headers,
            transport_kwargs={"base_url": self.url, "session": self.session},
        )

    def send_all(self, operation: Operation, existing: dict[str, list[Any]]) -> None:
        """Send `EXAMPLES` different requests for one operation."""
        name = operation_id(operation)
        self.seen[name] = Counter()
        existing |= self.cursors(operation, existing)

        @REPRODUCIBLE
        @given(case=steering.requests(operation, existing, market.BODIES.get(name, [])))
        def send(case: AnyCase) -> None:
            self.send(case)

        send()

    def cursors(self, operation: Operation, existing: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the cursor of the second page if the operation is a list that this key may read."""
        if "cursor" not in operation.query:
            return {}
        path = operation.path.format_map({name: values[0] for name, values in existing.items()})
        page = self.session.get(f"{self.url}{path}?limit=1", headers=self.headers).json()
        return {"cursor": [page["next_cursor"]]} if page.get("next_cursor") else {}

    def succeeded(self) -> set[str]:
        """Return the operations that succeeded at least once."""
        return {name for name, statuses in self.seen.items() if any(200 <= status < 300 for status in statuses)}


def operation_id(operation: Operation) -> str:
    name = operation.definition.raw["operationId"]
    assert isinstance(name, str)
    return name


def operations(server: Server) -> Iterator[Operation]:
    """Yield the operations of the running server's document."""
    document = httpx.get(f"{server.url}/openapi.json", trust_env=False).raise_for_status().json()
    config = schemathesis.Config.from_dict(CONFIG)
    for found in schemathesis.openapi.from_dict(document, config=config).get_all_operations():
        assert isinstance(found, Ok), found
        yield found.ok()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("role", ["broker", "operator"])
def test_every_response_matches_the_schema(
    server: Server, role: str, subtests: pytest.Subtests, capsys: pytest.CaptureFixture[str]
) -> None:
    open_market = market.opened()
    with requests.Session() as session:
        session.trust_env = False  # no proxy to this machine
        caller = Caller(server.url, open_market.keys[role], session)
        for operation in operations(server):
            with subtests.test(operation=operation_id(operation)):
                caller.send_all(operation, open_market.existing())
    with capsys.disabled():
        show(caller.seen, role)
    assert caller.succeeded() == set(caller.seen) - FORBIDDEN[role]


def show(seen: dict[str, Counter[int]], role: str) -> None:
    """Print one line per operation: the number of requests, and of responses by status."""
    sys.stdout.write("\n")
    for name, statuses in sorted(seen.items()):
        counts = "  ".join(f"{status}: {count:3}" for status, count in sorted(statuses.items()))
        sys.stdout.write(f"{role:10}{name:18}{statuses.total():4}   {counts}\n")
