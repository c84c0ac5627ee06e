"""Access of each kind of key to every operation of the API (contract: "Access").

The table is compared with the URL map: an operation without a row fails.
"""

import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit

import pytest
from django.conf import settings
from django.urls import URLPattern, URLResolver, get_resolver, resolve
from hypothesis import given
from hypothesis import strategies as st

from exchange import services
from exchange.keys import new_key
from exchange.models import ApiKey, Transfer
from exchange.rules import BROKER_ID, KEY_PREFIX, SYMBOL, Scope
from exchange.views import to_back_office
from orders.models import Order
from tests import api, trading
from tests.api import LIMIT
from tests.exchange.client import Client
from tests.trading import BY
from webhooks import services as webhooks
from webhooks.models import EventType, Subscription

pytestmark = pytest.mark.django_db(transaction=True)

MISMATCH, NO_SCOPE, NO_ORDER = "403 broker_mismatch", "403 scope_missing", "404 order_not_found"
NO_WEBHOOK = "404 webhook_not_found"
SUBSCRIPTION = {"broker_id": "alice", "url": "http://127.0.0.1:9/hook", "events": ["order.expired"]}


class Row(NamedTuple):
    """An operation, with its status for alice's key, another broker's, alice's read-only key, and an operator's."""

    method: str
    path: str  # with names of the URL map
    alice: str
    other: str
    reader: str
    operator: str
    body: Any = None
    query: str = ""


def for_all_keys(method: str, path: str, query: str = "") -> Row:
    return Row(method, path, "200", "200", "200", "200", query=query)


def for_the_broker(method: str, path: str) -> Row:
    return Row(method, path, "200", MISMATCH, "200", "200")


def for_operators(method: str, path: str, response: str, body: Any = None) -> Row:
    return Row(method, path, NO_SCOPE, NO_SCOPE, NO_SCOPE, response, body)


PUBLIC = ["/healthz", "/readyz", "/openapi.json", "/docs"]
TABLE = [
    *[for_all_keys("GET", path) for path in PUBLIC],
    Row("POST", "/orders", "201", MISMATCH, NO_SCOPE, NO_SCOPE, LIMIT),
    Row("POST", "/orders/batch", "200", "200", NO_SCOPE, NO_SCOPE, {"orders": [LIMIT]}),  # another's: each a 403 inside
    Row("DELETE", "/orders", "200", "200", NO_SCOPE, "400 validation_error", query="?all=true"),
    Row("DELETE", "/orders", "200", MISMATCH, NO_SCOPE, "200", query="?all=true&broker_id=alice"),
    Row("GET", "/orders", "200", NO_ORDER, "200", "400 validation_error", query="?client_order_id=mine"),
    Row("GET", "/orders", "200", MISMATCH, "200", "200", query="?client_order_id=mine&broker_id=alice"),
    Row("GET", "/orders/<order_id>", "200", NO_ORDER, "200", "200"),
    Row("DELETE", "/orders/<order_id>", "200", NO_ORDER, NO_SCOPE, "200"),
    for_the_broker("GET", "/brokers/<broker_id>/orders"),
    for_the_broker("GET", "/brokers/<broker_id>/trades"),
    for_the_broker("GET", "/brokers/<broker_id>/balance"),
    for_all_keys("GET", "/stocks"),
    for_all_keys("GET", "/stocks/<symbol>"),
    for_all_keys("GET", "/stocks/<symbol>/price"),
    for_all_keys("GET", "/stocks/<symbol>/book"),
    for_all_keys("GET", "/stocks/<symbol>/quote", "?side=bid&quantity=1"),
    for_all_keys("GET", "/stocks/<symbol>/trades"),
    Row("POST", "/webhooks", "201", MISMATCH, NO_SCOPE, NO_SCOPE, SUBSCRIPTION),
    Row("GET", "/webhooks", "200", MISMATCH, "200", "200", query="?broker_id=alice"),
    Row("DELETE", "/webhooks/<webhook_id>", "204", NO_WEBHOOK, NO_SCOPE, NO_SCOPE),
    for_operators("GET", "/brokers", "200"),
    for_operators("POST", "/brokers", "201", {"broker_id": "carol", "initial_cash": 1}),
    for_operators("POST", "/brokers/<broker_id>/suspend", "200", {}),
    for_operators("POST", "/brokers/<broker_id>/reinstate", "200", {}),
    for_operators("GET", "/brokers/<broker_id>/transfers", "200"),
    for_operators("POST", "/brokers/<broker_id>/transfers", "201", {"reference": "r", "cash": 1, "reason": "x"}),
    for_operators("GET", "/brokers/<broker_id>/keys", "200"),
    for_operators("POST", "/brokers/<broker_id>/keys", "201", {}),
    for_operators("DELETE", "/brokers/<broker_id>/keys/<prefix>", "204"),
    for_operators("POST", "/stocks", "201", {"symbol": "PETR4"}),
    for_operators("DELETE", "/stocks/<symbol>", "204"),
    for_operators("POST", "/stocks/<symbol>/halt", "200", {}),
    for_operators("POST", "/stocks/<symbol>/resume", "200", {}),
]


