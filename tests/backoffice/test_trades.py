"""Trades in the back office: list, page with both sides, and CSV export."""

import csv
import http.client
import io
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.db import DatabaseError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from backoffice import exports, lists
from backoffice.links import list_url, page_url
from config.local.processes import wait_until
from exchange.models import AuditEntry
from orders.enums import Side
from orders.models import Order, Trade
from tests import live, trading
from tests.backoffice.admin_client import ADDRESS, action_path, listed_rows, page, sign_in
from tests.trading import place

pytestmark = pytest.mark.django_db(transaction=True)

MAX_QUERIES = 20


@pytest.fixture
def market(db: None) -> None:
    """Alice, Bob and Carl, each with ample cash and shares of AAPL and GOOG."""
    for each in ("alice", "bob", "carl"):
        trading.broker(each, holdings={"AAPL": 10_000, "GOOG": 10_000})


def trade(bid: str, ask: str, quantity: int = 1, *, symbol: str = "AAPL", taker: Side = Side.ASK) -> Trade:
    """Make a trade between two brokers. The order of the taker's side is placed last."""
    sides = [(Side.BID, bid), (Side.ASK, ask)]
    for side, by in sides if taker is Side.ASK else sides[::-1]:
        place(side, quantity, "10", by=by, symbol=symbol)
    return Trade.objects.latest("id")


def found(client: Client, **filters: Any) -> list[UUID]:
    return [row.pk for row in listed_rows(client, Trade, **filters)]


def ids(*trades: Trade) -> list[UUID]:
    return [each.pk for each in trades]


# --- The list -------------------------------------------------------------------------------------------------------


def test_each_filter_finds_exactly_the_matching_rows(root: Client, market: None) -> None:
    first = trade("alice", "bob")
    second = trade("bob", "alice", symbol="GOOG")
    third = trade("bob", "carl")
    own = trade("alice", "alice")

    assert found(root) == ids(own, third, second, first)
    assert found(root, symbol="AAPL") == found(root, symbol="aapl") == ids(own, third, first)
    assert found(root, broker="alice") == ids(own, second, first)
    assert found(root, broker="alice", side="bid") == ids(own, first)
    assert found(root, broker="alice", side="ask") == ids(own, second)
    assert found(root, broker="alice", symbol="GOOG") == ids(second)
    assert found(root, side="ask") == ids(own, third, second, first)  # without a broker, the side is ignored
    assert found(root, q=str(third.pk)) == ids(third)
    assert found(root, q=str(first.bid_order_id)) == found(root, q=str(first.ask_order_id)) == ids(first)
    assert found(root, q=str(first.bid_order_id), broker="carl") == []
    assert found(root, q=str(first.bid_order_id), symbol="GOOG") == []
    assert found(root, q="10") == found(root, broker="dora") == []


def test_all_trades_of_an_order_are_found_newest_first(root: Client, market: None) -> None:
    place(Side.ASK, 1, "9", by="bob")
    order = place(Side.BID, 10, "10")
    for _ in range(3):
        place(Side.ASK, 1, "10", by="carl")
    expected = list(Trade.objects.filter(bid_order=order).order_by("-executed_at", "-id").values_list("pk", flat=True))
    assert found(root, q=str(order.pk)) == expected
    assert len(expected) == 4


def test_periods_include_their_start_and_exclude_their_end_in_every_query(root: Client, market: None) -> None:
    noon = timezone.now().replace(second=0, microsecond=0) - timedelta(days=2)
    trades = [trade("alice", "bob") for _ in range(3)]
    for hours, each in enumerate(trades):
        at = noon + timedelta(hours=hours)
        new_id = UUID(int=(int(at.timestamp() * 1000) << 80) | (each.pk.int & (1 << 80) - 1))
        Trade.objects.filter(pk=each.pk).update(id=new_id, executed_at=at)
    first, second, third = Trade.objects.order_by("executed_at")
    one, two = (f"{noon + timedelta(hours=hours):%Y-%m-%dT%H:%M}" for hours in (1, 2))
    for filters in (
        {},
        {"broker": "alice"},
        {"broker": "bob", "side": "ask"},
        {"symbol": "AAPL"},
        {"q": second.bid_order_id},
    ):
        assert found(root, since=one, until=two, **filters) == ids(second), filters
    assert found(root, since=one) == ids(third, second)
    assert found(root, until=one, symbol="AAPL") == ids(first)


