"""The global search: symbols, brokers, orders, client order IDs and pages that the user may view."""

from html import unescape
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from backoffice import search
from exchange.models import ApiKey, Broker, Instrument, Transfer
from orders.enums import Side
from orders.models import Trade
from tests import trading
from tests.backoffice.admin_client import page, sign_in
from tests.trading import place

pytestmark = pytest.mark.django_db(transaction=True)

MAX_QUERIES = 20


@pytest.fixture(autouse=True)
def _market(transactional_db: None) -> None:
    for name in ("alice", "Bob-1"):
        trading.broker(name, holdings={"AAPL": 10_000})


def found(client: Client, term: str) -> list[tuple[str, str]]:
    """Return the titles and URLs of the results for a term, which the dialog shows."""
    response: Any = client.get("/admin/search/", {"s": term, "extended": "1"})
    assert response.status_code == 200
    results, content = list(response.context["results"]), unescape(response.content.decode())
    assert all(f'href="{each.link}"' in content and each.title in content for each in results)
    return [(each.title, each.link) for each in results]


def result(row: Any) -> tuple[str, str]:
    return str(row), page(row)


def test_a_symbol_or_a_name_finds_its_instrument(root: Client) -> None:
    Instrument.objects.update(name="Apple Inc.")
    aapl = result(Instrument.objects.get())
    assert found(root, "AAPL") == found(root, "aap") == found(root, " apple ") == [aapl]


def test_an_exact_symbol_comes_first(root: Client) -> None:
    for number in range(10):
        trading.instrument(f"A{number}P")
    trading.instrument("P")
    results = [title for title, _ in found(root, "p") if len(title) < 5]
    assert (results[0], len(results)) == ("P", search.MAX_RESULTS)


def test_a_broker_is_found_by_a_part_of_its_id(root: Client) -> None:
    bob = Broker.objects.get(pk="Bob-1")
    assert found(root, "bob") == [result(bob)]
    assert found(root, "Bob-1") == [result(bob), result(bob.keys.get())]


def test_an_order_is_found_by_its_id_and_its_client_order_id(root: Client) -> None:
    alices = place(Side.BID, 5, "10", client_order_id="My-1")
    bobs = place(Side.BID, 5, "10", client_order_id="My-1", by="Bob-1")
    place(Side.BID, 5, "10", client_order_id="my-1")

    assert found(root, str(alices.pk)) == found(root, str(alices.pk).upper()) == [result(alices)]
    assert found(root, "My-1") == [result(bobs), result(alices)]
    content = root.get("/admin/search/?s=My-1&extended=1").content.decode()
    assert "Order · alice · bid 5 of 5 AAPL at 10.00 · pending" in content


def test_trades_transfers_and_keys_are_found(root: Client) -> None:
    place(Side.ASK, 5, "10")
    order = place(Side.BID, 5, "10", by="Bob-1")
    trade, transfer, key = Trade.objects.get(), Transfer.objects.latest("id"), ApiKey.objects.latest("created_at")
    assert found(root, str(trade.pk)) == [result(trade)]
    assert found(root, str(order.pk)) == [result(order), result(trade)]
    assert found(root, transfer.reference) == [result(transfer)]
    assert found(root, key.pk) == [result(key)]


def test_pages_are_found_by_their_titles_after_rows(root: Client) -> None:
    trading.instrument("ADE")
    assert found(root, "ade") == [result(Instrument.objects.get(pk="ADE")), ("Trades", "/admin/orders/trade/")]
    assert found(root, "Reconcil") == [("Reconciliation", "/admin/orders/reconcilerun/")]


def test_only_rows_that_the_user_may_view_are_found(client: Client) -> None:
    order = place(Side.BID, 5, "10")
    viewer = sign_in(client, "vera", ["exchange.view_instrument"])
    assert found(viewer, str(order.pk)) == found(viewer, "alice") == []
    assert found(viewer, "AAPL") == [result(Instrument.objects.get())]
    assert found(viewer, "s") == [("Dashboard", "/admin/"), ("Instruments", "/admin/exchange/instrument/")]


def test_results_are_not_cached(root: Client) -> None:
    assert len(found(root, "aap")) == 1
    trading.instrument("AAPX")
    assert len(found(root, "aap")) == 2


@pytest.mark.parametrize("term", ["%00", "a%00b", "%FF", "'", "(", "%25", "_", "%F0%9F%92%A9", "x" * 5_000])
def test_no_term_fails(root: Client, term: str) -> None:
    assert root.get(f"/admin/search/?s={term}&extended=1").status_code == 200


@pytest.mark.parametrize(("query", "status"), [("", 200), ("s=a&page=abc", 404), ("s=a&page=0", 404), ("s=a", 200)])
def test_the_results_have_one_page(root: Client, query: str, status: int) -> None:
    assert root.get(f"/admin/search/?{query}").status_code == status


def test_a_search_takes_few_queries(root: Client) -> None:
    order = place(Side.BID, 5, "10", client_order_id="A1")
    for term in ("A1", str(order.pk), "alice"):
        with CaptureQueriesContext(connection) as queries:
            found(root, term)
        assert len(queries) < MAX_QUERIES, term


def test_every_page_has_the_search(root: Client) -> None:
    for path in ("/admin/", "/admin/orders/order/", "/admin/exchange/broker/alice/change/", "/admin/auth/user/"):
        content = root.get(path).content.decode()
        assert "$dispatch('opencommand')" in content
        assert 'hx-get="/admin/search/?extended=1"' in content