def operations(patterns: list[URLPattern | URLResolver], prefix: str = "/") -> Iterator[tuple[str, str]]:
    """Yield method and path of every operation in the URL map, except the redirects to the back office."""
    for pattern in patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from operations(pattern.url_patterns, path)
            continue
        if pattern.callback is to_back_office:
            continue
        view: Any = pattern.callback
        for method in view.actions.keys() - {"head"}:
            yield method.upper(), re.sub(r"<\w+:", "<", path)


def test_every_operation_has_its_row() -> None:
    assert {(row.method, row.path) for row in TABLE} == set(operations(get_resolver("config.urls").url_patterns))


# --- The keys -------------------------------------------------------------------------------------------------------


KINDS = ["none", "garbage", "unknown", "expired", "revoked", "alice", "other", "reader", "operator"]


@pytest.fixture
def keys() -> dict[str, Client]:
    """A client of each kind, in a market where alice has a resting order."""
    alice = api.broker("alice")
    trading.instrument("UNUSED")
    api.place_order(alice, LIMIT | {"client_order_id": "mine"})
    webhooks.subscribe("alice", url="http://127.0.0.1:9/trades", events=[EventType.TRADE_EXECUTED])
    expired, expired_key = services.issue_key("alice", by=BY)
    ApiKey.objects.filter(pk=expired.pk).update(expires_at=expired.created_at)
    revoked, revoked_key = services.issue_key("alice", by=BY)
    services.revoke_key("alice", revoked.pk, by=BY)
    reader_key = services.issue_key("alice", scopes=[Scope.READ], by=BY)[1]
    dead = [Client(key) for key in (None, "garbage", new_key()[0], expired_key, revoked_key)]
    return dict(zip(KINDS, [*dead, alice, api.broker("bob"), Client(reader_key), api.operator()], strict=True))


def expected(row: Row, kind: str) -> str:
    expected_by_kind = {"alice": row.alice, "other": row.other, "reader": row.reader, "operator": row.operator}
    return row.alice if row.path in PUBLIC else expected_by_kind.get(kind, "401 unauthenticated")


def trials() -> Iterator[tuple[Row, list[str]]]:
    """Yield each row with the kinds of keys to test in the same market. A key that changes something has its own."""
    for row in TABLE:
        refused = [kind for kind in KINDS if expected(row, kind) >= "4"]
        admitted = [kind for kind in KINDS if expected(row, kind) < "4"]
        yield from [(row, refused)] if refused else []
        yield from [(row, admitted)] if row.method == "GET" else [(row, [kind]) for kind in admitted]


def name_of(trial: Row | list[str]) -> str:
    return f"{trial.method} {trial.path}{trial.query}" if isinstance(trial, Row) else ",".join(trial)


def snapshot() -> Any:
    return trading.snapshot(), list(ApiKey.objects.order_by("pk").values()), list(Transfer.objects.values())


def path_of(row: Row) -> str:
    """Return the row's path, with the ids of alice's market."""
    owned = ApiKey.objects.filter(broker="alice").earliest("created_at").pk
    names = {"order_id": str(Order.objects.get().pk), "broker_id": "alice", "prefix": owned}
    names["symbol"] = "UNUSED" if row.method == "DELETE" else "AAPL"
    names["webhook_id"] = str(Subscription.objects.get().pk)
    return re.sub(r"<(\w+)>", lambda name: names[name[1]], row.path) + row.query


@pytest.mark.parametrize(("row", "kinds"), list(trials()), ids=name_of)
def test_each_kind_of_key_has_the_access_of_its_row(keys: dict[str, Client], row: Row, kinds: list[str]) -> None:
    path = path_of(row)
    before = snapshot()
    for kind in kinds:
        response = keys[kind].request(row.method, path, row.body)
        result = str(response.status) if response.status < 400 else f"{response.status} {response.code}"
        assert result == expected(row, kind), kind
        if response.status == 401:
            assert response.headers["WWW-Authenticate"].startswith("Bearer"), kind
        if response.status >= 400:
            api.assert_problem(response)
            assert snapshot() == before, kind


def test_a_revoked_key_stops_working_within_five_seconds(keys: dict[str, Client]) -> None:
    revoked = keys["reader"]
    assert revoked.get("/stocks").status == 200
    assert revoked.key is not None
    assert keys["operator"].delete(f"/brokers/alice/keys/{revoked.key.split('_')[1]}").status == 204

    deadline = time.monotonic() + 5
    while revoked.get("/stocks").status == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert revoked.get("/stocks").code == "unauthenticated"
    assert keys["alice"].get("/stocks").status == 200


