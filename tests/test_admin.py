"""The back office: every model can be looked at, searched and filtered, in few statements; nothing can be changed."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.utils import quote as quoted
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.models import Model, UniqueConstraint
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from exchange.admin import FILTERED_ROWS, MAX_PAGES, PAGE_ROWS, ReadOnlyAdmin, Search
from exchange.keys import new_key
from exchange.models import ApiKey, Broker, Holding, Instrument, Transfer
from exchange.rules import BrokerStatus, InstrumentStatus, Pricing, Scope
from orders.models import Order, Trade
from orders.terms import CancelReason, OrderStatus, OrderType, Side, TimeInForce
from tests import trading
from webhooks.models import Delivery, DeliveryError, Event, EventType, Subscription

pytestmark = pytest.mark.django_db(transaction=True)

MODELS = [Broker, Instrument, Holding, Transfer, ApiKey, Order, Trade, Event, Subscription, Delivery]
ALPHABETICAL = [Broker, Instrument, ApiKey]  # the others are newest first
START = datetime(2026, 1, 1, tzinfo=UTC)

each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)


def fill(first: int, end: int) -> None:
    """Rows number `first` to `end` of every model; the very first, 0, is unlike all others where there are filters."""
    for number in range(first, end):
        odd, at = number == 0, START + timedelta(seconds=number)
        broker = Broker.objects.create(
            id=f"b{number:02}",
            status=BrokerStatus.SUSPENDED if odd else BrokerStatus.ACTIVE,
            created_at=at,
            updated_at=at,
        )
        instrument = Instrument.objects.create(
            symbol=f"S{number:02}",
            status=InstrumentStatus.HALTED if odd else InstrumentStatus.TRADING,
            pricing=Pricing.MAKER if odd else Pricing.SELLER,
            created_at=at,
        )
        Holding.objects.create(broker=broker, instrument=instrument)
        amount = {"instrument": instrument, "quantity": 1} if odd else {"cash": 1}
        Transfer.objects.create(reference=f"r{number:02}", broker=broker, created_at=at, **amount)
        _, prefix, secret_hash = new_key()
        ApiKey.objects.create(
            prefix=prefix,
            secret_hash=secret_hash,
            broker=broker,
            scopes=[Scope.TRADE],
            created_at=at,
            revoked_at=at if odd else None,
        )
        order = Order.objects.create(
            broker=broker,
            instrument=instrument,
            document_number="1",
            client_order_id=f"c{number:02}",
            sequence=number,
            quantity=1,
            created_at=at,
            **(CANCELLED | {"cancelled_at": at} if odd else PENDING),
        )
        Trade.objects.create(
            instrument=instrument,
            price=1,
            quantity=1,
            taker_side=Side.ASK if odd else Side.BID,
            bid_order=order,
            ask_order=order,
            bid_broker=broker,
            ask_broker=broker,
            executed_at=at,
        )
        type_ = EventType.ORDER_EXPIRED if odd else EventType.TRADE_EXECUTED
        event = Event.objects.create(broker=broker, sequence=number, type=type_, occurred_at=at, body="{}")
        subscription = Subscription.objects.create(
            broker=broker, event_type=type_, url="https://a.example", created_at=at, deleted_at=at if odd else None
        )
        outcome = {"claimed_at": at, "completed_at": at, "error": DeliveryError.TIMEOUT} if odd else {}
        Delivery.objects.create(event=event, subscription=subscription, **outcome)


PENDING: dict[str, Any] = {
    "type": OrderType.LIMIT,
    "time_in_force": TimeInForce.GTC,
    "side": Side.BID,
    "price": 1,
    "status": OrderStatus.PENDING,
}
CANCELLED: dict[str, Any] = {
    "type": OrderType.MARKET,
    "time_in_force": TimeInForce.IOC,
    "side": Side.ASK,
    "status": OrderStatus.CANCELLED,
    "cancel_reason": CancelReason.NO_LIQUIDITY,
}


@pytest.fixture
def root(client: Client) -> Client:
    """A superuser's browser."""
    client.force_login(User.objects.create(username="root", is_staff=True, is_superuser=True))
    return client