FILTERS: list[tuple[dict[str, Any], int]] = [
    ({}, 1), ({"last": 1}, 1), ({"symbol": "AAPL"}, 1), ({"broker": "alice"}, 2),
    ({"broker": "alice", "side": "bid"}, 1), ({"broker": "bob", "symbol": "AAPL"}, 4),
    ({"since": "2026-01-01T00:00"}, 1),
]  # fmt: skip


def test_a_list_takes_few_queries_and_counts_nothing(root: Client, market: None) -> None:
    for _ in range(60):
        trade("alice", "bob")
    for filters, count in FILTERS:
        with CaptureQueriesContext(connection) as queries:
            assert root.get(list_url(Trade, **filters)).status_code == 200
        assert len(queries) < MAX_QUERIES, filters
        assert len([query for query in queries if "orders_trade" in query["sql"]]) == count, filters
        assert not any("count(" in query["sql"].lower() for query in queries), filters


def test_a_row_shows_both_sides(root: Client, market: None) -> None:
    one = trade("alice", "bob", 3, taker=Side.BID)
    shown_page = root.get(list_url(Trade)).content.decode()
    for url in (page_url(Order, one.bid_order_id), page_url(Order, one.ask_order_id), page(one)):
        assert f'href="{url}"' in shown_page
    assert f'title="{one.pk}"' in shown_page
    assert f"…{str(one.pk)[-8:]}" in shown_page
    assert "30.00" in shown_page  # the value


# --- The page of a trade --------------------------------------------------------------------------------------------


def test_a_trade_is_shown_from_both_sides(root: Client, market: None) -> None:
    one = trade("alice", "bob", 3, taker=Side.BID)
    with CaptureQueriesContext(connection) as queries:
        answer: Any = root.get(page(one))
    assert answer.status_code == 200
    assert len(queries) < MAX_QUERIES
    assert answer.context["value"] == Decimal(30)
    sides = [(each["side"], each["broker"], each["order"].pk) for each in answer.context["sides"]]
    assert sides == [("bid", "alice", one.bid_order_id), ("ask", "bob", one.ask_order_id)]
    for role in ('Bid (buyer)</span> <span class="o-faint">taker', 'Ask (seller)</span> <span class="o-faint">maker'):
        assert role in answer.content.decode()


def test_a_trade_cannot_be_changed_by_anybody(root: Client, market: None) -> None:
    one = trade("alice", "bob")
    before = trading.snapshot()
    for path in (page(one), f"{list_url(Trade)}add/", f"{list_url(Trade)}{one.pk}/delete/"):
        assert root.post(path, {"price": "1", "post": "yes"}).status_code in (200, 403, 404, 405)
    assert trading.snapshot() == before


def test_users_without_view_permission_are_refused_everywhere(client: Client, market: None) -> None:
    one = trade("alice", "bob")
    nobody = sign_in(client, "nobody", ["orders.view_order"])
    for path in (list_url(Trade), page(one), action_path(Trade, "export")):
        assert nobody.get(path).status_code == 403


# --- CSV export -----------------------------------------------------------------------------------------------------


def exported(client: Client, model: Any = Trade, **filters: Any) -> list[dict[str, str]]:
    query = list_url(model, **filters).partition("?")[2]
    answer: Any = client.get(f"{action_path(model, 'export')}?{query}")
    assert (answer.status_code, answer.streaming) == (200, True)
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    assert "no-store" in answer["Cache-Control"]
    return list(csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode("utf-8-sig"), newline="")))


def test_the_export_contains_every_field_of_a_trade(root: Client, market: None) -> None:
    one = trade("alice", "bob", 3, taker=Side.BID)
    Trade.objects.update(price="10.1234", executed_at="2026-02-16T16:29:00.000001Z")
    assert exported(root) == [
        {
            "trade_id": str(one.pk),
            "executed_at": "2026-02-16T16:29:00.000001Z",
            "symbol": "AAPL",
            "price": "10.1234",
            "quantity": "3",
            "taker_side": "bid",
            "bid_broker_id": "alice",
            "bid_order_id": str(one.bid_order_id),
            "ask_broker_id": "bob",
            "ask_order_id": str(one.ask_order_id),
        }
    ]
    with closing(root.get(action_path(Trade, "export"))) as answer:
        assert answer["Content-Disposition"].startswith('attachment; filename="trades-20')
        assert answer["Content-Disposition"].endswith('Z.csv"')


