"""`/webhooks`: accepted values, responses and errors (contract: "Webhooks").

The tests run in the `local` profile; test_addresses.py tests the addresses of URLs.
"""

import uuid
from collections.abc import Callable
from datetime import datetime
from functools import partial
from itertools import permutations
from random import Random
from typing import Any

import pytest
from django.db import connection, transaction
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from config.local.processes import wait_until
from exchange import services as exchange_services
from exchange.errors import FieldError
from exchange.http.fields import validate
from exchange.rules import Scope
from orders import services
from orders.enums import Side
from tests import api, trading
from tests.api import assert_rejected, token, without
from tests.exchange.client import ApiResponse, Client
from tests.trading import BY, TIMEOUT_SECONDS, run_concurrently, start_thread
from webhooks.addresses import AddressProfile
from webhooks.models import MAX_URL_LENGTH, Delivery, Event, EventType, Subscription
from webhooks.serializers import SubscribeSerializer

pytestmark = pytest.mark.django_db(transaction=True)

URL, OTHER_URL = "https://receiver.example/hook", "https://receiver.example/other"
ALL = ["trade.executed", "order.expired", "order.cancelled"]
BODY = {"broker_id": "alice", "url": URL, "events": ALL}
UNKNOWN_ID = uuid.UUID(int=0)
KIBI_64 = 64 * 1024


@pytest.fixture
def alice(db: None) -> Client:
    return api.broker("alice")


@pytest.fixture
def bob(db: None, alice: Client) -> Client:
    return api.broker("bob")


@pytest.fixture
def reader(alice: Client) -> Client:
    """Alice's read-only key."""
    return Client(exchange_services.issue_key("alice", scopes=[Scope.READ], by=BY)[1])


def subscribe(client: Client, *events: str, status: int = 201, **more: Any) -> dict[str, str]:
    """Send a registration that must have this status, and return the ids by event."""
    response = client.post("/webhooks", BODY | {"events": events or ALL} | more)
    assert response.status == status, response
    ids = {webhook["event"]: webhook["webhook_id"] for webhook in response.body["webhooks"]}
    assert len(ids) == len(response.body["webhooks"])
    return ids


def list_webhooks(client: Client, broker_id: str = "alice") -> list[dict[str, str]]:
    response = client.get(f"/webhooks?broker_id={broker_id}")
    assert response.status == 200, response
    assert list(response.body) == ["webhooks"]
    webhooks: list[dict[str, str]] = response.body["webhooks"]
    return webhooks


def refused_post(client: Client, body: Any, **options: str) -> ApiResponse:
    return assert_rejected(client, "POST", "/webhooks", body, **options)


# --- Registration ---------------------------------------------------------------------------------------------------


def test_the_response_to_a_registration_is_that_of_the_contract(db: None) -> None:
    client = api.broker("broker-123")
    response = client.post(
        "/webhooks",
        b'{"broker_id": "broker-123", "url": "https://receiver.example/hook?a=1",'
        b' "events": ["trade.executed", "order.expired", "order.cancelled"]}',
    )

    ids = [webhook["webhook_id"] for webhook in response.body["webhooks"]]
    assert response.status == 201
    assert response.headers["Content-Type"] == "application/json"
    assert {uuid.UUID(id_).version for id_ in ids} == {7}
    assert response.content.decode() == (
        '{"webhooks":['
        f'{{"webhook_id":"{ids[0]}","broker_id":"broker-123","event":"trade.executed","url":"https://receiver.example/hook?a=1"}},'
        f'{{"webhook_id":"{ids[1]}","broker_id":"broker-123","event":"order.expired","url":"https://receiver.example/hook?a=1"}},'
        f'{{"webhook_id":"{ids[2]}","broker_id":"broker-123","event":"order.cancelled","url":"https://receiver.example/hook?a=1"}}'
        "]}"
    )


def test_a_response_has_one_object_per_event_in_request_order(alice: Client) -> None:
    ids = subscribe(alice)
    for count in (1, 2, 3):
        for events in permutations(ALL, count):
            response = alice.post("/webhooks", BODY | {"events": events})
            assert response.status == 200
            assert [(each["event"], each["webhook_id"]) for each in response.body["webhooks"]] == [
                (event, ids[event]) for event in events
            ]


