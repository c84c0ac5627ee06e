"""`/webhooks`: what it takes, what it answers, what it refuses (contract: "Webhooks").

Which addresses a URL may have is `test_addresses.py`; the tests run in the `local` profile.
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
from tests.api import refused, token, without
from tests.exchange.client import Answer, Client
from tests.trading import BY, PATIENCE_SECONDS, at_once, in_thread
from webhooks.addresses import AddressProfile
from webhooks.models import MAX_URL_LENGTH, Delivery, Event, EventType, Subscription
from webhooks.serializers import SubscribeSerializer

pytestmark = pytest.mark.django_db(transaction=True)

URL, OTHER_URL = "https://receiver.example/hook", "https://receiver.example/other"
ALL = ["trade.executed", "order.expired", "order.cancelled"]
HOOKS = {"broker_id": "alice", "url": URL, "events": ALL}
NO_ID = uuid.UUID(int=0)
KIBI_64 = 64 * 1024


@pytest.fixture
def alice(db: None) -> Client:
    return api.broker("alice")


@pytest.fixture
def bob(db: None, alice: Client) -> Client:
    return api.broker("bob")


@pytest.fixture
def reader(alice: Client) -> Client:
    """Alice's key for looking only."""
    return Client(exchange_services.issue_key("alice", scopes=[Scope.READ], by=BY)[1])


def subscribed(client: Client, *events: str, status: int = 201, **more: Any) -> dict[str, str]:
    """The ids by event, of a `POST` that must be answered with this status."""
    answer = client.post("/webhooks", HOOKS | {"events": events or ALL} | more)
    assert answer.status == status, answer
    ids = {webhook["event"]: webhook["webhook_id"] for webhook in answer.body["webhooks"]}
    assert len(ids) == len(answer.body["webhooks"])
    return ids


def listed(client: Client, broker_id: str = "alice") -> list[dict[str, str]]:
    answer = client.get(f"/webhooks?broker_id={broker_id}")
    assert answer.status == 200, answer
    assert list(answer.body) == ["webhooks"]
    webhooks: list[dict[str, str]] = answer.body["webhooks"]
    return webhooks


def refused_hooks(client: Client, body: Any, **options: str) -> Answer:
    return refused(client, "POST", "/webhooks", body, **options)


# --- Subscribing ----------------------------------------------------------------------------------------------------


def test_a_subscription_is_answered_with_the_very_object_of_the_contract(db: None) -> None:
    client = api.broker("broker-123")
    answer = client.post(
        "/webhooks",
        b'{"broker_id": "broker-123", "url": "https://receiver.example/hook?a=1",'
        b' "events": ["trade.executed", "order.expired", "order.cancelled"]}',
    )

    ids = [webhook["webhook_id"] for webhook in answer.body["webhooks"]]
    assert answer.status == 201
    assert answer.headers["Content-Type"] == "application/json"
    assert {uuid.UUID(id_).version for id_ in ids} == {7}
    assert answer.content.decode() == (
        '{"webhooks":['
        f'{{"webhook_id":"{ids[0]}","broker_id":"broker-123","event":"trade.executed","url":"https://receiver.example/hook?a=1"}},'
        f'{{"webhook_id":"{ids[1]}","broker_id":"broker-123","event":"order.expired","url":"https://receiver.example/hook?a=1"}},'
        f'{{"webhook_id":"{ids[2]}","broker_id":"broker-123","event":"order.cancelled","url":"https://receiver.example/hook?a=1"}}'
        "]}"
    )


def test_there_is_one_object_per_event_in_the_order_asked_for(alice: Client) -> None:
    ids = subscribed(alice)
    for count in (1, 2, 3):
        for events in permutations(ALL, count):
            answer = alice.post("/webhooks", HOOKS | {"events": events})
            assert answer.status == 200
            assert [(each["event"], each["webhook_id"]) for each in answer.body["webhooks"]] == [
                (event, ids[event]) for event in events
            ]


def test_an_event_asked_for_twice_is_one(alice: Client) -> None:
    twice = ["order.expired", "trade.executed", "order.expired", "order.expired", "trade.executed"]

    assert list(subscribed(alice, *twice)) == ["order.expired", "trade.executed"]
    assert len(listed(alice)) == 2