def test_the_export_contains_all_matching_rows(root: Client, market: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "BATCH_ROWS", 3)
    monkeypatch.setattr(lists, "MAX_SCANNED_ROWS", 4)
    for number in range(11):
        trade("alice", "bob", symbol="GOOG" if number % 5 == 0 else "AAPL")
    trade("bob", "carl")
    assert len(exported(root)) == 12
    assert [line["symbol"] for line in exported(root, broker="alice")].count("AAPL") == 8
    assert len(exported(root, broker="alice", symbol="GOOG")) == 3
    assert [line["trade_id"] for line in exported(root)] == [
        str(pk) for pk in Trade.objects.order_by("-id").values_list("pk", flat=True)
    ]
    assert exported(root, broker="dora") == []
    assert (
        f'href="{action_path(Trade, "export")}?broker=alice"'
        in root.get(list_url(Trade, broker="alice")).content.decode()
    )


def test_an_export_with_invalid_filters_redirects_to_the_list(root: Client) -> None:
    answer: Any = root.get(f"{action_path(Trade, 'export')}?side=both&symbol=AAPL")
    assert (answer.status_code, answer["Location"]) == (302, f"{list_url(Trade)}?side=both&symbol=AAPL")


def test_each_export_is_recorded_with_its_list_and_filters(root: Client, market: None) -> None:
    exported(root, broker="alice", side="bid")
    exported(root, Order)
    root.get(f"{action_path(Trade, 'export')}?side=both")

    entries = AuditEntry.objects.filter(action="list.export").order_by("id")
    assert list(entries.values_list("actor", "address", "subject", "before", "after")) == [
        ("root", ADDRESS, "trades", None, {"side": "bid", "broker": "alice"}),
        ("root", ADDRESS, "orders", None, {}),
    ]


def test_an_export_that_cannot_be_recorded_fails_and_frees_its_slot(
    root: Client, market: None, settings: Settings
) -> None:
    with trading.failing_commits("exchange_auditentry"):
        for _ in range(settings.MAX_CONCURRENT_EXPORTS):
            with pytest.raises(DatabaseError, match="not this one"):
                root.get(action_path(Trade, "export"))

    assert exported(root) == []


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=1", "+1"]


@pytest.mark.parametrize("text", [*FORMULAS, 'a "b", c', "a\r\nb", "a=1", "é €", "'=1", ""])
def test_texts_are_exported_unchanged_except_formulas(text: str) -> None:
    (cell,) = next(csv.reader(io.StringIO(exports._lines([exports._cells((text,))]), newline="")), [""])
    assert cell == (f"'{text}" if text in FORMULAS else text)


def test_negative_amounts_are_exported_as_numbers() -> None:
    assert exports._cells((Decimal("-1.5000"), None, -3)) == [Decimal("-1.50"), None, -3]


def test_a_client_order_id_like_a_formula_is_escaped(root: Client, market: None) -> None:
    place(Side.BID, 1, "5", client_order_id="-cmd")
    (line,) = exported(root, Order)
    assert (line["client_order_id"], line["status"], line["price"], line["cancelled_at"]) == (
        "'-cmd",
        "pending",
        "5.00",
        "",
    )


def test_exports_beyond_the_limit_get_503_and_pages_still_work(root: Client, market: None, settings: Settings) -> None:
    with ExitStack() as downloads:
        for _ in range(settings.MAX_CONCURRENT_EXPORTS):
            downloads.enter_context(closing(root.get(action_path(Trade, "export"))))
        refused = root.get(action_path(Trade, "export"))
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        recorded = AuditEntry.objects.filter(action="list.export").count()
        assert recorded == settings.MAX_CONCURRENT_EXPORTS
        assert root.get(list_url(Trade)).status_code == 200
    assert exported(root) == []


def test_an_export_holds_no_connection_while_its_client_reads(root: Client, market: None) -> None:
    trade("alice", "bob")
    with closing(root.get(action_path(Trade, "export"))) as answer:
        titles, rows = answer.streaming_content  # type: ignore[attr-defined]  # a StreamingHttpResponse
        assert (titles[:11], rows.count(b"AAPL")) == (b"\xef\xbb\xbftrade_id", 1)  # with a byte order mark
        assert connection.connection is None


# --- Long export over a real connection -----------------------------------------------------------------------------

