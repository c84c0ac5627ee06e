"""Keyset lists: every row is on exactly one page, in both directions."""

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html import unescape
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import Q
from django.http import HttpRequest, QueryDict
from django.test import Client
from django.test.utils import CaptureQueriesContext

from backoffice import lists
from backoffice.links import list_url
from backoffice.lists import FilterForm, KeysetQuery, Listing, ListPage, batches, column, read_page
from exchange.http.paging import NEWEST_FIRST, Keyset
from exchange.models import Broker, Transfer
from orders.models import Order, Trade
from tests.backoffice import admin_client

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 2, 16, 12, tzinfo=UTC)
BY_REFERENCE = Keyset(("reference", str))
PAGE, WINDOW = 5, 20


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pages and windows."""
    monkeypatch.setattr(lists, "PAGE_ROWS", PAGE)
    monkeypatch.setattr(lists, "MAX_SCANNED_ROWS", WINDOW)
    monkeypatch.setattr(lists, "BATCH_ROWS", 7)


def write(count: int, *, first: int = 0, broker: str = "alice") -> None:
    """Create rows with the references 0000, 0001, …, two per time."""
    Broker.objects.get_or_create(pk=broker, defaults={"created_at": NOON, "updated_at": NOON})
    Transfer.objects.bulk_create(
        Transfer(
            reference=f"{number:04}",
            broker_id=broker,
            cash=Decimal(number + 1),
            created_at=NOON + timedelta(seconds=number // 2),
        )
        for number in range(first, first + count)
    )


def all_transfers(keyset: Keyset = BY_REFERENCE, unindexed: Q | None = None) -> KeysetQuery:
    return KeysetQuery(Transfer.objects.all(), keyset, unindexed or Q())


def listing(keyset_query: KeysetQuery, query: str = "") -> Listing:
    """Return the listing for a request with this query."""
    request = HttpRequest()
    request.GET = QueryDict(query.lstrip("?"))
    return lists.build_listing(request, [column("Reference", "reference")], FilterForm, lambda _: keyset_query)


def references(page: ListPage | Listing) -> list[int]:
    return [int(row.reference) for row in (page.page if isinstance(page, Listing) else page).rows]


def walk(keyset_query: KeysetQuery, query: str, link: Callable[[Listing], str]) -> Iterator[list[int]]:
    """Yield the pages from this one on, following links."""
    while True:
        page = listing(keyset_query, query)
        yield references(page)
        if not (query := link(page)):
            return


def older(page: Listing) -> str:
    return page.older_url


def newer(page: Listing) -> str:
    return page.newer_url


# --- Pagination -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 23])
@pytest.mark.parametrize("keyset", [BY_REFERENCE, BY_REFERENCE.reversed(), NEWEST_FIRST, Keyset(("-id", UUID))])
def test_forward_pages_contain_every_row_once(keyset: Keyset, count: int) -> None:
    write(count)
    expected = [int(row.reference) for row in Transfer.objects.order_by(*keyset.ordering)]
    pages = list(walk(all_transfers(keyset), "", older))
    assert [number for page in pages for number in page] == expected
    assert all(len(page) == PAGE for page in pages[:-1])
    assert len(pages) == max(1, -(-count // PAGE))


@pytest.mark.parametrize("count", [0, 1, PAGE, PAGE + 1, 23])
@pytest.mark.parametrize("keyset", [BY_REFERENCE, NEWEST_FIRST])
def test_backward_pages_contain_every_row_and_end_with_the_first_page(keyset: Keyset, count: int) -> None:
    write(count)
    expected = [int(row.reference) for row in Transfer.objects.order_by(*keyset.ordering)]
    pages = list(walk(all_transfers(keyset), "last=1", newer))
    assert pages[0] == expected[-PAGE:]
    assert pages[-1] == expected[:PAGE]
    assert {number for page in pages for number in page} == set(expected)
    whole = pages[:-1] or pages
    ending = [number for page in reversed(whole) for number in page]
    assert ending == expected[len(expected) - len(ending) :]


def test_the_previous_page_is_the_one_before() -> None:
    write(23)
    forwards = list(walk(all_transfers(), "", older))
    third = listing(all_transfers(), listing(all_transfers(), listing(all_transfers()).older_url).older_url)
    assert [references(third), *list(walk(all_transfers(), third.newer_url, newer))] == forwards[2::-1]


def test_links_exist_only_where_there_are_more_rows() -> None:
    write(11)
    first = listing(all_transfers())
    middle = listing(all_transfers(), first.older_url)
    last = listing(all_transfers(), middle.older_url)
    ends = [(bool(page.newer_url), bool(page.older_url)) for page in (first, middle, last)]
    assert ends == [(False, True), (True, True), (True, False)]
    assert references(listing(all_transfers(), last.last_url)) == [6, 7, 8, 9, 10]
    assert listing(all_transfers(), last.last_url).older_url == ""


def test_new_rows_do_not_shift_pages() -> None:
    write(15)
    keyset_query = all_transfers(BY_REFERENCE.reversed())
    second = listing(keyset_query, listing(keyset_query).older_url)
    assert references(second) == [9, 8, 7, 6, 5]
    write(4, first=15)
    assert references(listing(keyset_query, second.older_url)) == [4, 3, 2, 1, 0]
    assert references(listing(keyset_query, second.newer_url)) == [14, 13, 12, 11, 10]
    assert references(listing(keyset_query, listing(keyset_query, second.newer_url).newer_url)) == [18, 17, 16, 15, 14]


# --- Scans without an index -----------------------------------------------------------------------------------------


def test_unindexed_conditions_are_scanned_in_windows() -> None:
    """No row is missed, and a page says that the scan was cut off."""
    write(100)
    keyset_query = all_transfers(unindexed=Q(reference__in=["0003", "0019", "0020", "0059", "0060", "0099"]))
    first = listing(keyset_query)
    assert (references(first), first.page.scanned_rows, first.scan_url) == ([3, 19], WINDOW, first.older_url)
    assert list(walk(keyset_query, "", older)) == [[3, 19], [20], [59], [60], [99]]


def test_backward_windows_have_the_same_size() -> None:
    write(100)
    keyset_query = all_transfers(unindexed=Q(reference__in=["0000", "0040", "0099"]))
    last = listing(keyset_query, "last=1")
    assert (references(last), last.page.scanned_rows, last.scan_url) == ([99], WINDOW, last.newer_url)
    assert last.older_url == ""
    assert list(walk(keyset_query, "last=1", newer)) == [[99], [], [40], [], [0]]


def test_an_empty_window_links_back_to_the_row_before_it() -> None:
    write(100)
    keyset_query = all_transfers(unindexed=Q(reference__in=["0019", "0090"]))
    second = listing(keyset_query, listing(keyset_query).older_url)
    assert (references(second), second.page.scanned_rows) == ([], WINDOW)
    assert references(listing(keyset_query, second.newer_url)) == [19]
    back = listing(keyset_query, listing(keyset_query, "last=1").newer_url)
    assert references(back) == []
    assert 90 in references(listing(keyset_query, back.older_url))


def test_a_full_page_does_not_report_a_scan() -> None:
    write(100)
    page = listing(all_transfers(unindexed=Q(cash__gt=0)))
    assert (len(references(page)), page.page.scanned_rows) == (PAGE, 0)


def test_a_scan_reads_no_more_rows_than_its_window() -> None:
    """Checked by PostgreSQL's count of the rows read, with the index that it uses for large tables."""
    write(100)
    with CaptureQueriesContext(connection) as queries:
        listing(all_transfers(unindexed=Q(cash=0)))
    (_, read) = queries.captured_queries
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, BUFFERS OFF) {read['sql']}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert f"Rows Removed by Filter: {WINDOW}" in plan, plan