def test_a_body_full_of_one_event_is_one(alice: Client) -> None:
    assert list(subscribed(alice, *["order.expired"] * 4_000)) == ["order.expired"]
    assert Subscription.objects.count() == 1
    assert refused_hooks(alice, HOOKS | {"events": ["order.expired"] * 10_000}).code == "too_large"


def test_it_is_201_when_any_is_new_and_200_when_all_existed(alice: Client) -> None:
    first = subscribed(alice, "trade.executed", status=201)
    assert subscribed(alice, "trade.executed", status=200) == first
    both = subscribed(alice, "trade.executed", "order.expired", status=201)
    assert subscribed(alice, "order.expired", "trade.executed", status=200) == both
    everything = subscribed(alice, *ALL, status=201)
    assert subscribed(alice, *ALL, url=OTHER_URL, status=200) == everything
    assert first.items() < both.items() < everything.items()


def test_a_new_url_replaces_the_old_one_and_keeps_the_id_and_the_date(alice: Client) -> None:
    subscribed(alice)
    before = listed(alice)
    subscribed(alice, "trade.executed", "order.cancelled", url=OTHER_URL, status=200)

    urls = {"trade.executed": OTHER_URL, "order.expired": URL, "order.cancelled": OTHER_URL}
    assert listed(alice) == [webhook | {"url": urls[webhook["event"]]} for webhook in before]


def test_the_same_url_again_changes_nothing(alice: Client) -> None:
    first = alice.post("/webhooks", HOOKS)
    before = trading.everything()
    again = alice.post("/webhooks", HOOKS)

    assert (first.status, again.status) == (201, 200)
    assert again.content == first.content
    assert trading.everything() == before


def test_each_broker_has_its_own(alice: Client, bob: Client) -> None:
    mine = subscribed(alice)
    his = subscribed(bob, broker_id="bob")
    subscribed(bob, broker_id="bob", url=OTHER_URL, status=200)

    assert not set(mine.values()) & set(his.values())
    assert {webhook["url"] for webhook in listed(alice)} == {URL}
    assert {webhook["url"] for webhook in listed(bob, "bob")} == {OTHER_URL}


def test_after_a_delete_the_next_is_new(alice: Client) -> None:
    first = subscribed(alice)
    gone = first["order.expired"]
    assert alice.delete(f"/webhooks/{gone}").status == 204

    second = subscribed(alice, status=201)
    assert second == first | {"order.expired": second["order.expired"]}
    assert second["order.expired"] != gone
    assert refused(alice, "DELETE", f"/webhooks/{gone}").code == "webhook_not_found"
    assert [webhook["webhook_id"] for webhook in listed(alice)][-1] == second["order.expired"]


def test_a_suspended_broker_may_subscribe_and_unsubscribe(alice: Client) -> None:
    services.suspend("alice", cancel_orders=False, by=BY)
    ids = subscribed(alice)
    subscribed(alice, url=OTHER_URL, status=200)
    for webhook_id in ids.values():
        assert alice.delete(f"/webhooks/{webhook_id}").status == 204
    assert listed(alice) == []


# --- Looking --------------------------------------------------------------------------------------------------------


def test_the_list_is_the_same_objects_with_their_dates(alice: Client) -> None:
    objects = [alice.post("/webhooks", HOOKS | {"events": [event]}).content.decode()[13:-3] for event in ALL]
    answer = alice.get("/webhooks?broker_id=alice")

    dates = [webhook["created_at"] for webhook in answer.body["webhooks"]]
    dated = [f'{each},"created_at":"{date}"}}' for each, date in zip(objects, dates, strict=True)]
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.content.decode() == f'{{"webhooks":[{",".join(dated)}]}}'
    assert all(date.endswith("Z") for date in dates)
    stored = Subscription.objects.values_list("created_at", flat=True)
    assert [datetime.fromisoformat(date) for date in dates] == sorted(stored)


def test_the_list_begins_with_the_oldest_and_forgets_what_was_deleted(alice: Client) -> None:
    ids = [subscribed(alice, event)[event] for event in ALL]
    assert [webhook["webhook_id"] for webhook in listed(alice)] == ids

    alice.delete(f"/webhooks/{ids[0]}")
    new = subscribed(alice, ALL[0])[ALL[0]]
    assert [webhook["webhook_id"] for webhook in listed(alice)] == [*ids[1:], new]