MANY, AT_A_TIME = 200_000, 10_000
FIRST_BYTE_SECONDS, WHOLE_SECONDS = 3.0, 120.0
MEMORY_KIB = 60_000  # the file has 30 MB, its rows in memory many times that

_MANY_TRADES = """
INSERT INTO orders_trade (
  id, symbol, price, quantity, taker_side, bid_order_id, ask_order_id, bid_broker_id, ask_broker_id, executed_at)
SELECT uuidv7(n * interval '1 second' - interval '10 days'), 'AAPL', 10, n, 'bid', uuidv7(), uuidv7(),
       'alice', 'bob', now() - interval '10 days' + n * interval '1 second'
FROM generate_series(%s, %s) AS n
"""


def memory_of(pid: int) -> int:
    """Return the sum of the peak memory of the process and its children, in KiB."""
    peaks = [Path(f"/proc/{pid}/status").read_text()]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    peaks += [Path(f"/proc/{child}/status").read_text() for child in children]
    return sum(int(line.split()[1]) for text in peaks for line in text.splitlines() if line.startswith("VmHWM"))


def test_a_long_export_starts_at_once_in_constant_memory_without_blocking_others(
    backoffice: live.Server, client: Client, db: None
) -> None:
    with connection.cursor() as cursor:
        for first in range(1, MANY, AT_A_TIME):
            cursor.execute(_MANY_TRADES, [first, first + AT_A_TIME - 1])
    session = sign_in(client).cookies["sessionid"].value
    headers = {"Cookie": f"sessionid={session}"}

    def status_of_a_page() -> int:
        with closing(http.client.HTTPConnection("127.0.0.1", backoffice.port, timeout=WHOLE_SECONDS)) as other:
            other.request("GET", list_url(Trade), headers=headers)
            return other.getresponse().status

    with closing(http.client.HTTPConnection("127.0.0.1", backoffice.port, timeout=WHOLE_SECONDS)) as wire:
        assert status_of_a_page() == 200
        before, started = memory_of(backoffice.pid), time.monotonic()
        wire.request("GET", action_path(Trade, "export"), headers=headers)
        answer = wire.getresponse()
        assert answer.readline().startswith(b"\xef\xbb\xbftrade_id,executed_at,symbol,")
        assert time.monotonic() - started < FIRST_BYTE_SECONDS
        quantities = []
        for line in answer:
            quantities.append(int(line.split(b",")[4]))
            if len(quantities) == MANY // 2:
                assert status_of_a_page() == 200
    assert quantities == list(range(MANY, 0, -1))
    assert memory_of(backoffice.pid) - before < MEMORY_KIB


IMPATIENT_SECONDS = 1
IMPATIENT = f"""
from config import gunicorn
gunicorn.CLIENT_SECONDS = {IMPATIENT_SECONDS}
from config.gunicorn import *
"""


@pytest.fixture
def impatient_backoffice(db: None, tmp_path: Path) -> Iterator[live.Server]:
    """Run a back office with a client timeout of one second."""
    config = tmp_path / "impatient_backoffice.py"
    config.write_text(IMPATIENT)
    running = live.backoffice(tmp_path / "backoffice.log")
    running.child.argv = [str(config) if each == "python:config.gunicorn" else each for each in running.child.argv]
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_a_client_that_reads_nothing_is_disconnected_with_a_truncated_file(
    impatient_backoffice: live.Server, client: Client
) -> None:
    with connection.cursor() as cursor:
        for first in range(1, MANY, AT_A_TIME):
            cursor.execute(_MANY_TRADES, [first, first + AT_A_TIME - 1])
    session = sign_in(client).cookies["sessionid"].value
    head = f"GET {action_path(Trade, 'export')} HTTP/1.1\r\nHost: localhost\r\nCookie: sessionid={session}\r\n\r\n"
    with closing(socket.socket()) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        silent.connect(("127.0.0.1", impatient_backoffice.port))
        silent.sendall(head.encode())
        assert silent.recv(15) == b"HTTP/1.1 200 OK"
        log = impatient_backoffice.child.log
        assert wait_until(lambda: "Resource temporarily unavailable" in log.read_text(), WHOLE_SECONDS)
        received = b"".join(iter(partial(silent.recv, 2**16), b""))
    assert not received.endswith(b"\r\n0\r\n\r\n")  # the client can tell that the file is incomplete
