"""The dashboard: exact figures in few queries, and alarms while a problem lasts."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.test import Client, override_settings
from pytest_django import DjangoAssertNumQueries

from backoffice import dashboard
from backoffice.charts import sparkline
from backoffice.links import list_url
from backoffice.templatetags.formatting import DASH, compact
from config.local.servers import free_port
from exchange import heartbeat, rejection_counts, services
from exchange.database import database_now
from exchange.models import Instrument
from orders.enums import Side
from orders.models import Bar, Order, ReconcileRun, Trade
from orders.tasks import roll_up
from tests import trading
from tests.backoffice.admin_client import rows
from tests.trading import BY
from webhooks import services as webhooks
from webhooks.models import Delivery, EventType, Subscription

pytestmark = pytest.mark.django_db(transaction=True)

INDEX = "/admin/"
MAX_QUERIES = 19
EVERY_PART = (
    "exchange.view_instrument",
    "exchange.view_rejectedorders",
    "orders.view_order",
    "orders.view_trade",
    "orders.view_reconcilerun",
    "webhooks.view_subscription",
    "webhooks.view_delivery",
)
MARKS = (heartbeat.BEAT, heartbeat.WORKER, heartbeat.WEB, heartbeat.WEBHOOKS)


@pytest.fixture(autouse=True)
def _everything_is_alive() -> Iterator[None]:
    heartbeat._client.cache_clear()
    for key in MARKS:
        heartbeat.mark(key)
    rejection_counts._counts.clear()
    yield
    heartbeat._client().delete(*MARKS)
    heartbeat._client.cache_clear()


@pytest.fixture
def root(client: Client) -> Client:
    client.force_login(User.objects.create(username="root", is_staff=True, is_superuser=True))
    return client


def user_with(client: Client, *permissions: str) -> Client:
    """Sign in a user with only these permissions."""
    user = User.objects.create(username="some", is_staff=True)
    for each in permissions:
        app, _, codename = each.partition(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    client.force_login(user)
    return client


def seen(browser: Client) -> Any:
    """Return the template context of the dashboard."""
    response = browser.get(INDEX)
    assert response.status_code == 200
    return response.context


def alarms(browser: Client) -> list[tuple[str, str]]:
    """Return the texts and URLs of the alarms. The rendered page contains them too."""
    response = browser.get(INDEX)
    text, found = response.content.decode(), [(each.text, each.url) for each in response.context["alarms"]]
    assert all(f'href="{url}"' in text for _, url in found)
    assert all(message.replace("'", "&#x27;") in text for message, _ in found)
    assert ("All systems normal" in text) is not bool(found)
    return found


def tiles(browser: Client) -> dict[str, tuple[str, str]]:
    """Return the figure and URL of each tile, by title."""
    tile = r'<div class="o-tile[^>]*><span>([^<]+)</span><strong[^>]*>(?:<a class="o-link" href="([^"]+)">)?([^<]+)<'
    return {title: (figure, url) for title, url, figure in re.findall(tile, browser.get(INDEX).content.decode())}


# --- Figures --------------------------------------------------------------------------------------------------------


def test_order_trade_turnover_and_rejection_figures_are_exact(root: Client) -> None:
    for name in ("alice", "bob"):
        trading.broker(name)
    trading.place(Side.ASK, 10, "10", by="bob")
    trading.place(Side.BID, 4, "11")
    rejection_counts.add(3)
    rejection_counts.flush()
    roll_up()
    trading.place(Side.BID, 2, "12.50")  # after the bars were written

    cards = {card.title: (card.last_minute, card.today) for card in seen(root)["cards"]}

    assert cards == {
        "Orders": (3, 3),
        "Trades": (2, 2),
        "Turnover": (Decimal(60), Decimal(60)),
        "Rejected orders": (3, 3),
    }


def test_figures_link_to_their_lists_except_rejected_orders(root: Client) -> None:
    content = root.get(INDEX).content.decode()

    cards = re.findall(r'<(a href="[^"]+"|div) class="o-card">\s*<span class="o-card-title">([^<]+)<', content)
    orders, trades = 'a href="/admin/orders/order/"', 'a href="/admin/orders/trade/"'
    assert cards == [(orders, "Orders"), (trades, "Trades"), (trades, "Turnover"), ("div", "Rejected orders")]


def test_charts_show_and_describe_the_last_hour(root: Client) -> None:
    trading.instrument()
    minute = database_now().replace(second=0, microsecond=0)
    for ago, orders in ((61, 100), (60, 1), (2, 7), (1, 3), (0, 50)):
        Bar.objects.create(instrument_id="AAPL", minute=minute - timedelta(minutes=ago), orders=orders)

    card = seen(root)["cards"][0]

    assert card.description in (  # the minute may have changed
        "Orders per minute in the last hour: 3 in the last full minute, maximum 7, total 11",
        "Orders per minute in the last hour: 50 in the last full minute, maximum 50, total 60",
    )
    assert card.chart.line.count("L") == dashboard.CHART_MINUTES - 1
    assert f'aria-label="{card.description}"' in root.get(INDEX).content.decode()


def test_instruments_are_shown_with_price_change_volume_and_open_orders(root: Client) -> None:
    for name in ("alice", "bob"):
        trading.broker(name, holdings={"AAPL": 1_000, "GOOG": 1_000})
    trading.instrument("IDLE")
    for price in ("10", "12"):
        trading.place(Side.ASK, 5, price, by="bob")
        trading.place(Side.BID, 5, price)
    trading.place(Side.ASK, 5, "20", by="bob", symbol="GOOG")
    yesterday = database_now() - timedelta(days=1)
    roll_up()

    market = seen(root)["market"]
    shown = [
        (row.symbol, state, figures.last_price, figures.change_percent, figures.volume, figures.open_orders)
        for row, state, figures in market["rows"]
    ]
    assert shown == [
        ("AAPL", "trading", Decimal(12), Decimal(20), 10, 0),
        ("GOOG", "quiet", None, None, 0, 1),
        ("IDLE", "quiet", None, None, 0, 0),
    ]
    assert (market["instruments"], market["halted"], market["quiet"], market["open_orders"]) == (3, 0, 2, 1)

    Trade.objects.filter(price=10).update(executed_at=yesterday, price=8)
    assert seen(root)["market"]["rows"][0][2].change_percent == 50
    Trade.objects.all().update(executed_at=yesterday)
    _, state, figures = seen(root)["market"]["rows"][0]
    assert (state, figures.last_price, figures.change) == ("quiet", Decimal(12), None)


def test_halted_instruments_then_the_busiest_are_shown(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "INSTRUMENT_ROWS", 2)
    for symbol, volume in (("A", 1), ("B", 3), ("C", 2)):
        trading.instrument(symbol)
        Bar.objects.create(instrument_id=symbol, minute=database_now(), volume=volume)
    services.halt("A", by=BY)

    assert [row.symbol for row, _, _ in seen(root)["market"]["rows"]] == ["A", "B"]


def test_tiles_link_to_halted_and_quiet_instruments(root: Client) -> None:
    trading.broker("alice", holdings={"AAPL": 10})
    for symbol in ("BBB", "CCC", "DDD"):
        trading.instrument(symbol)
    for side in (Side.ASK, Side.BID):
        trading.place(side, 1, "10")
    services.halt("DDD", by=BY)

    for title, symbols in (("Instruments halted", ["DDD"]), ("No trades for 15 min", ["BBB", "CCC"])):
        figure, url = tiles(root)[title]
        assert figure == str(len(symbols))
        assert [row.pk for row in rows(root.get(url))] == symbols


# --- Alarms ---------------------------------------------------------------------------------------------------------


def test_a_new_exchange_has_no_alarms(root: Client) -> None:
    assert alarms(root) == []


def test_halted_instruments_raise_an_alarm_until_resumed(root: Client) -> None:
    for symbol in ("AAPL", "GOOG"):
        trading.instrument(symbol)
        services.halt(symbol, by=BY)
    assert alarms(root) == [("AAPL, GOOG are halted.", "/admin/exchange/instrument/?status__exact=halted")]

    services.resume("AAPL", by=BY)
    assert alarms(root) == [("GOOG is halted.", "/admin/exchange/instrument/GOOG/change/")]

    services.resume("GOOG", by=BY)
    assert alarms(root) == []


@pytest.mark.parametrize(
    ("key", "name"),
    [(heartbeat.BEAT, "beat"), (heartbeat.WORKER, "worker"), (heartbeat.WEBHOOKS, "webhook worker")],
)
def test_a_process_without_heartbeat_raises_an_alarm(root: Client, key: str, name: str) -> None:
    heartbeat._client().delete(key)
    ((text, url),) = alarms(root)
    assert text.startswith(f"No heartbeat from the {name}. It ")
    assert (url, 'id="processes"' in root.get(INDEX).content.decode()) == ("#processes", True)

    heartbeat._client().set(key, 1, px=heartbeat.EXPIRY_MS - 3_600_000)
    ((text, _),) = alarms(root)
    since = [database_now() - timedelta(minutes=minutes) for minutes in (60, 61)]  # the minute may have changed
    assert any(text.startswith(f"No heartbeat from the {name} since {each:%Y-%m-%d %H:%M} UTC. It ") for each in since)

    heartbeat.mark(key)
    assert alarms(root) == []


def test_an_unreachable_valkey_raises_a_single_alarm(root: Client) -> None:
    heartbeat._client().close()
    heartbeat._client.cache_clear()
    with override_settings(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0"):
        ((text, _),) = alarms(root)
        assert text.startswith("Valkey is not responding")
        heartbeat._client.cache_clear()
    assert alarms(root) == []


def subscribed(broker_id: str) -> Subscription:
    trading.broker(broker_id)
    (subscription,), _ = webhooks.subscribe(
        broker_id, url=f"https://{broker_id}.example/", events=[EventType.TRADE_EXECUTED]
    )
    return Subscription.objects.get(pk=subscription.pk)


def test_failing_endpoints_raise_an_alarm_until_they_succeed_or_are_paused(root: Client) -> None:
    subscriptions, now = [subscribed(name) for name in ("alice", "bob", "carol")], database_now()

    def set_all(**fields: Any) -> None:
        Subscription.objects.filter(pk__in=[each.pk for each in subscriptions]).update(**fields)

    set_all(last_success_at=now - timedelta(hours=2), last_failure_at=now - timedelta(hours=1), failures_left=2)
    assert alarms(root) == []

    subscriptions = [subscriptions[0]]
    set_all(last_failure_at=now - timedelta(minutes=1), failures_left=0)
    page = "/admin/webhooks/subscription/?failing=on"
    assert alarms(root) == [("1 webhook endpoint is failing: https://alice.example/ (alice)", page)]
    assert f'href="/admin/webhooks/subscription/{subscriptions[0].pk}/change/"' in root.get(INDEX).content.decode()

    subscriptions = list(Subscription.objects.filter(broker="bob"))
    set_all(last_success_at=None, last_failure_at=now, failures_left=0)
    assert alarms(root) == [("2 webhook endpoints are failing. Latest: https://bob.example/ (bob)", page)]

    set_all(paused_at=now)
    subscriptions = list(Subscription.objects.filter(broker="alice"))
    set_all(last_success_at=now, failures_left=3)
    assert alarms(root) == []


def test_failures_older_than_a_day_raise_no_alarm(root: Client) -> None:
    subscribed("alice")
    Subscription.objects.update(last_failure_at=database_now() - timedelta(hours=25), failures_left=0)

    assert alarms(root) == []


def due(subscription: Subscription, seconds: int) -> datetime:
    """Create a delivery that has been pending this long. Return its creation time."""
    made_at = database_now() - timedelta(seconds=seconds)
    for_id = UUID(int=int(made_at.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | Delivery.objects.count())
    Delivery.objects.create(id=for_id, event_id=for_id, subscription=subscription)
    return made_at


def test_delayed_deliveries_raise_an_alarm_until_sent_or_paused(root: Client) -> None:
    subscription = subscribed("alice")
    due(subscription, 50)
    assert alarms(root) == []

    oldest = due(subscription, 200)
    text = f"Webhook deliveries are delayed. The oldest has been pending since {oldest:%Y-%m-%d %H:%M} UTC."
    assert alarms(root) == [(text, "/admin/webhooks/delivery/?state=due")]
    assert tiles(root)["Pending deliveries"] == ("2", "/admin/webhooks/delivery/?state=due")
    assert tiles(root)["Oldest pending"] == ("3 min", "")

    Subscription.objects.update(paused_at=database_now())
    assert alarms(root) == []
    assert tiles(root)["Oldest pending"] == (DASH, "")

    Subscription.objects.update(paused_at=None)
    Delivery.objects.update(claimed_at=database_now())
    assert alarms(root) == []
    assert seen(root)["webhooks"]["due"] == "0"


def test_pending_deliveries_are_counted_up_to_a_limit(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "MAX_DUE_COUNT", 3)
    subscription = subscribed("alice")
    counted = []
    for _ in range(5):
        due(subscription, 1)
        counted.append(seen(root)["webhooks"]["due"])

    assert counted == ["1", "2", "3", "3+", "3+"]


def run(**fields: Any) -> ReconcileRun:
    now = database_now()
    return ReconcileRun.objects.create(asked_by="root", asked_at=now, **({"finished_at": now} | fields))


def test_the_last_reconciliation_raises_an_alarm_for_differences(root: Client) -> None:
    def findings(*counts: int) -> list[dict[str, Any]]:
        return [{"check": "x", "count": count, "examples": [], "seconds": 0.1} for count in counts]

    bad = run(findings=findings(0, 2, 1))
    run(finished_at=None, findings=findings(0))  # in progress
    page = "/admin/orders/reconcilerun/{}/change/"
    assert alarms(root) == [("The last reconciliation found 3 differences.", page.format(bad.pk))]

    bad = run(error="out of time")
    assert alarms(root) == [("The last reconciliation did not finish: out of time", page.format(bad.pk))]

    run(findings=findings(0, 0))
    assert alarms(root) == []


def test_delayed_bars_raise_an_alarm(root: Client) -> None:
    trading.broker("alice")
    trading.place(Side.BID, 1, "1")
    moment = database_now() - timedelta(minutes=3)
    id_ = UUID(int=int(moment.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62)
    Trade.objects.create(
        id=id_, instrument_id="AAPL", price=1, quantity=1, taker_side=Side.BID, bid_order_id=id_, ask_order_id=id_,
        bid_broker_id="alice", ask_broker_id="alice", executed_at=moment,
    )  # fmt: skip
    ((text, url),) = alarms(root)
    assert text == f"Daily figures and charts are delayed. They end at {moment:%Y-%m-%d %H:%M} UTC."
    assert url == "#processes"

    roll_up()
    assert alarms(root) == []


# --- Permissions and queries ----------------------------------------------------------------------------------------


def test_a_signed_out_visitor_is_redirected_to_the_login(client: Client) -> None:
    response = client.get(INDEX)

    assert (response.status_code, response.headers["Location"]) == (302, "/admin/login/?next=/admin/")


def test_users_without_permissions_see_only_the_processes(client: Client) -> None:
    trading.instrument()
    services.halt("AAPL", by=BY)
    browser = user_with(client)

    context = seen(browser)
    text = browser.get(INDEX).content.decode()

    assert alarms(browser) == []
    assert "All systems normal in the sections you can view" in text
    assert len(context["processes"]) == 4
    assert not {"cards", "market", "webhooks", "sees_runs"} & context.keys()
    assert re.findall(r'href="(/admin/[a-z]+/[^"]*)"', text.split('id="content"')[1]) == []


@pytest.mark.parametrize(
    ("permissions", "part"),
    [
        (["exchange.view_instrument", "orders.view_trade", "orders.view_order"], "market"),
        (["orders.view_order", "orders.view_trade", "exchange.view_rejectedorders"], "cards"),
        (["webhooks.view_subscription", "webhooks.view_delivery"], "webhooks"),
        (["orders.view_reconcilerun"], "sees_runs"),
    ],
)
def test_a_section_needs_the_permissions_for_its_content(client: Client, permissions: list[str], part: str) -> None:
    browser = user_with(client, *permissions[1:])
    assert part not in seen(browser)
    User.objects.all().delete()

    browser = user_with(client, *permissions)
    assert {"cards", "market", "webhooks", "sees_runs"} & seen(browser).keys() == {part}


def test_only_the_sidebar_links_to_every_list(root: Client) -> None:
    links, content = root.get(INDEX).content.decode().split('id="content"')

    lists = [list_url(model) for model in admin.site._registry]
    assert len(lists) > 10
    assert [url for url in lists if f'href="{url}"' not in links] == []
    linked = [list_url(model) for model in (Instrument, Order, Trade, ReconcileRun)]  # by "All", and by figures
    assert {url for url in lists if f'href="{url}"' in content} == set(linked)


def test_the_dashboard_refreshes_automatically(root: Client) -> None:
    content = root.get(INDEX).content.decode()

    live = re.findall(r'id="(\w+)"[^>]*data-live', content)
    assert live == ["now", "alarms", "figures", "standing", "market", "processes", "webhooks", "reconciliation"]


@pytest.mark.parametrize("is_superuser", [True, False])
def test_the_dashboard_takes_few_queries_for_any_amount_of_data(
    client: Client, django_assert_max_num_queries: DjangoAssertNumQueries, is_superuser: bool
) -> None:
    for number in range(10):
        due(subscribed(f"broker-{number}"), 500)
        trading.instrument(f"S{number}")
        trading.place(Side.ASK, 1, "10", by=f"broker-{number}")
    Subscription.objects.update(last_failure_at=database_now(), failures_left=0)
    run()
    browser = user_with(client, *EVERY_PART)
    User.objects.update(is_superuser=is_superuser)

    with django_assert_max_num_queries(MAX_QUERIES):
        context = seen(browser)
    assert {"cards", "market", "webhooks", "sees_runs"} <= context.keys()


# --- Formats --------------------------------------------------------------------------------------------------------


def test_a_sparkline_runs_left_to_right_with_the_maximum_at_the_top() -> None:
    chart = sparkline([0, Decimal(5), 10], width=100, height=42)

    assert (chart.width, chart.height) == (100, 42)
    assert chart.line == "M0.0,41.0 L50.0,21.0 L100.0,1.0"
    assert chart.area == "M0.0,41.0 L50.0,21.0 L100.0,1.0 L100.0,42 L0,42 Z"


def test_a_sparkline_of_zeros_is_at_the_bottom() -> None:
    assert sparkline([0, 0], width=10, height=42).line == "M0.0,41.0 L10.0,41.0"
    assert sparkline([]).line == ""


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"),
        (999_999, "999,999"),
        (1_000_000, "1.00 M"),
        (Decimal("1234.5"), "1,234.50"),
        (Decimal("12345678901"), "12.35 bn"),
        (Decimal("5e15"), "5,000.00 tn"),
    ],
)
def test_large_figures_are_abbreviated(value: Any, written: str) -> None:
    assert compact(value) == written