def test_the_list_is_empty_when_there_are_none(alice: Client, bob: Client) -> None:
    assert alice.get("/webhooks?broker_id=alice").content == b'{"webhooks":[]}'
    subscribed(alice)
    assert bob.get("/webhooks?broker_id=bob").content == b'{"webhooks":[]}'


def test_the_list_needs_a_broker_and_takes_nothing_else(alice: Client, bob: Client) -> None:
    operator = api.operator()
    for client in (alice, operator):
        assert refused(client, "GET", "/webhooks").fields == {"broker_id": "required"}
    for name in ("limit", "cursor", "event"):
        assert refused(alice, "GET", f"/webhooks?broker_id=alice&{name}=1").fields == {name: "unknown_parameter"}
    for bad in ("", "a b", "x" * 65, "%00", "%C3%A9"):
        assert refused(operator, "GET", f"/webhooks?broker_id={bad}").fields == {"broker_id": "pattern"}
    for other in ("bob", "nobody", ""):
        assert refused(alice, "GET", f"/webhooks?broker_id={other}").code == "broker_mismatch"
    assert refused(alice, "GET", "/webhooks?broker_id=bob&broker_id=alice").code == "broker_mismatch"


# --- Unsubscribing --------------------------------------------------------------------------------------------------


def test_a_deleted_webhook_is_gone_and_the_others_stay(alice: Client) -> None:
    ids = subscribed(alice)
    answer = alice.delete(f"/webhooks/{ids['order.expired']}")

    assert (answer.status, answer.content) == (204, b"")
    assert {webhook["event"] for webhook in listed(alice)} == {"trade.executed", "order.cancelled"}
    assert alice.delete(f"/webhooks/{ids['trade.executed'].upper()}").status == 204


def test_what_is_not_there_to_be_deleted_is_404(alice: Client, bob: Client) -> None:
    (gone, mine, _) = subscribed(alice).values()
    alice.delete(f"/webhooks/{gone}")

    for client, webhook_id in [(alice, gone), (alice, NO_ID), (bob, mine), (bob, gone)]:
        answer = refused(client, "DELETE", f"/webhooks/{webhook_id}")
        assert (answer.status, answer.code) == (404, "webhook_not_found")
    for malformed in (
        "x",
        mine[:-1],
        f"{mine}0",
        mine.replace("-", ""),
        f"{{{mine}}}",
        f"{mine}%0A",
        f"{mine}/",
        "%00",
    ):
        answer = refused(alice, "DELETE", f"/webhooks/{malformed}")
        assert (answer.status, answer.code) == (404, "not_found"), malformed


def test_a_delete_takes_no_parameters_and_there_is_none_of_the_whole_list(alice: Client) -> None:
    (mine, *_) = subscribed(alice).values()

    assert refused(alice, "DELETE", f"/webhooks/{mine}?force=1").fields == {"force": "unknown_parameter"}
    assert refused(alice, "DELETE", "/webhooks?broker_id=alice").code == "method_not_allowed"
    assert refused(alice, "GET", f"/webhooks/{mine}").code == "method_not_allowed"


def test_nothing_more_is_written_for_a_deleted_webhook(alice: Client, bob: Client) -> None:
    ids = subscribed(alice, "trade.executed")
    trading.place(Side.ASK, 1, "10.00", by="bob")
    trading.place(Side.BID, 1, "10.00", by="alice")
    alice.delete(f"/webhooks/{ids['trade.executed']}")
    trading.place(Side.ASK, 1, "10.00", by="bob")
    trading.place(Side.BID, 1, "10.00", by="alice")

    assert (Event.objects.filter(broker="alice").count(), Delivery.objects.count()) == (2, 1)


# --- Who may --------------------------------------------------------------------------------------------------------


def test_a_reader_and_an_operator_may_look_and_nothing_else(alice: Client, reader: Client) -> None:
    (mine, *_) = subscribed(alice).values()
    for client in (reader, api.operator()):
        assert listed(client) == listed(alice)
        assert refused_hooks(client, HOOKS).code == "scope_missing"
        assert refused(client, "DELETE", f"/webhooks/{mine}").code == "scope_missing"
    assert listed(api.operator(), "nobody") == []