def test_duplicate_events_are_merged(alice: Client) -> None:
    duplicates = ["order.expired", "trade.executed", "order.expired", "order.expired", "trade.executed"]

    assert list(subscribe(alice, *duplicates)) == ["order.expired", "trade.executed"]
    assert len(list_webhooks(alice)) == 2


def test_thousands_of_duplicate_events_are_merged(alice: Client) -> None:
    assert list(subscribe(alice, *["order.expired"] * 4_000)) == ["order.expired"]
    assert Subscription.objects.count() == 1
    assert refused_post(alice, BODY | {"events": ["order.expired"] * 10_000}).code == "too_large"


def test_the_status_is_201_if_any_subscription_is_new_and_200_otherwise(alice: Client) -> None:
    first = subscribe(alice, "trade.executed", status=201)
    assert subscribe(alice, "trade.executed", status=200) == first
    both = subscribe(alice, "trade.executed", "order.expired", status=201)
    assert subscribe(alice, "order.expired", "trade.executed", status=200) == both
    everything = subscribe(alice, *ALL, status=201)
    assert subscribe(alice, *ALL, url=OTHER_URL, status=200) == everything
    assert first.items() < both.items() < everything.items()


def test_a_new_url_replaces_the_old_one_and_keeps_id_and_date(alice: Client) -> None:
    subscribe(alice)
    before = list_webhooks(alice)
    subscribe(alice, "trade.executed", "order.cancelled", url=OTHER_URL, status=200)

    urls = {"trade.executed": OTHER_URL, "order.expired": URL, "order.cancelled": OTHER_URL}
    assert list_webhooks(alice) == [webhook | {"url": urls[webhook["event"]]} for webhook in before]


def test_a_repeated_registration_changes_nothing(alice: Client) -> None:
    first = alice.post("/webhooks", BODY)
    before = trading.snapshot()
    second = alice.post("/webhooks", BODY)

    assert (first.status, second.status) == (201, 200)
    assert second.content == first.content
    assert trading.snapshot() == before


def test_subscriptions_are_per_broker(alice: Client, bob: Client) -> None:
    of_alice = subscribe(alice)
    of_bob = subscribe(bob, broker_id="bob")
    subscribe(bob, broker_id="bob", url=OTHER_URL, status=200)

    assert not set(of_alice.values()) & set(of_bob.values())
    assert {webhook["url"] for webhook in list_webhooks(alice)} == {URL}
    assert {webhook["url"] for webhook in list_webhooks(bob, "bob")} == {OTHER_URL}


def test_a_registration_after_a_delete_is_new(alice: Client) -> None:
    first = subscribe(alice)
    deleted = first["order.expired"]
    assert alice.delete(f"/webhooks/{deleted}").status == 204

    second = subscribe(alice, status=201)
    assert second == first | {"order.expired": second["order.expired"]}
    assert second["order.expired"] != deleted
    assert assert_rejected(alice, "DELETE", f"/webhooks/{deleted}").code == "webhook_not_found"
    assert [webhook["webhook_id"] for webhook in list_webhooks(alice)][-1] == second["order.expired"]


def test_a_suspended_broker_may_subscribe_and_unsubscribe(alice: Client) -> None:
    services.suspend("alice", cancel_orders=False, by=BY)
    ids = subscribe(alice)
    subscribe(alice, url=OTHER_URL, status=200)
    for webhook_id in ids.values():
        assert alice.delete(f"/webhooks/{webhook_id}").status == 204
    assert list_webhooks(alice) == []


# --- List -----------------------------------------------------------------------------------------------------------


def test_the_list_has_the_registered_objects_with_their_dates(alice: Client) -> None:
    objects = [alice.post("/webhooks", BODY | {"events": [event]}).content.decode()[13:-3] for event in ALL]
    response = alice.get("/webhooks?broker_id=alice")

    dates = [webhook["created_at"] for webhook in response.body["webhooks"]]
    dated = [f'{each},"created_at":"{date}"}}' for each, date in zip(objects, dates, strict=True)]
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.content.decode() == f'{{"webhooks":[{",".join(dated)}]}}'
    assert all(date.endswith("Z") for date in dates)
    stored = Subscription.objects.values_list("created_at", flat=True)
    assert [datetime.fromisoformat(date) for date in dates] == sorted(stored)