@pytest.mark.parametrize("path", ["/", "/nothing", "/orders/x", "/brokers/a b/orders", "/healthz/", "/stocks/aapl"])
def test_an_unknown_path_is_404_with_or_without_a_key(keys: dict[str, Client], path: str) -> None:
    for kind in ("none", "garbage", "alice", "operator"):
        for method in ("GET", "POST", "DELETE", "PUT"):
            assert api.assert_rejected(keys[kind], method, path).code == "not_found"


@pytest.mark.parametrize(
    ("pattern", "path", "name"),
    [
        (BROKER_ID, "/brokers/{}/balance", "broker_id"),
        (KEY_PREFIX, "/brokers/a/keys/{}", "prefix"),
        (SYMBOL, "/stocks/{}", "symbol"),
        (SYMBOL, "/stocks/{}/book", "symbol"),
    ],
)
@given(data=st.data())
def test_every_id_can_be_sent_in_a_path(data: st.DataObject, pattern: re.Pattern[str], path: str, name: str) -> None:
    """`urljoin` removes the segments `.` and `..`, as HTTP clients do."""
    value = data.draw(st.from_regex(pattern, fullmatch=True, alphabet=st.characters(codec="ascii")))
    sent = urljoin("http://venue/stocks", path.format(quote(value)))

    assert resolve(urlsplit(sent).path, "config.urls").kwargs[name] == value


def test_an_unsupported_method_is_405_with_the_supported_methods_in_the_allow_header(keys: dict[str, Client]) -> None:
    for method in ("PUT", "PATCH", "OPTIONS"):
        response = api.assert_rejected(keys["alice"], method, "/orders")
        assert (response.status, response.code) == (405, "method_not_allowed")
        assert set(response.headers["Allow"].split(", ")) == {"GET", "POST", "DELETE", "HEAD"}
    assert api.assert_rejected(keys["none"], "PUT", "/orders").code == "unauthenticated"
    assert api.assert_rejected(keys["none"], "POST", "/healthz").code == "method_not_allowed"


def test_every_operation_rejects_invalid_requests(keys: dict[str, Client]) -> None:
    def reject(client: Client, method: str, path: str, body: Any, **options: str) -> tuple[int, str]:
        response = api.assert_rejected(client, method, path, body, **options)
        return response.status, response.code

    for row in TABLE:
        path, may = path_of(row), keys["operator" if row.operator < "4" else "alice"]
        more = path + ("&" if row.query else "?")
        assert reject(may, "PATCH", path, row.body) == (405, "method_not_allowed"), row
        assert reject(may, row.method, f"{more}nonsense=1", row.body) == (400, "validation_error"), row
        if row.path not in PUBLIC and row.alice < "4":
            other = reject(keys["alice"], row.method, f"{more}broker_id=bob", row.body)
            assert other == (403, "broker_mismatch"), row
        if row.method == "POST":
            longest = settings.MAX_BATCH_BODY_BYTES if row.path == "/orders/batch" else settings.MAX_BODY_BYTES
            assert reject(may, "POST", path, b" " * (longest + 1)) == (413, "too_large"), row
            text = reject(may, "POST", path, b"{}", content_type="text/plain")
            assert text == (415, "unsupported_media_type"), row


def test_every_operation_rejects_repeated_parameters(keys: dict[str, Client]) -> None:
    paths = keys["none"].get("/openapi.json").body["paths"]
    for row in TABLE:
        operation = paths.get(re.sub(r"<(\w+)>", r"{\1}", row.path), {}).get(row.method.lower(), {})
        known = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
        given = dict(parse_qsl(row.query[1:]))
        client, before = keys["operator" if row.operator < "4" else "alice"], snapshot()
        for name in [*known, "nonsense"]:
            query = urlencode({name: "alice"} | given) + "&" + urlencode({name: given.get(name, "alice")})
            response = api.assert_rejected(client, row.method, f"{path_of(row).partition('?')[0]}?{query}", row.body)
            assert (response.status, response.fields.get(name)) == (400, "repeated"), (row, name)
        assert snapshot() == before, row


@pytest.mark.parametrize("row", [row for row in TABLE if row.method == "POST"], ids=name_of)
def test_a_body_without_required_fields_may_be_left_out(keys: dict[str, Client], row: Row) -> None:
    client, path, before = keys["operator" if row.operator < "4" else "alice"], path_of(row), snapshot()
    if client.post(path, {}).status < 400:
        assert client.post(path).status < 400
    else:
        assert api.assert_rejected(client, "POST", path).code == "malformed_request"
        assert snapshot() == before