# --- Merged indexes -------------------------------------------------------------------------------------------------


def overlapping_parts(unindexed: Q | None = None) -> KeysetQuery:
    """Return a query of two parts with common rows."""
    rows = Transfer.objects.all()
    part = [rows.filter(cash__lte=30), rows.filter(cash__gte=21)]
    return KeysetQuery(part[0], BY_REFERENCE, unindexed or Q(), [part[1]])


def test_rows_of_several_indexes_are_merged_without_duplicates() -> None:
    write(50)
    assert [number for page in walk(overlapping_parts(), "", older) for number in page] == list(range(50))
    assert [number for page in reversed(list(walk(overlapping_parts(), "last=1", newer))) for number in page] == list(
        range(50)
    )


def test_merged_windows_end_at_the_nearest_limit() -> None:
    write(100)
    keyset_query = overlapping_parts(Q(reference__in=["0010", "0045", "0070"]))
    assert [number for page in walk(keyset_query, "", older) for number in page] == [10, 45, 70]


# --- Invalid input --------------------------------------------------------------------------------------------------

HOSTILE = [
    "after=x", "after=%00", "before=%00", "after=" + "x" * 10_000, "after=W10", "before=bnVsbA", "last=x%00",
    "after=WzEsMl0", "after=WyJcdTAwMDAiXQ", "including=1", "after=&before=", "after=%FF%FE",
]  # fmt: skip