def test_the_list_is_oldest_first_without_deleted_webhooks(alice: Client) -> None:
    ids = [subscribe(alice, event)[event] for event in ALL]
    assert [webhook["webhook_id"] for webhook in list_webhooks(alice)] == ids

    alice.delete(f"/webhooks/{ids[0]}")
    new = subscribe(alice, ALL[0])[ALL[0]]
    assert [webhook["webhook_id"] for webhook in list_webhooks(alice)] == [*ids[1:], new]


def test_the_list_is_empty_without_webhooks(alice: Client, bob: Client) -> None:
    assert alice.get("/webhooks?broker_id=alice").content == b'{"webhooks":[]}'
    subscribe(alice)
    assert bob.get("/webhooks?broker_id=bob").content == b'{"webhooks":[]}'


def test_the_list_requires_broker_id_and_accepts_no_other_parameter(alice: Client, bob: Client) -> None:
    operator = api.operator()
    for client in (alice, operator):
        assert assert_rejected(client, "GET", "/webhooks").fields == {"broker_id": "required"}
    for name in ("limit", "cursor", "event"):
        assert assert_rejected(alice, "GET", f"/webhooks?broker_id=alice&{name}=1").fields == {
            name: "unknown_parameter"
        }
    for invalid in ("", "a b", "x" * 65, "%00", "%C3%A9"):
        assert assert_rejected(operator, "GET", f"/webhooks?broker_id={invalid}").fields == {"broker_id": "pattern"}
    for other in ("bob", "nobody", ""):
        assert assert_rejected(alice, "GET", f"/webhooks?broker_id={other}").code == "broker_mismatch"
    assert assert_rejected(operator, "GET", "/webhooks?broker_id=nobody").code == "broker_not_found"
    assert operator.get("/webhooks?broker_id=bob").body == {"webhooks": []}
    assert assert_rejected(alice, "GET", "/webhooks?broker_id=bob&broker_id=alice").code == "broker_mismatch"


# --- Delete ---------------------------------------------------------------------------------------------------------


def test_a_delete_removes_only_its_webhook(alice: Client) -> None:
    ids = subscribe(alice)
    response = alice.delete(f"/webhooks/{ids['order.expired']}")

    assert (response.status, response.content) == (204, b"")
    assert {webhook["event"] for webhook in list_webhooks(alice)} == {"trade.executed", "order.cancelled"}
    assert alice.delete(f"/webhooks/{ids['trade.executed'].upper()}").status == 204


def test_a_delete_of_an_unknown_or_foreign_webhook_is_404(alice: Client, bob: Client) -> None:
    (deleted, existing, _) = subscribe(alice).values()
    alice.delete(f"/webhooks/{deleted}")

    for client, webhook_id in [(alice, deleted), (alice, UNKNOWN_ID), (bob, existing), (bob, deleted)]:
        response = assert_rejected(client, "DELETE", f"/webhooks/{webhook_id}")
        assert (response.status, response.code) == (404, "webhook_not_found")
    malformed_ids = ["x", existing[:-1], f"{existing}0", existing.replace("-", ""), f"{{{existing}}}"]
    for malformed in [*malformed_ids, f"{existing}%0A", f"{existing}/", "%00"]:
        response = assert_rejected(alice, "DELETE", f"/webhooks/{malformed}")
        assert (response.status, response.code) == (404, "not_found"), malformed


def test_a_delete_accepts_no_parameters_and_no_list(alice: Client) -> None:
    (webhook_id, *_) = subscribe(alice).values()

    assert assert_rejected(alice, "DELETE", f"/webhooks/{webhook_id}?force=1").fields == {"force": "unknown_parameter"}
    assert assert_rejected(alice, "DELETE", "/webhooks?broker_id=alice").code == "method_not_allowed"
    assert assert_rejected(alice, "GET", f"/webhooks/{webhook_id}").code == "method_not_allowed"


def test_no_delivery_is_written_for_a_deleted_webhook(alice: Client, bob: Client) -> None:
    ids = subscribe(alice, "trade.executed")
    trading.place(Side.ASK, 1, "10.00", by="bob")
    trading.place(Side.BID, 1, "10.00", by="alice")
    alice.delete(f"/webhooks/{ids['trade.executed']}")
    trading.place(Side.ASK, 1, "10.00", by="bob")
    trading.place(Side.BID, 1, "10.00", by="alice")

    assert (Event.objects.filter(broker="alice").count(), Delivery.objects.count()) == (2, 1)