def test_errors_follow_the_precedence_of_the_contract(alice: Client, bob: Client, reader: Client) -> None:
    bad = HOOKS | {"url": "x"}
    for client, body, status, code in [
        (Client(None), b"{", 401, "unauthenticated"),
        (alice, b'{"broker_id": "bob"', 400, "malformed_request"),
        (reader, b"[]", 400, "malformed_request"),
        (reader, bad, 403, "scope_missing"),
        (alice, bad | {"broker_id": "bob"}, 403, "broker_mismatch"),
        (alice, bad | {"broker_id": "nobody"}, 403, "broker_mismatch"),
        (alice, bad | {"broker_id": "a b"}, 403, "broker_mismatch"),
        (alice, bad, 400, "validation_error"),
    ]:
        answer = refused_hooks(client, body)
        assert (answer.status, answer.code) == (status, code), body


# --- Fields ---------------------------------------------------------------------------------------------------------

# By field: the JSON values that it refuses, apart from each other by white space, and the fields blamed.
BAD: dict[str, dict[str, list[str]]] = {
    "broker_id": {'null 1 true [] {} ["alice"] {"alice":1}': ["broker_id"]},
    "url": {'null 1 1.5 true [] {} "" ["https://a/"] {"https://a/":1}': ["url"]},
    "events": {
        'null 1 true {} [] "" "trade.executed" {"0":"trade.executed"}': ["events"],
        r'[null] [1] [true] [""] ["trade"] ["TRADE.EXECUTED"] ["trade.executed\u0020"] ["\u0000"] [[]] [{}]'
        r' [["trade.executed"]] ["trade.executed,order.expired"] ["order.placed"] [1e400]': ["events.0"],
        '["trade.executed","x"] ["trade.executed",null,"order.expired"]': ["events.1"],
        '["x","trade.executed",2]': ["events.0", "events.2"],
    },
    "webhook_id": {f'null "{NO_ID}"': ["webhook_id"]},
    "event": {'"trade.executed"': ["event"]},
    "": {"1": [""]},
}


@pytest.mark.parametrize("field", BAD)
def test_every_invalid_value_of_a_field_is_400_on_that_field(alice: Client, field: str) -> None:
    for values, blamed in BAD[field].items():
        for value in values.split():
            answer = refused_hooks(alice, HOOKS | {field: token(value)})
            assert (answer.status, answer.code) == (400, "validation_error"), value
            assert list(answer.fields) == blamed, value


def test_missing_required_fields_are_listed(alice: Client) -> None:
    for field in HOOKS:
        assert refused_hooks(alice, without(HOOKS, field)).fields == {field: "required"}
    assert refused_hooks(alice, {}).fields == dict.fromkeys(HOOKS, "required")


def test_all_invalid_fields_are_listed_together(alice: Client) -> None:
    answer = refused_hooks(alice, {"broker_id": 1, "url": "http://169.254.169.254/", "events": ["x"], "colour": 1})

    assert answer.fields == {
        "broker_id": "invalid",
        "url": "blocked_address",
        "events.0": "invalid",
        "colour": "unknown_field",
    }
    assert refused_hooks(alice, {"broker_id": None, "url": None, "events": []}).fields == {
        "broker_id": "null",
        "url": "null",
        "events": "min_length",
    }


def test_of_a_body_full_of_nonsense_no_more_is_looked_at_than_is_named(alice: Client) -> None:
    nonsense = HOOKS | {"events": [1] * 30_000}
    errors: list[FieldError] = []
    validate(SubscribeSerializer, nonsense, errors)

    assert len(errors) == len(refused_hooks(alice, nonsense).fields) == 50


# --- URLs -----------------------------------------------------------------------------------------------------------