@pytest.mark.parametrize("query", HOSTILE)
def test_an_invalid_cursor_shows_the_first_page(query: str) -> None:
    write(11)
    assert references(listing(all_transfers(), query)) in ([0, 1, 2, 3, 4], [6, 7, 8, 9, 10])
    assert (references(listing(all_transfers(), query)) == [6, 7, 8, 9, 10]) == query.startswith("last")


def test_a_cursor_of_another_query_is_ignored() -> None:
    write(11)
    of_another = listing(all_transfers(NEWEST_FIRST)).older_url
    assert references(listing(all_transfers(), of_another)) == [0, 1, 2, 3, 4]
    assert references(listing(all_transfers(Keyset(("-id", UUID))), of_another)) == [10, 9, 8, 7, 6]


BAD_AMOUNTS = ['["NaN"]', '["Infinity"]', '["1e400"]', '["1e17"]', "[1e300]"]


@pytest.mark.parametrize("position", BAD_AMOUNTS)
def test_an_out_of_range_amount_is_no_valid_cursor(position: str) -> None:
    write(3)
    cursor = base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")
    assert references(listing(all_transfers(Keyset(("cash", Decimal))), f"after={cursor}")) == [0, 1, 2]


HOSTILE_FILTERS = [
    *HOSTILE,
    "q=%00", "symbol=%00", "broker=%00", "side=%00", "since=%00", "q=%FF%FE%00", "side=both", "symbol=$",
    "since=yesterday", "since=0001-01-01T00:00&until=9999-12-31T23:59:59", "until=0001-01-01T00:00:00%2B14:00",
    "since=9999-12-31T23:59:59-14:00", "q=" + "9" * 65, "q=%27%3B--", "q=%F0%9F%92%A9", "broker=%F0%9F%92%A9",
    "type=x&type=limit", "since=2026-13-45T99:99",
]  # fmt: skip


@pytest.mark.parametrize("model", [Order, Trade])
def test_no_input_fails(client: Client, model: Any) -> None:
    admin_client.sign_in(client)
    for query in HOSTILE_FILTERS:
        status = 400 if model is Trade and "type=" in query else 200  # a trade has no type
        assert client.get(f"{list_url(model)}?{query}").status_code == status, query


def test_invalid_filters_show_no_rows_and_their_errors(client: Client) -> None:
    admin_client.sign_in(client)
    page: Any = client.get(f"{list_url(Order)}?side=both&since=yesterday")
    assert page.context["listing"].page.rows == []
    assert set(page.context["listing"].form.errors) == {"side", "since"}
    shown = unescape(page.content.decode())
    assert "Select a valid choice. both is not one of the available choices." in shown
    assert "No results: a filter is invalid." in shown