# --- Permissions ----------------------------------------------------------------------------------------------------


def test_readers_and_operators_can_only_list_webhooks(alice: Client, reader: Client) -> None:
    (webhook_id, *_) = subscribe(alice).values()
    for client in (reader, api.operator()):
        assert list_webhooks(client) == list_webhooks(alice)
        assert refused_post(client, BODY).code == "scope_missing"
        assert assert_rejected(client, "DELETE", f"/webhooks/{webhook_id}").code == "scope_missing"


def test_errors_follow_the_precedence_of_the_contract(alice: Client, bob: Client, reader: Client) -> None:
    invalid = BODY | {"url": "x"}
    for client, body, status, code in [
        (Client(None), b"{", 401, "unauthenticated"),
        (alice, b'{"broker_id": "bob"', 400, "malformed_request"),
        (reader, b"[]", 400, "malformed_request"),
        (reader, invalid, 403, "scope_missing"),
        (alice, invalid | {"broker_id": "bob"}, 403, "broker_mismatch"),
        (alice, invalid | {"broker_id": "nobody"}, 403, "broker_mismatch"),
        (alice, invalid | {"broker_id": "a b"}, 403, "broker_mismatch"),
        (alice, invalid, 400, "validation_error"),
    ]:
        response = refused_post(client, body)
        assert (response.status, response.code) == (status, code), body


# --- Fields ---------------------------------------------------------------------------------------------------------

# Field: JSON values that are invalid for it, separated by white space, and the fields of the errors.
INVALID: dict[str, dict[str, list[str]]] = {
    "broker_id": {'null 1 true [] {} ["alice"] {"alice":1}': ["broker_id"]},
    "url": {'null 1 1.5 true [] {} "" ["https://a/"] {"https://a/":1}': ["url"]},
    "events": {
        'null 1 true {} [] "" "trade.executed" {"0":"trade.executed"}': ["events"],
        r'[null] [1] [true] [""] ["trade"] ["TRADE.EXECUTED"] ["trade.executed\u0020"] ["\u0000"] [[]] [{}]'
        r' [["trade.executed"]] ["trade.executed,order.expired"] ["order.placed"] [1e400]': ["events.0"],
        '["trade.executed","x"] ["trade.executed",null,"order.expired"]': ["events.1"],
        '["x","trade.executed",2]': ["events.0", "events.2"],
    },
    "webhook_id": {f'null "{UNKNOWN_ID}"': ["webhook_id"]},
    "event": {'"trade.executed"': ["event"]},
    "": {"1": [""]},
}


@pytest.mark.parametrize("field", INVALID)
def test_every_invalid_value_of_a_field_is_400_on_that_field(alice: Client, field: str) -> None:
    for values, fields in INVALID[field].items():
        for value in values.split():
            response = refused_post(alice, BODY | {field: token(value)})
            assert (response.status, response.code) == (400, "validation_error"), value
            assert list(response.fields) == fields, value


def test_missing_required_fields_are_listed(alice: Client) -> None:
    for field in BODY:
        assert refused_post(alice, without(BODY, field)).fields == {field: "required"}
    assert refused_post(alice, {}).fields == dict.fromkeys(BODY, "required")


def test_all_invalid_fields_are_listed_together(alice: Client) -> None:
    response = refused_post(alice, {"broker_id": 1, "url": "http://169.254.169.254/", "events": ["x"], "colour": 1})

    assert response.fields == {
        "broker_id": "invalid",
        "url": "blocked_address",
        "events.0": "invalid",
        "colour": "unknown_field",
    }
    assert refused_post(alice, {"broker_id": None, "url": None, "events": []}).fields == {
        "broker_id": "null",
        "url": "null",
        "events": "min_length",
    }


def test_validation_stops_at_the_maximum_number_of_errors(alice: Client) -> None:
    body = BODY | {"events": [1] * 30_000}
    errors: list[FieldError] = []
    validate(SubscribeSerializer, body, errors)

    assert len(errors) == len(refused_post(alice, body).fields) == 50


# --- URLs -----------------------------------------------------------------------------------------------------------