def list_path(model: type[Model], query: str = "") -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist") + query


def path_of(row: Model, page: str = "change") -> str:
    return list_path(type(row)) + f"{quoted(row.pk)}/{page}/"


def searches_of(model: type[Model]) -> Sequence[Search]:
    used = admin.site._registry[model]
    assert isinstance(used, ReadOnlyAdmin)
    return used.searches


def filters_of(model: type[Model]) -> dict[str, str]:
    """The columns that can be filtered, each with what its links ask of it."""
    used: Any = admin.site._registry[model].list_filter
    return dict((each, "exact") if isinstance(each, str) else (each[0], "isempty") for each in used)


def everything() -> Any:
    return {model: list(model._default_manager.order_by("pk").values()) for model in MODELS}


def rows_of(model: type[Model]) -> list[Any]:
    """All rows, in the order of the list."""
    return list(model._default_manager.order_by("pk" if model in ALPHABETICAL else "-pk"))


def shown(client: Client, model: type[Model], query: str = "") -> list[Any]:
    """The rows that a list shows."""
    response = client.get(list_path(model, query))
    assert response.status_code == 200
    rows = list(response.context["cl"].result_list)
    page = response.content.decode()
    assert page.count('<th class="field-') == len(rows)
    assert all(path_of(row) in page for row in rows)
    return rows


def found(client: Client, model: type[Model], term: object) -> list[Any]:
    return shown(client, model, f"?q={quote(str(term))}")


# --- Looking --------------------------------------------------------------------------------------------------------


def test_every_model_is_there_to_be_looked_at_only() -> None:
    ours = [model for app in ("exchange", "orders", "webhooks") for model in apps.get_app_config(app).get_models()]

    assert set(ours) == set(MODELS)
    assert {model for model, used in admin.site._registry.items() if isinstance(used, ReadOnlyAdmin)} == set(ours)


@each_model
def test_a_list_shows_the_newest_first_or_the_names_in_order(root: Client, model: type[Model]) -> None:
    fill(0, 3)

    assert shown(root, model) == rows_of(model)
    with CaptureQueriesContext(connection) as statements:
        root.get(list_path(model, "?o=2.-1"))  # what nobody may ask for
    key = f'"{model._meta.db_table}"."{model._meta.pk.column}"'
    order = f"ORDER BY {key} {'ASC' if model in ALPHABETICAL else 'DESC'} LIMIT {PAGE_ROWS + 1}"
    assert statements[-1]["sql"].endswith(order)
    assert " JOIN " not in statements[-1]["sql"]


@each_model
def test_a_row_shows_all_its_fields_and_none_to_be_filled_in(root: Client, model: type[Model]) -> None:
    fill(0, 2)
    for row in rows_of(model):
        page = root.get(path_of(row)).content.decode()
        main = page[page.index('id="content-main"') :]

        fields = re.findall(r'class="form-row field-(\w+)"', main)
        assert fields == [field.name for field in model._meta.concrete_fields if field.name != "secret_hash"]
        assert main.count('<div class="readonly">') == len(fields)
        assert re.findall(r"<(select|textarea|button)", main) == []
        assert re.findall(r'<input[^>]*name="(\w+)"', main) == ["csrfmiddlewaretoken"]


def test_the_hash_of_a_keys_secret_is_nowhere(root: Client) -> None:
    fill(0, 2)
    paths = [list_path(ApiKey), list_path(ApiKey, "?q=b01"), list_path(ApiKey, "?revoked_at__isempty=1")]
    for key in ApiKey.objects.all():
        hashed = bytes(key.secret_hash)
        for path in [*paths, path_of(key), path_of(key, "history")]:
            page = root.get(path).content
            assert b"secret" not in page.lower()
            assert hashed.hex().encode() not in page.lower()
            assert repr(hashed)[2:-1] not in unescape(page.decode())