@pytest.mark.parametrize("model", [*admin.site._registry])
def test_unknown_filters_are_named_and_nothing_is_shown(client: Client, model: Any) -> None:
    admin_client.sign_in(client)
    urls = [list_url(model), f"{list_url(model)}export/"]
    for url in urls if getattr(admin.site.get_model_admin(model), "export_columns", {}) else urls[:1]:
        page: Any = client.get(f"{url}?q=a&brokr=alice&%3Cb%3E=1")
        assert page.status_code == 400
        assert "Unknown filter in the URL: brokr, <b>. Nothing is shown." in unescape(page.content.decode())
        assert f'href="{list_url(model)}">Show all ' in page.content.decode()


def test_an_invalid_value_of_a_changelist_filter_shows_nothing(client: Client) -> None:
    admin_client.sign_in(client)
    page: Any = client.get(f"{list_url(User)}?is_active__exact=zzz", follow=True)
    assert page.status_code == 400
    assert "A filter in the URL has an invalid value. Nothing is shown." in page.content.decode()


# --- Links ----------------------------------------------------------------------------------------------------------


def test_page_links_keep_the_filters_only() -> None:
    write(20)
    page = listing(all_transfers(), "q=a+b%26c&page=7&nonsense=1")
    for url in (page.first_url, page.older_url, page.last_url):
        assert QueryDict(url[1:])["q"] == "a b&c"
        assert {"page", "nonsense"}.isdisjoint(QueryDict(url[1:]))


def test_each_active_filter_links_to_the_list_without_it(client: Client) -> None:
    admin_client.sign_in(client)
    page: Any = client.get(f"{list_url(Order)}?side=bid&status=partially_filled&symbol=&broker=alice")
    assert page.context["listing"].active_filters == [
        ("Status", "partially filled", "?side=bid&broker=alice"),
        ("Side", "bid", "?status=partially_filled&broker=alice"),
        ("Broker", "alice", "?status=partially_filled&side=bid"),
    ]


def test_time_filters_are_labelled_utc(client: Client) -> None:
    admin_client.sign_in(client)
    shown = client.get(list_url(Order)).content.decode()
    assert "From (UTC)" in shown
    assert "To (UTC)" in shown
    assert shown.count('type="datetime-local"') == 2


# --- Batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 6, 7, 8, 50])
def test_batches_contain_every_row_once(count: int) -> None:
    write(count)
    found = list(batches(all_transfers(NEWEST_FIRST), "reference", "cash"))
    assert [row for batch in found for row in batch] == list(
        Transfer.objects.order_by("-created_at", "-id").values_list("reference", "cash")
    )
    assert all(len(batch) <= 7 for batch in found)


def test_batches_continue_after_empty_windows() -> None:
    write(100)
    found = list(batches(all_transfers(unindexed=Q(reference__in=["0001", "0099"])), "reference"))
    assert [row for batch in found for row in batch] == [("0001",), ("0099",)]
    assert [len(batch) for batch in found] == [1, 0, 0, 0, 1]


def test_batches_of_several_indexes_are_merged() -> None:
    write(50)
    assert [row for batch in batches(overlapping_parts(), "reference") for row in batch] == [
        (f"{n:04}",) for n in range(50)
    ]


def test_a_page_takes_at_most_two_queries() -> None:
    write(100)
    for keyset_query, count in ((all_transfers(), 1), (all_transfers(unindexed=Q(cash__gt=50)), 2)):
        for query in ("", "last=1"):
            with CaptureQueriesContext(connection) as queries:
                read_page(keyset_query, QueryDict(query))
            assert len(queries) == count
            assert all("count(" not in query["sql"].lower() for query in queries)


def test_neighbouring_pages_are_contiguous() -> None:
    write(37)
    for one, other in pairwise(walk(all_transfers(), "", older)):
        assert one[-1] + 1 == other[0]