LONG_LABEL = "a" * 63
VALID_URLS = [
    "http://a",
    "http://a/",
    "http://a?x=1",
    "http://a:1/",
    "http://a:65535",
    "http://a:00080/",
    "HTTPS://Receiver.EXAMPLE:8443/Hook?A=b",
    "https://a.example./",
    "https://a_b-c.example/",
    "https://xn--bcher-kva.example/",
    "https://a/%20%C3%A9%00%2F%5C%40%23",
    "https://a/-._~!$&'()*+,;=:@/[x]?y=://b@c:80/&z=[1]",
    "http://localhost:8000/hook",
    "http://127.0.0.1:8000/hook",
    "http://[::1]:8000/hook",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://10.0.0.1/",
    f"https://{LONG_LABEL}.example/",
    f"https://{'.'.join([LONG_LABEL] * 3)}.{'b' * 61}/",  # 253 characters
]

# As JSON, separated by white space.
INVALID_URLS = {
    "no URL": r"x receiver.example receiver.example/hook /hook ? //receiver.example/ : ://a/ \u0000",
    "another scheme": "ftp://a/ file:///etc/passwd javascript:alert(1) data:,x ws://a/ wss://a/ gopher://a/ unix:///tmp/s"
    " httpx://a/ xhttp://a/ http+unix://a/ url:http://a/ mailto:a@b.example",
    "a scheme that looks like http": r"http\u017f://a/ \uff48ttp://a/ \u210cttp://a/ http\u200b://a/ http\u0000://a/",
    "slashes missing or too many": "http:a http:/a http:///a/ http:////a https:a.example http//a/ http:/:/a/",
    "no host": "http: http:/ http:// https:// http:/// http:///hook http://:80/ http://?a http://# http://-:a/",
    "user info": "http://u@a/ http://u:p@a/ http://@a/ http://:@a/ http://u:@a/ http://b.example@a/ http://a@b@c/"
    " http://a:80@b/ http://169.254.169.254@a/ http://a%40b/ http://u%3Ap@a/ http://[::1]@a/",
    "a fragment": "http://a/#f http://a/# http://a# http://a#f http://a/?x#y http://a#@b/ http://a:80#/ http://a/?#",
    "white space": r"\u0020http://a/ http://a/\u0020 http://a/b\u0020c http://a\u0020b/ http://\u0020a/ http://a\u0020/"
    r" ht\u0020tp://a/ http://a:80\u0020/ http://a:\u002080/ http://a/?a\u0020b http://a/\t \thttp://a/ http://a\t.b/"
    r" http://a/\n \nhttp://a/ http://a/x\r\nX:\u0020y http://a/\r http://a/\u000b http://a/\f http://a\n http://a:80\n",
    "white space that is not ASCII": r"http://a/\u00a0 \u3000http://a/ http://a/\u2028 http://a\u200b/ \ufeffhttp://a/",
    "control characters": r"http://a/\u0000 \u0000http://a/ http://a\u0000.b/ http://a/\u0001b http://a/\u001f"
    r" http://a/\u007f http://a/\u0085 http://a\b/ http://a/\u202e http://a/\u2066b",
    "an invalid port": r"http://a:/ http://a: http://a:0/ http://a:00000 http://a:65536/ http://a:99999/ http://a:-1/"
    r" http://a:080800/ http://a:+80/ http://a:8o/ http://a:80:80/ http://a:80a/ http://a:0x50/ http://a:8_0/"
    r" http://a:80.0/ http://a:\uff18\uff10/ http://[::1]:/ http://[::1]:65536/ http://[::1]80/ http://a:?x",
    "backslashes": r"http:\\\\a\\ http://a\\b/ http://a\\@b/ http://a/\\b http:/\\a/ http://a\\ http://\\a/",
    "not ASCII": r"http://b\u00fccher.example/ http://a/\u00e9 http://a/?\u00e9 http://\ud83d\udca9.example/ http://\u0430/"
    r" http://\uff11\uff16\uff19.254.169.254/ http://169\u3002254\u3002169\u3002254/ http://\u2460\u2461\u2462/"
    r" http://\u0661\u0662\u0667.0.0.1/ http://a\u2024b/ http://a\u2215b/ http://a\uff0fb/ http://a\u00adb/",
    "a percent-encoded host": "http://%61/ http://%31%36%39.254.169.254/ http://a%2eb/ http://a%00b/ http://a%2fb/"
    " http://%6c%6f%63%61%6c%68%6f%73%74/ http://a%23b/ http://a%/ http://[%3a%3a1]/",
    "brackets": r"http://[::1/ http://::1]/ http://::1/ http://[]/ http://[::1]a/ http://a[::1]/ http://[[::1]]/"
    r" http://[fe80::1%25lo]/ http://[127.0.0.1]/ http://[v1.x]/ http://[a]/ http://[1]/ http://[::1\u0020]/"
    " http://[::g]/",
    "dots": "http://./ http://../ http://a..b/ http://.a/ http://a../ http://..a/",
    "a host too long": f"http://{LONG_LABEL}a/ http://{'.'.join(['a' * 49] * 5)}.aaaa/ http://{'a.' * 127}/",
    "percent signs": "http://a/%zz http://a/% http://a/%2 http://a/%2g http://a/%%20 http://a/?x=%zz http://a/%u0041 http://a?%",
    "path characters": r"http://a/\" http://a/< http://a/> http://a/^ http://a/` http://a/{ http://a/| http://a/}",
    "host characters": r"http://a\"b/ http://a<b/ http://a>b/ http://a^b/ http://a`b/ http://a{b/ http://a|b/"
    " http://a}b/ http://a!b/ http://a$b/ http://a&b/ http://a'b/ http://a(b/ http://a)b/ http://a*b/ http://a+b/ http://a,b/"
    " http://a;b/ http://a=b/ http://a~b/ http://*/",
}