def test_pages_are_told_from_one_row_more(root: Client) -> None:
    fill(0, PAGE_ROWS)
    page = root.get(list_path(Transfer)).content.decode()
    assert f"\n{PAGE_ROWS} transfers" in page
    assert "this-page" not in page

    fill(PAGE_ROWS, PAGE_ROWS + 10)
    page = root.get(list_path(Transfer)).content.decode()
    assert f"\nmore than {PAGE_ROWS} transfers" in page
    assert '<span class="this-page">1</span>' in page
    assert "?p=2" in page
    assert "?p=3" not in page
    assert f"\n{PAGE_ROWS + 10} transfers" in root.get(list_path(Transfer, "?p=2")).content.decode()
    assert shown(root, Transfer) == rows_of(Transfer)[:PAGE_ROWS]
    assert shown(root, Transfer, "?p=2") == rows_of(Transfer)[PAGE_ROWS:]
    assert root.get(list_path(Transfer, "?p=3")).headers["Location"].endswith("?e=1")


# --- Searching and filtering ----------------------------------------------------------------------------------------


def test_exact_values_are_found(root: Client) -> None:
    for broker_id in ("alice", "AAPL"):  # who is called like an instrument
        trading.broker(broker_id)
    ask = trading.place(Side.ASK, 5, "10")
    bid = trading.place(Side.BID, 3, "10", by="AAPL", client_order_id="mine")
    trading.place(Side.BID, 1, "1", by="AAPL")
    trade, newest = Trade.objects.get(), Order.objects.latest("created_at")
    event = Event.objects.get(broker="AAPL")
    subscription, deleted = (
        Subscription.objects.create(
            broker_id="alice", event_type=event.type, url="https://a.example", created_at=START, deleted_at=deleted_at
        )
        for deleted_at in (None, START)
    )
    delivery = Delivery.objects.create(event=event, subscription=subscription)
    transfer = Transfer.objects.get(broker="alice", instrument=None)
    Transfer.objects.filter(broker="AAPL", cash__isnull=False).update(reference="alice")
    alices = Transfer.objects.filter(broker="alice").order_by("-created_at", "-id")
    key = ApiKey.objects.get(broker="alice")
    holding = Holding.objects.get(broker="alice")
    expected: list[tuple[type[Model], object, list[Any]]] = [
        (Broker, "alice", [Broker.objects.get(pk="alice")]),
        (Broker, " alice ", [Broker.objects.get(pk="alice")]),
        (Broker, "alic", []),
        (Broker, "ALICE", []),
        (Instrument, "AAPL", [Instrument.objects.get()]),
        (Holding, "alice", [holding]),
        (Holding, "alice AAPL", [holding]),
        (Holding, "alice PETR4", []),
        (Transfer, transfer.pk, [transfer]),
        (Transfer, transfer.reference, [transfer]),
        (Transfer, "alice", [Transfer.objects.get(reference="alice")]),
        (Transfer, "broker alice", list(alices)),
        (ApiKey, key.pk, [key]),
        (ApiKey, "alice", [key]),
        (Order, ask.pk, [ask]),
        (Order, str(ask.pk).upper(), [ask]),
        (Order, "alice", [ask]),
        (Order, "AAPL", [newest, bid]),
        (Order, "symbol AAPL", [newest, bid, ask]),
        (Order, "AAPL mine", [bid]),
        (Order, "alice mine", []),
        (Order, "mine", []),
        (Order, trade.pk, []),
        (Trade, trade.pk, [trade]),
        (Trade, ask.pk, [trade]),
        (Trade, bid.pk, [trade]),
        (Trade, newest.pk, []),
        (Trade, "AAPL", [trade]),
        (Trade, "bid AAPL", [trade]),
        (Trade, "ask alice", [trade]),
        (Trade, "bid alice", []),
        (Trade, "alice", []),
        (Event, event.pk, [event]),
        (Event, "AAPL", [event]),
        (Event, "AAPL 1", [event]),
        (Event, "AAPL 2", []),
        (Subscription, subscription.pk, [subscription]),
        (Subscription, deleted.pk, [deleted]),
        (Subscription, "alice", [subscription]),
        (Delivery, delivery.pk, [delivery]),
        (Delivery, event.pk, []),
    ]
    for model, term, rows in expected:
        assert [row.pk for row in found(root, model, term)] == [row.pk for row in rows], (model, term)