LONG_LABEL = "a" * 63
GOOD_URLS = [
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

# As JSON writes them, apart from each other by white space.
BAD_URLS = {
    "no URL": r"x receiver.example receiver.example/hook /hook ? //receiver.example/ : ://a/ \u0000",
    "another scheme": "ftp://a/ file:///etc/passwd javascript:alert(1) data:,x ws://a/ wss://a/ gopher://a/ unix:///tmp/s"
    " httpx://a/ xhttp://a/ http+unix://a/ url:http://a/ mailto:a@b.example",
    "a scheme that only looks like it": r"http\u017f://a/ \uff48ttp://a/ \u210cttp://a/ http\u200b://a/ http\u0000://a/",
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
    "a port that is none": r"http://a:/ http://a: http://a:0/ http://a:00000 http://a:65536/ http://a:99999/ http://a:-1/"
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
    "characters of no path": r"http://a/\" http://a/< http://a/> http://a/^ http://a/` http://a/{ http://a/| http://a/}",
    "characters of no host": r"http://a\"b/ http://a<b/ http://a>b/ http://a^b/ http://a`b/ http://a{b/ http://a|b/"
    " http://a}b/ http://a!b/ http://a$b/ http://a&b/ http://a'b/ http://a(b/ http://a)b/ http://a*b/ http://a+b/ http://a,b/"
    " http://a;b/ http://a=b/ http://a~b/ http://*/",
}


@pytest.mark.parametrize("url", GOOD_URLS)
def test_a_url_is_kept_as_it_was_written(alice: Client, url: str) -> None:
    answer = alice.post("/webhooks", HOOKS | {"url": url})

    assert answer.status == 201, answer
    assert {webhook["url"] for webhook in answer.body["webhooks"]} == {url}
    assert {webhook["url"] for webhook in listed(alice)} == {url}


@pytest.mark.parametrize("case", BAD_URLS)
def test_a_bad_url_is_400_on_url(alice: Client, case: str) -> None:
    for url in BAD_URLS[case].split():
        answer = refused_hooks(alice, HOOKS | {"url": token(f'"{url}"')})
        assert (answer.status, answer.code, answer.fields) == (400, "validation_error", {"url": "invalid"}), url


def test_a_url_may_have_2048_characters(alice: Client) -> None:
    assert MAX_URL_LENGTH == 2_048
    for start in ("https://a/", "https://a/%C3%A9", "https://a/?"):
        url = start.ljust(2_048, "x")
        assert alice.post("/webhooks", HOOKS | {"url": url}).status in (200, 201)
        assert {webhook["url"] for webhook in listed(alice)} == {url}
        assert refused_hooks(alice, HOOKS | {"url": url + "x"}).fields == {"url": "max_length"}
    assert refused_hooks(alice, HOOKS | {"url": "https://a/".ljust(60_000, "x")}).fields == {"url": "max_length"}


def test_blocked_addresses_are_400_on_url_as_the_profile_says(alice: Client, settings: Settings) -> None:
    metadata, private, plain = "http://169.254.169.254/", "https://10.0.0.1/", "http://receiver.example/"
    assert refused_hooks(alice, HOOKS | {"url": metadata}).fields == {"url": "blocked_address"}
    for url in (private, plain):
        assert alice.post("/webhooks", HOOKS | {"url": url}).status in (200, 201)

    settings.WEBHOOK_ADDRESSES = AddressProfile.PUBLIC
    assert refused_hooks(alice, HOOKS | {"url": private}).fields == {"url": "blocked_address"}
    for url in (metadata, plain):
        assert refused_hooks(alice, HOOKS | {"url": url}).fields == {"url": "https_required"}
    assert alice.post("/webhooks", HOOKS).status == 200


# --- Anything at all ------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"))
SCALARS = st.none() | st.booleans() | st.integers() | TEXT | st.sampled_from([*EventType, URL, "alice"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=5)
URLS = st.builds(
    "".join, st.lists(st.sampled_from([*"/:@#?[]%.\\ \t0a", "http", "https", "://", "::1", "127.1"]) | TEXT)
)
FIELDS = st.fixed_dictionaries({}, optional={"broker_id": VALUES, "events": VALUES, "url": URLS | VALUES, "x": VALUES})


def test_no_body_causes_a_5xx_and_no_rejection_writes(alice: Client) -> None:
    state = trading.everything()

    @hypothesis_settings(max_examples=50, deadline=None)
    @given(FIELDS)
    def send(changes: dict[str, Any]) -> None:
        nonlocal state
        answer, before = alice.post("/webhooks", HOOKS | changes), state
        assert answer.status < 500, answer
        state = trading.everything()
        if answer.status >= 400:
            assert state == before
            api.assert_problem(answer)

    send()


# --- Several at a time ----------------------------------------------------------------------------------------------

THREADS, ROUNDS = 12, 10


@pytest.mark.django_db(transaction=True)
def test_subscriptions_at_once_never_fail_and_end_as_one_of_them(alice: Client) -> None:
    random = Random(1)

    def post(number: int) -> Answer:
        body = {"url": f"{URL}/{number}", "events": random.sample(ALL, 3)}
        return alice.post("/webhooks", HOOKS | body)

    for expected in [201] + [200] * (ROUNDS - 1):
        answers = at_once([partial(post, number) for number in range(THREADS)])
        assert sorted(answer.status for answer in answers) == [200] * (THREADS - 1) + [expected]
        found = {(each["event"], each["webhook_id"]) for answer in answers for each in answer.body["webhooks"]}
        assert found == {(each["event"], each["webhook_id"]) for each in listed(alice)}
        assert (len(found), len({each["url"] for each in listed(alice)})) == (3, 1)
        assert Subscription.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_subscriptions_in_opposite_orders_do_not_wait_in_a_circle(alice: Client) -> None:
    first, middle, last = sorted(ALL)
    subscribed(alice)

    def post(*events: str) -> int:
        return alice.post("/webhooks", HOOKS | {"url": OTHER_URL, "events": events}).status

    with transaction.atomic():  # a third session holds the middle one until both wait, each with its first one locked
        Subscription.objects.select_for_update().get(event_type=middle)
        both = [in_thread(partial(post, first, middle, last)), in_thread(partial(post, last, middle, first))]
        assert wait_until(lambda: waiting_sessions() == 2, PATIENCE_SECONDS)
    assert [posting.result(PATIENCE_SECONDS) for posting in both] == [200, 200]


def waiting_sessions() -> int:
    """How many wait for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return int(cursor.fetchone()[0])


@pytest.mark.django_db(transaction=True)
def test_a_subscription_and_its_end_at_once_come_one_after_the_other(alice: Client) -> None:
    def post() -> Answer:
        return alice.post("/webhooks", HOOKS | {"events": ["trade.executed"]})

    for _ in range(ROUNDS):
        old = subscribed(alice, "trade.executed", status=200 if listed(alice) else 201)["trade.executed"]
        jobs: list[Callable[[], Answer]] = [post, partial(alice.delete, f"/webhooks/{old}")]
        answers = at_once(jobs * (THREADS // 2))
        posts, deletes = answers[::2], answers[1::2]
        assert sorted(answer.status for answer in deletes) == [204] + [404] * (len(deletes) - 1)
        told = {(answer.status, answer.body["webhooks"][0]["webhook_id"]) for answer in posts}
        new = {id_ for status, id_ in told if id_ != old}
        assert {status for status, id_ in told if id_ == old} <= {200}
        assert [each["webhook_id"] for each in listed(alice)] == [*new]
        assert sum(answer.status == 201 for answer in posts) == len(new) <= 1


@pytest.mark.django_db(transaction=True)
def test_trading_goes_on_while_its_webhooks_change(alice: Client, bob: Client) -> None:
    def trade(by: str, other: str) -> None:
        for _ in range(ROUNDS):
            trading.attempt(trading.order(Side.ASK, 1, "10.00", by=by))
            trading.attempt(trading.order(Side.BID, 1, "10.00", by=other))

    def change(number: int) -> None:
        for _ in range(ROUNDS):
            ids = alice.post("/webhooks", HOOKS | {"url": f"{URL}/{number}", "events": ALL[number:] + ALL[:number]})
            assert ids.status in (200, 201), ids
            gone = alice.delete(f"/webhooks/{ids.body['webhooks'][0]['webhook_id']}")
            assert gone.status in (204, 404), gone

    trades = [partial(trade, "alice", "bob"), partial(trade, "bob", "alice")] * 3
    changes = [partial(change, number % 3) for number in range(6)]
    at_once([*trades, *changes])
    trading.assert_sound()
    told = Event.objects.filter(broker="alice", type="trade.executed")
    assert Delivery.objects.count() <= told.count() == 6 * ROUNDS
    assert not Delivery.objects.exclude(event__broker="alice").exists()