@pytest.mark.parametrize("url", VALID_URLS)
def test_a_url_is_stored_as_sent(alice: Client, url: str) -> None:
    response = alice.post("/webhooks", BODY | {"url": url})

    assert response.status == 201, response
    assert {webhook["url"] for webhook in response.body["webhooks"]} == {url}
    assert {webhook["url"] for webhook in list_webhooks(alice)} == {url}


@pytest.mark.parametrize("case", INVALID_URLS)
def test_an_invalid_url_is_400_on_url(alice: Client, case: str) -> None:
    for url in INVALID_URLS[case].split():
        response = refused_post(alice, BODY | {"url": token(f'"{url}"')})
        assert (response.status, response.code, response.fields) == (400, "validation_error", {"url": "invalid"}), url


def test_a_url_has_at_most_2048_characters(alice: Client) -> None:
    assert MAX_URL_LENGTH == 2_048
    for start in ("https://a/", "https://a/%C3%A9", "https://a/?"):
        url = start.ljust(2_048, "x")
        assert alice.post("/webhooks", BODY | {"url": url}).status in (200, 201)
        assert {webhook["url"] for webhook in list_webhooks(alice)} == {url}
        assert refused_post(alice, BODY | {"url": url + "x"}).fields == {"url": "max_length"}
    assert refused_post(alice, BODY | {"url": "https://a/".ljust(60_000, "x")}).fields == {"url": "max_length"}


def test_addresses_blocked_by_the_profile_are_400_on_url(alice: Client, settings: Settings) -> None:
    metadata, private, plain = "http://169.254.169.254/", "https://10.0.0.1/", "http://receiver.example/"
    assert refused_post(alice, BODY | {"url": metadata}).fields == {"url": "blocked_address"}
    for url in (private, plain):
        assert alice.post("/webhooks", BODY | {"url": url}).status in (200, 201)

    settings.WEBHOOK_ADDRESSES = AddressProfile.PUBLIC
    assert refused_post(alice, BODY | {"url": private}).fields == {"url": "blocked_address"}
    for url in (metadata, plain):
        assert refused_post(alice, BODY | {"url": url}).fields == {"url": "https_required"}
    assert alice.post("/webhooks", BODY).status == 200