@each_model
def test_an_index_serves_each_search(model: type[Model]) -> None:
    constraints = [each for each in model._meta.constraints if isinstance(each, UniqueConstraint)]
    unique = [(each.name,) for each in model._meta.fields if each.unique] + [each.fields for each in constraints]
    fill(1, 2)
    with connection.cursor() as cursor:  # let the planner take it for a table of many rows
        size = "'schemaname', 'public', 'relname', %s, 'relpages', 1, 'reltuples', 10000::real"
        cursor.execute(f"SELECT pg_restore_relation_stats({size})", [model._meta.db_table])
        cursor.execute("SET LOCAL enable_seqscan = off")
    for search in searches_of(model):
        words = ["1" if column == "sequence" else str(UUID(int=1)) for column in search.columns]
        plan = search.rows(model, [*search.said, *words])[:1].explain()

        assert "Index Cond" in plan, search
        assert "Filter" not in plan, search
        # Many rows in the order of the primary key: a planner who thinks them common walks that key until they come.
        assert search.columns in unique or search.ordering[0].lstrip("-") != "pk"


@each_model
def test_each_filter_shows_what_it_says(root: Client, model: type[Model]) -> None:
    fill(0, 3)
    rows = rows_of(model)
    page = unescape(root.get(list_path(model)).content.decode())
    links = re.findall(r'"\?(\w+)__(exact|isempty)=([\w.]+)"', page)

    assert {name: how for name, how, _ in links} == filters_of(model)
    shown_by: dict[str, int] = {}
    for name, how, value in links:
        asked = [
            row
            for row in rows
            if (
                (getattr(row, name) in (None, "")) == (value == "1")
                if how == "isempty"
                else getattr(row, name) == value
            )
        ]
        assert shown(root, model, f"?{name}__{how}={value}") == asked
        shown_by[name] = shown_by.get(name, 0) + len(asked)
    assert all(shown_by.values())


def test_a_filter_works_on_what_was_found(root: Client) -> None:
    fill(0, 3)

    assert [row.broker_id for row in shown(root, Order, "?q=b01&status__exact=pending")] == ["b01"]
    assert shown(root, Order, "?q=b01&status__exact=cancelled") == []
    assert shown(root, Order, "?q=nobody&status__exact=pending") == []


def test_long_lists_are_read_so_far_and_no_further(root: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO exchange_broker (id, status, cash, reserved_cash, event_sequence, created_at, updated_at)"
            " SELECT 'b' || lpad(n::text, 6, '0'), 'active', 0, 0, 0, now(), now() FROM generate_series(1, %s) AS n",
            [FILTERED_ROWS - 1],
        )
    last = Broker.objects.create(pk="z1", status=BrokerStatus.SUSPENDED, created_at=START, updated_at=START)
    page = root.get(list_path(Broker, "?status__exact=suspended"))
    assert list(page.context["cl"].result_list) == [last]
    assert "were filtered" not in page.content.decode()

    beyond = Broker.objects.create(pk="z2", status=BrokerStatus.SUSPENDED, created_at=START, updated_at=START)
    page = root.get(list_path(Broker, "?status__exact=suspended"))
    assert list(page.context["cl"].result_list) == [last]
    assert "Only the first 20,000 rows were filtered." in page.content.decode()
    assert shown(root, Broker, "?status__exact=suspended&q=z2") == [beyond]

    page = root.get(list_path(Broker, f"?p={MAX_PAGES}"))
    assert [row.pk for row in page.context["cl"].result_list] == [f"b{n:06}" for n in range(4_951, 5_001)]
    assert "\nmore than 5,000 brokers" in page.content.decode()
    assert f"?p={MAX_PAGES + 1}" not in page.content.decode()
    assert root.get(list_path(Broker, f"?p={MAX_PAGES + 1}")).headers["Location"].endswith("?e=1")