# --- Arbitrary input ------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"))
SCALARS = st.none() | st.booleans() | st.integers() | TEXT | st.sampled_from([*EventType, URL, "alice"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=5)
URLS = st.builds(
    "".join, st.lists(st.sampled_from([*"/:@#?[]%.\\ \t0a", "http", "https", "://", "::1", "127.1"]) | TEXT)
)
FIELDS = st.fixed_dictionaries({}, optional={"broker_id": VALUES, "events": VALUES, "url": URLS | VALUES, "x": VALUES})


def test_no_body_causes_a_5xx_and_no_rejection_writes(alice: Client) -> None:
    state = trading.snapshot()

    @hypothesis_settings(max_examples=50, deadline=None)
    @given(FIELDS)
    def send(changes: dict[str, Any]) -> None:
        nonlocal state
        response, before = alice.post("/webhooks", BODY | changes), state
        assert response.status < 500, response
        state = trading.snapshot()
        if response.status >= 400:
            assert state == before
            api.assert_problem(response)

    send()


# --- Concurrency ----------------------------------------------------------------------------------------------------

THREADS, ROUNDS = 12, 10


@pytest.mark.django_db(transaction=True)
def test_concurrent_registrations_succeed_and_leave_one_result(alice: Client) -> None:
    random = Random(1)

    def post(number: int) -> ApiResponse:
        body = {"url": f"{URL}/{number}", "events": random.sample(ALL, 3)}
        return alice.post("/webhooks", BODY | body)

    for expected in [201] + [200] * (ROUNDS - 1):
        responses = run_concurrently([partial(post, number) for number in range(THREADS)])
        assert sorted(response.status for response in responses) == [200] * (THREADS - 1) + [expected]
        found = {(each["event"], each["webhook_id"]) for response in responses for each in response.body["webhooks"]}
        assert found == {(each["event"], each["webhook_id"]) for each in list_webhooks(alice)}
        assert (len(found), len({each["url"] for each in list_webhooks(alice)})) == (3, 1)
        assert Subscription.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_registrations_in_opposite_orders_do_not_deadlock(alice: Client) -> None:
    first, middle, last = sorted(ALL)
    subscribe(alice)

    def post(*events: str) -> int:
        return alice.post("/webhooks", BODY | {"url": OTHER_URL, "events": events}).status

    with transaction.atomic():  # a third session holds the middle row until both wait, each with its first row locked
        Subscription.objects.select_for_update().get(event_type=middle)
        posts = [start_thread(partial(post, first, middle, last)), start_thread(partial(post, last, middle, first))]
        assert wait_until(lambda: count_waiting_sessions() == 2, TIMEOUT_SECONDS)
    assert [posting.result(TIMEOUT_SECONDS) for posting in posts] == [200, 200]


def count_waiting_sessions() -> int:
    """Count the sessions that wait for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return int(cursor.fetchone()[0])


@pytest.mark.django_db(transaction=True)
def test_concurrent_registrations_and_deletes_are_serialized(alice: Client) -> None:
    def post() -> ApiResponse:
        return alice.post("/webhooks", BODY | {"events": ["trade.executed"]})

    for _ in range(ROUNDS):
        old = subscribe(alice, "trade.executed", status=200 if list_webhooks(alice) else 201)["trade.executed"]
        jobs: list[Callable[[], ApiResponse]] = [post, partial(alice.delete, f"/webhooks/{old}")]
        responses = run_concurrently(jobs * (THREADS // 2))
        posts, deletes = responses[::2], responses[1::2]
        assert sorted(response.status for response in deletes) == [204] + [404] * (len(deletes) - 1)
        results = {(response.status, response.body["webhooks"][0]["webhook_id"]) for response in posts}
        new = {id_ for status, id_ in results if id_ != old}
        assert {status for status, id_ in results if id_ == old} <= {200}
        assert [each["webhook_id"] for each in list_webhooks(alice)] == [*new]
        assert sum(response.status == 201 for response in posts) == len(new) <= 1


@pytest.mark.django_db(transaction=True)
def test_trading_continues_while_webhooks_change(alice: Client, bob: Client) -> None:
    def trade(by: str, other: str) -> None:
        for _ in range(ROUNDS):
            trading.execute_one(trading.order(Side.ASK, 1, "10.00", by=by))
            trading.execute_one(trading.order(Side.BID, 1, "10.00", by=other))

    def change(number: int) -> None:
        for _ in range(ROUNDS):
            post = alice.post("/webhooks", BODY | {"url": f"{URL}/{number}", "events": ALL[number:] + ALL[:number]})
            assert post.status in (200, 201), post
            delete = alice.delete(f"/webhooks/{post.body['webhooks'][0]['webhook_id']}")
            assert delete.status in (204, 404), delete

    trades = [partial(trade, "alice", "bob"), partial(trade, "bob", "alice")] * 3
    changes = [partial(change, number % 3) for number in range(6)]
    run_concurrently([*trades, *changes])
    trading.assert_sound()
    events = Event.objects.filter(broker="alice", type="trade.executed")
    assert Delivery.objects.count() <= events.count() == 6 * ROUNDS
    assert not Delivery.objects.exclude(event__broker="alice").exists()