@each_model
def test_statements_are_few_and_none_counts(root: Client, model: type[Model]) -> None:
    def statements(path: str) -> int:
        with CaptureQueriesContext(connection) as executed:
            assert root.get(path).status_code == 200
        assert not [statement["sql"] for statement in executed if "COUNT(" in statement["sql"].upper()]
        return len(executed)

    ContentType.objects.get_for_model(model)  # looked up once in a process
    who, foreign_keys = 2, len([field for field in model._meta.fields if field.many_to_one])
    for first, end in ((1, 2), (2, 61)):
        fill(first, end)
        row = rows_of(model)[-1]

        assert statements(list_path(model)) == who + 1
        assert statements(list_path(model, "?all=&_facets=True")) == who + 1
        assert statements(list_path(model, f"?q={row.pk}")) <= who + len(searches_of(model)) + 1
        assert statements(path_of(row)) == who + 1 + foreign_keys - (model is Transfer)  # cash has no instrument
        for link in re.findall(r'"(\?\w+__(?:exact|isempty)=[\w.]+)"', root.get(list_path(model)).content.decode()):
            assert statements(list_path(model, link)) == who + 2


def test_what_asks_for_suggestions_is_not_counted_either(root: Client) -> None:
    fill(1, 61)
    asked = "?app_label=orders&model_name=trade&field_name=bid_order&term="
    with CaptureQueriesContext(connection) as statements:
        answer = root.get(reverse("admin:autocomplete") + asked).json()

    assert [row["id"] for row in answer["results"]] == [str(order.pk) for order in rows_of(Order)[:20]]
    assert answer["pagination"] == {"more": True}
    assert not [statement["sql"] for statement in statements if "COUNT(" in statement["sql"].upper()]


# --- Changing -------------------------------------------------------------------------------------------------------


@each_model
def test_nothing_can_be_added_changed_or_deleted(root: Client, model: type[Model]) -> None:
    fill(0, 2)
    before = everything()
    row = rows_of(model)[0]
    values = {field.name: "1" for field in model._meta.fields} | {"status": "suspended", "_save": "Save"}
    add, change, delete = list_path(model) + "add/", path_of(row), path_of(row, "delete")

    assert [root.get(path).status_code for path in (add, delete)] == [403, 403]
    for path in (add, change, delete):
        for form in (values, {"post": "yes"}, values | {"_saveasnew": "1"}, {}):
            assert root.post(path, form).status_code == 403
    for action in ({"index": "0"}, {"post": "yes"}):
        form = {"action": "delete_selected", "_selected_action": str(row.pk)} | action
        page = root.post(list_path(model), form)
        assert page.status_code == 200
        assert b"delete_selected" not in page.content
    edit = {"form-TOTAL_FORMS": "1", "form-INITIAL_FORMS": "1", "form-0-status": "suspended", "_save": "Save"}
    assert root.post(list_path(model), edit).status_code == 200
    assert everything() == before


# --- What nobody should ask -----------------------------------------------------------------------------------------

TERMS = [
    "\0",
    "b01\0",
    "b01 \0",
    "notauuid",
    "x" * 10_000,
    "x " * 5_000,
    "9" * 10_000,
    "b01 99999999999999999999",
    "b01 " + "9" * 5_000,
    "ação 株式 🙂 \u202e \ufffe",
    "%",
    "_",
    "'; DROP TABLE orders_order; --",
    '"unclosed',
    "\\",
    "{0}",
    "00000000-0000-0000-0000-000000000000",
    "bid",
    "symbol",
]
QUERIES = {
    200: [
        *("p=", "p=abc", "p=1.5", "p=%00", "p=2&p=1", "p=" + "9" * 5_000, "e=1", "e=1&p=-1", "all=", "_facets=True"),
        *("o=1", "o=-2.3", "o=x.-.999999999999", "o=%00", "q=", "q=+", "q=%FF%ED%A0%80", "_popup=1"),
    ],
    302: ["p=-1", "p=0", "p=99999999", "p=-" + "9" * 4_000],
    400: [
        *("status__exact=%00", "status__in=x", "status__regex=(((", "id__exact=notauuid", "pk__in=1", "pk__exact=1"),
        *("broker__exact=b01", "broker__cash__gt=1", "created_at__gte=x", "created_at__year=0", "%00=1", "nonsense=1"),
        *(
            "secret_hash__startswith=a",
            "_to_field=secret_hash",
            "_to_field=nonsense",
            "_to_field=%00",
            "&".join(["a=1"] * 1_001),
        ),
    ],
}


@each_model
def test_odd_terms_find_nothing(root: Client, model: type[Model]) -> None:
    fill(1, 3)
    for term in TERMS:
        assert found(root, model, term) == [], term


@each_model
def test_odd_queries_are_answered(root: Client, model: type[Model]) -> None:
    fill(1, 3)
    for status, queries in QUERIES.items():
        for query in queries:
            assert root.get(list_path(model, f"?{query}")).status_code == status, query
    for query in ("p=abc", "p=7", "p=-1"):
        assert root.get(path_of(rows_of(model)[0], "history") + f"?{query}").status_code == 200
    for name, how in filters_of(model).items():
        for value in ("x", "", "x" * 10_000, "株"):
            answer = root.get(list_path(model, f"?{name}__{how}={value}"))
            assert answer.status_code == (200 if how == "exact" else 302)
        for query in (
            f"{name}__{how}=%00",
            f"{name}__isnull=1",
            f"{name}__{'isempty' if how == 'exact' else 'exact'}=1",
        ):
            assert root.get(list_path(model, f"?{query}")).status_code == 400


@each_model
def test_a_row_that_cannot_be_is_not_there(root: Client, model: type[Model]) -> None:
    for key in ("%00", "a%00b", "notauuid", "x" * 10_000, "9" * 5_000, "%F0%9F%99%82", "_0A", "-1", "%FF"):
        for page in ("change", "history"):
            answer = root.get(list_path(model) + f"{key}/{page}/")
            assert (answer.status_code, answer.headers["Location"]) == (302, "/admin/"), key
        assert root.get(list_path(model) + f"{key}/delete/").status_code == 403, key


# --- Who may look ---------------------------------------------------------------------------------------------------


def paths() -> list[str]:
    """Every page there is of a market with one row of everything."""
    fill(0, 1)
    rows = [model._default_manager.get() for model in MODELS]
    details = [path_of(row, page) for row in rows for page in ("change", "history", "delete")]
    return [path for model in MODELS for path in (list_path(model), list_path(model) + "add/")] + details


def test_a_place_that_cannot_be_is_400(root: Client) -> None:
    root.raise_request_exception = False  # as a server answers
    of_orders = ContentType.objects.get_for_model(Order).pk
    assert root.get(f"/admin/r/{of_orders}/notauuid/").status_code == 400


def test_a_stranger_is_asked_to_log_in(client: Client) -> None:
    for path in ["/admin/", *paths()]:
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Location"]) == (302, f"/admin/login/?next={quote(path)}")


def test_staff_see_what_they_may(client: Client) -> None:
    member = User.objects.create_user("member", is_staff=True)
    client.force_login(member)
    everywhere = paths()

    assert b"b00" not in client.get("/admin/").content
    assert "have permission to view or edit anything" in unescape(client.get("/admin/").content.decode())
    assert {client.get(path).status_code for path in everywhere} == {403}

    member.user_permissions.add(Permission.objects.get(codename="view_order"))
    seen = [path for path in everywhere if client.get(path).status_code == 200]
    assert seen == [list_path(Order), path_of(Order.objects.get()), path_of(Order.objects.get(), "history")]
    assert client.post(path_of(Order.objects.get()), {}).status_code == 403
