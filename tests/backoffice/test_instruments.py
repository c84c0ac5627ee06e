"""Instruments in the back office: list, page and actions."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from threading import Event
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from backoffice.charts import LadderLevel
from backoffice.queries import market_watch, open_orders
from backoffice.templatetags.formatting import DASH
from exchange.database import database_now
from exchange.models import AuditEntry, Instrument
from exchange.rules import InstrumentStatus, Pricing
from orders.enums import Side
from orders.models import Bar, Order, Trade
from tests.backoffice.admin_client import (
    REASON,
    action_path,
    cells,
    form_errors,
    has_button,
    impact,
    listed_rows,
    page,
    perform,
    result_messages,
    rows,
    sign_in,
)
from tests.trading import TIMEOUT_SECONDS, broker, instrument, place, start_thread

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/exchange/instrument/"
AAPL = f"{LIST}AAPL/change/"
VIEW = ["exchange.view_instrument"]
OPERATE = [*VIEW, *(f"exchange.{action}_instrument" for action in ("list", "edit", "halt")), "exchange.halt_market"]
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _alice() -> None:
    broker("alice")


@pytest.fixture
def office(client: Client) -> Client:
    return sign_in(client, "olga", OPERATE)


def d(*prices: str) -> list[Decimal]:
    return [Decimal(price) for price in prices]


def symbols(client: Client, **filters: Any) -> list[str]:
    return [row.symbol for row in listed_rows(client, Instrument, **filters)]


def status(symbol: str = "AAPL") -> tuple[str, str]:
    row = Instrument.objects.get(pk=symbol)
    return row.status, row.halt_reason


def set_status(symbol: str, status: InstrumentStatus, reason: str = "") -> None:
    Instrument.objects.filter(pk=symbol).update(status=status, halt_reason=reason)


def context(client: Client, path: str = AAPL) -> Any:
    response = client.get(path)
    assert response.status_code == 200
    return response.context


def html(client: Client, path: str = AAPL) -> str:
    """Return the HTML of a page with normalised white space."""
    response = client.get(path)
    assert response.status_code == 200
    return " ".join(response.content.decode().split())


@contextmanager
def holding(symbol: str) -> Iterator[None]:
    """Lock the instrument's row in another session."""
    is_held, may_end = Event(), Event()

    def hold() -> None:
        with transaction.atomic():
            Instrument.objects.select_for_update().get(pk=symbol)
            is_held.set()
            assert may_end.wait(TIMEOUT_SECONDS)

    holder = start_thread(hold)
    assert is_held.wait(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        may_end.set()
        holder.result(TIMEOUT_SECONDS)


def bar(minutes_ago: int, *prices: str, volume: int) -> None:
    minute = database_now().replace(second=0, microsecond=0) - minutes_ago * MINUTE
    ohlc = dict(zip(("open", "high", "low", "close"), d(*prices), strict=True))
    Bar.objects.create(instrument_id="AAPL", minute=minute, trades=1, volume=volume, value=volume, **ohlc)


# --- The list -------------------------------------------------------------------------------------------------------


def test_the_list_shows_the_figures_of_each_instrument(office: Client) -> None:
    instrument("PETR4", tick="0.001")
    Instrument.objects.filter(pk="PETR4").update(name="Petróleo & Gás")
    place(Side.ASK, 5, "10")
    place(Side.BID, 8, "10")
    place(Side.ASK, 7, "10.20")
    bar(0, "10", "10", "10", "10", volume=5_000)

    aapl, petr4 = cells(office.get(LIST))

    trading = '<span class="o-state o-good">trading</span>'
    assert aapl[:-1] == [
        "AAPL", trading, "10.00", '<span class="o-faint">0.00 <span class="o-percent">0.00 %</span></span>',
        '<span class="o-bid">10.00</span>', '<span class="o-ask">10.20</span>', "0.20", "5,000", "2",
    ]  # fmt: skip
    assert f'datetime="{Trade.objects.get().executed_at.isoformat()}"' in aapl[-1]
    named = 'PETR4<br><small class="o-name">Petróleo &amp; Gás</small>'
    assert petr4 == [named, trading, *[DASH] * 5, "0", "0", DASH]
    assert f'<a href="{AAPL}"' in html(office, LIST)


def test_the_list_is_filtered_by_status_pricing_and_name(office: Client) -> None:
    instrument("PETR4", pricing=Pricing.MAKER)
    instrument("VALE3")
    Instrument.objects.filter(pk="VALE3").update(name="Vale do Rio Doce")
    set_status("PETR4", InstrumentStatus.HALTED)

    assert symbols(office) == ["AAPL", "PETR4", "VALE3"]
    assert symbols(office, status__exact="halted") == symbols(office, status="halted") == ["PETR4"]
    assert symbols(office, status__exact="trading") == ["AAPL", "VALE3"]
    assert symbols(office, pricing__exact="maker") == ["PETR4"]
    assert symbols(office, q="rio") == ["VALE3"]
    assert symbols(office, q="petr") == ["PETR4"]
    assert symbols(office, q="petr", status__exact="trading") == []
    assert context(office, LIST)["counts"] == [("trading", 2), ("halted", 1)]


def test_the_list_is_filtered_by_instruments_without_trades(office: Client) -> None:
    for symbol in ("HALT", "PETR4"):
        instrument(symbol)
    set_status("HALT", InstrumentStatus.HALTED)
    place(Side.ASK, 5, "10")
    place(Side.BID, 5, "10")
    assert symbols(office, quiet="on") == ["PETR4"]

    Trade.objects.update(executed_at=database_now() - market_watch.QUIET_AFTER)
    assert symbols(office, quiet="on") == ["AAPL", "PETR4"]
    assert symbols(office, quiet="on", q="aap") == ["AAPL"]
    assert "no trades: <strong>on</strong>" in html(office, f"{LIST}?quiet=on")


def test_selected_instruments_are_halted_and_resumed(office: Client) -> None:
    for symbol in ("GOOG", "PETR4"):
        instrument(symbol)

    def choose(action: str) -> Any:
        chosen = {"action": action, "index": "0", "_selected_action": ["AAPL", "GOOG"]}
        return office.post(f"{LIST}?q=o", chosen) if action == "halt" else office.post(LIST, chosen)

    halt, resume = choose("halt"), choose("resume")

    assert halt["Location"] == f"{action_path(Instrument, 'halt', 'GOOG')}&_changelist_filters=q%3Do"  # found by "o"
    assert resume["Location"] == f"{action_path(Instrument, 'resume', 'AAPL', 'GOOG')}&_changelist_filters="
    halted: Any = office.post(halt["Location"], {"reason": REASON})
    assert (halted["Location"], status("GOOG"), status("AAPL")[0]) == (f"{LIST}?q=o", ("halted", REASON), "trading")
    assert office.post(resume["Location"], {"reason": REASON})["Location"] == LIST
    assert status("GOOG")[0] == "trading"
    assert 'name="_selected_action"' not in html(sign_in(Client(), "vera", VIEW), LIST)


def test_the_list_has_one_red_button(office: Client) -> None:
    (red,) = re.findall(r'<(?:a|button) class="o-button o-danger"[^>]*>([^<]+)<', html(office, LIST))
    assert red == "Halt all instruments"


@pytest.mark.parametrize(
    ("query", "status"),
    [("quiet=no", 200), ("o=99&p=x", 200), ("last=1", 400), ("status=%00", 400), ("name__regex=(", 400)],
)
def test_the_list_accepts_its_own_filters_only(office: Client, query: str, status: int) -> None:
    assert office.get(f"{LIST}?{query}").status_code == status


def test_the_list_takes_as_many_queries_for_fifty_instruments_as_for_one(office: Client) -> None:
    with CaptureQueriesContext(connection) as for_one:
        office.get(LIST)
    for number in range(60):
        instrument(f"S{number:02}")

    with CaptureQueriesContext(connection) as for_fifty:
        assert len(rows(office.get(LIST))) == 50

    assert len(for_fifty) == len(for_one) < 20


# --- The page -------------------------------------------------------------------------------------------------------


def test_the_ladder_shows_the_order_book(office: Client) -> None:
    place(Side.ASK, 10, "10.30")
    place(Side.ASK, 20, "10.20")
    place(Side.ASK, 5, "10.20")
    place(Side.BID, 40, "10.00")
    place(Side.BID, 10, "9.90")
    place(Side.BID, 1, "9.80", time_in_force="gtd", expires_at=database_now() + timedelta(hours=1))
    Order.objects.filter(price=Decimal("9.80")).update(expires_at=database_now())  # before the sweep
    place(Side.ASK, 15, "10.00")

    shown = context(office)

    assert shown["bids"] == [
        LadderLevel(Decimal("10.00"), 25, 1, 25, 100.0),
        LadderLevel(Decimal("9.90"), 10, 1, 35, 40.0),
    ]
    assert shown["asks"] == [  # the best prices are adjacent
        LadderLevel(Decimal("10.30"), 10, 1, 35, 40.0),
        LadderLevel(Decimal("10.20"), 25, 2, 25, 100.0),
    ]
    assert (shown["book"].spread, shown["figures"].spread) == (Decimal("0.20"), Decimal("0.20"))
    assert shown["depth"].description == "Bids: 35 shares from 10.00 to 9.90; asks: 35 shares from 10.20 to 10.30."


def test_a_deep_book_shows_its_best_levels(office: Client) -> None:
    for number in range(60):
        place(Side.ASK, 1, f"{11 + number}")

    shown = context(office)

    assert [rung.price for rung in shown["asks"]] == [Decimal(f"{11 + n}.00") for n in reversed(range(15))]
    assert len(shown["depth"].sides[1][1]) == 50


def test_the_tape_is_newest_first_with_the_taker_in_its_colour(office: Client) -> None:
    place(Side.ASK, 5, "10")
    place(Side.BID, 3, "10")
    place(Side.BID, 1, "9")
    place(Side.ASK, 1, "9")

    tape = context(office)["tape"]

    assert [(str(price), trade.quantity, trade.taker_side) for trade, price in tape] == [
        ("9.00", 1, "ask"),
        ("10.00", 3, "bid"),
    ]
    assert '<td class="o-number o-bid">10.00</td><td class="o-number">3</td><td class="o-bid">bid</td>' in html(office)
    assert f'href="{page(Trade.objects.latest("id"))}"' in html(office)


def test_the_chart_shows_the_requested_span(office: Client) -> None:
    bar(0, "10", "12", "9", "11", volume=5)
    bar(90, "10", "10", "10", "10", volume=1)
    bar(600, "8", "8", "8", "8", volume=1)

    def chart(query: str = "") -> tuple[str, int]:
        shown = context(office, AAPL + query)
        return shown["span"].name, len(shown["prices"].columns)

    assert chart() == ("1h", 1)
    assert chart("?span=6h") == ("6h", 2)
    assert chart("?span=1d") == ("1d", 3)
    assert chart("?span=year") == ("1h", 1)
    assert context(office)["prices"].description == "From 10.00 to 11.00, between 9.00 and 12.00; 5 shares."


def test_the_page_shows_the_market_figures(office: Client) -> None:
    place(Side.ASK, 5, "10")
    place(Side.BID, 5, "10")
    place(Side.BID, 5, "9")
    place(Side.ASK, 5, "12")

    shown = context(office)
    summary, figures = shown["summary"], shown["figures"]

    assert (summary.current_price, summary.moving_average) == tuple(d("10.00", "10.25"))
    assert (figures.best_bid, figures.best_ask, figures.last_price) == tuple(d("9.00", "12.00", "10.00"))
    assert (figures.change, figures.open_orders) == (Decimal("0.00"), 2)


@pytest.mark.parametrize(("bid", "ask", "mid"), [("10.00", "10.01", "10.005"), ("10.00", "10.02", "10.01")])
def test_the_mid_of_an_odd_spread_has_one_more_decimal(office: Client, bid: str, ask: str, mid: str) -> None:
    place(Side.BID, 5, bid)
    place(Side.ASK, 5, ask)

    assert f"<dt>Mid</dt><dd>{mid}</dd>" in html(office)


def test_an_outlying_trade_is_marked_on_the_chart(office: Client) -> None:
    for minute in range(1, 6):
        bar(minute, "10", "10.10", "9.90", "10", volume=5)
    assert "Triangles mark" not in html(office)

    bar(0, "10", "500", "10", "10", volume=5)

    assert '<path class="o-outliers" d="M ' in html(office)
    assert "Triangles mark trades beyond the price axis." in html(office)


def test_a_new_instrument_shows_placeholders(office: Client) -> None:
    text = html(office)

    for each in ("never traded", "No asks.", "No bids.", "The order book is empty.", "No trades yet."):
        assert each in text
    assert "No trades in the last 1 hour." in text


def test_a_halt_is_shown_with_its_reason(office: Client) -> None:
    set_status("AAPL", InstrumentStatus.HALTED, "<news> pending")

    assert "<strong>Halted.</strong> &lt;news&gt; pending" in html(office)


def test_the_page_links_to_orders_and_trades(office: Client) -> None:
    text = html(office)

    assert 'href="/admin/orders/order/?symbol=AAPL"' in text
    assert 'href="/admin/orders/trade/?symbol=AAPL"' in text


def test_an_instrument_that_is_not_listed_has_no_page(office: Client) -> None:
    assert office.get(f"{LIST}NONE/change/").status_code == 404


def test_the_page_refreshes_automatically(office: Client) -> None:
    live = re.findall(r'id="([^"]+)"[^>]*data-live', html(office))

    assert live == ["quote", "prices", "depth", "book", "tape", "rules", "audit"]


def test_the_page_takes_fewer_than_twenty_queries(office: Client) -> None:
    for number in range(20):
        place(Side.ASK, 5, f"{10 + number}")
        place(Side.BID, 5, f"{10 + number}")

    with CaptureQueriesContext(connection) as queries:
        office.get(AAPL)

    assert len(queries) < 20


# --- Actions --------------------------------------------------------------------------------------------------------

RULES = {"name": "Petrobras", "tick_size": "0.05", "lot_size": "100", "pricing": "maker"}


def audit_entries() -> list[tuple[str, str, str, str]]:
    """Return the audit entries, newest last."""
    names = ("actor", "action", "subject", "reason")
    return list(AuditEntry.objects.filter(actor="olga").order_by("id").values_list(*names))


def rules(symbol: str) -> tuple[str, str, int, str]:
    row = Instrument.objects.get(pk=symbol)
    return row.name, str(row.tick_size), row.lot_size, row.pricing


def test_an_instrument_is_listed(office: Client) -> None:
    response = perform(office, Instrument, "list", symbol="PETR4", **RULES)

    assert result_messages(response) == [("success", "PETR4 listed.")]
    assert response.redirect_chain == [(f"{LIST}PETR4/change/", 302)]
    assert rules("PETR4") == ("Petrobras", "0.0500", 100, "maker")
    assert audit_entries() == [("olga", "instrument.list", "PETR4", REASON)]


def test_errors_of_a_new_instrument_are_shown_per_field(office: Client) -> None:
    bad = {"symbol": "petr4", "name": "x" * 101, "tick_size": "0.00001", "lot_size": "0", "pricing": "mine"}

    response = perform(office, Instrument, "list", reason=" ", **bad)

    assert form_errors(response) == {
        "symbol": ["Use capital letters, digits and dots, at most 12, not starting with a dot."],
        "name": ["Ensure this value has at most 100 characters (it has 101)."],
        "tick_size": ["Enter a number below 10^16 with at most 4 decimals, such as 1000.50."],
        "lot_size": ["Must be 1 to 1000000000000."],
        "pricing": ["Select a valid choice. mine is not one of the available choices."],
        "reason": ["This field is required."],
    }
    assert list(Instrument.objects.values_list("pk", flat=True)) == ["AAPL"]


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        pytest.param("tick_size", "0", "Must be above 0.", id="no tick"),
        pytest.param("tick_size", "-0.01", "Enter a number below 10^16", id="a negative tick"),
        pytest.param("tick_size", "NaN", "Enter a number below 10^16", id="no number"),
        pytest.param("tick_size", "1e-2", "Enter a number below 10^16", id="an exponent"),
        pytest.param("lot_size", "1.5", "Enter a whole number.", id="half a share"),
        pytest.param("lot_size", "1000000000001", "Must be 1 to 1000000000000.", id="too large a lot"),
        pytest.param("tick_size", "10000000000000.01", "tick_size times lot_size may be at most 10^15", id="no order"),
        pytest.param("symbol", "..", "Use capital letters, digits and dots", id="a part of a path"),
        pytest.param(
            "symbol",
            "ABCDEFGHIJKLM",
            "Use capital letters, digits and dots, at most 12, not starting with a dot.",
            id="13 letters",
        ),
    ],
)
def test_the_limits_are_those_of_the_api(office: Client, field: str, value: str, error: str) -> None:
    response = perform(office, Instrument, "list", **{"symbol": "PETR4", **RULES, field: value})

    found = form_errors(response)
    assert list(found) == [field]
    assert found[field][0].startswith(error)


def test_a_listed_symbol_cannot_be_listed_again(office: Client) -> None:
    response = perform(office, Instrument, "list", symbol="AAPL", **RULES)

    assert form_errors(response) == {"__all__": ["Instrument AAPL is already listed."]}
    assert audit_entries() == []


def test_the_edit_form_starts_with_the_current_values(office: Client) -> None:
    form = office.get(action_path(Instrument, "edit", "AAPL")).context["form"]

    assert {name: str(form[name].value()) for name in RULES} == {
        "name": "AAPL",
        "tick_size": "0.01",
        "lot_size": "1",
        "pricing": "seller",
    }


def test_an_instrument_is_edited(office: Client) -> None:
    response = perform(office, Instrument, "edit", "AAPL", **RULES)

    assert result_messages(response) == [("success", "Rules of AAPL changed.")]
    assert rules("AAPL") == ("Petrobras", "0.0500", 100, "maker")
    assert audit_entries() == [("olga", "instrument.edit", "AAPL", REASON)]
    assert "instrument.edit" in html(office)  # among the recent actions


def test_an_edit_is_confirmed_with_the_rules_before_and_after(office: Client) -> None:
    path = action_path(Instrument, "edit", "AAPL")
    values = {"reason": REASON, **RULES, "name": ""}
    assert "Review</button>" in html(office, path)

    response = office.post(path, values)

    assert impact(response, "changes") == [
        ["Name", "AAPL", "AAPL"],
        ["Tick size", "0.01", "0.05"],
        ["Lot size", "1", "100"],
        ["Pricing", "seller", "maker"],
    ]
    assert "Nothing is done yet." in response.content.decode()
    assert "Edit AAPL</button>" in response.content.decode()
    assert (rules("AAPL"), audit_entries()) == (("AAPL", "0.0100", 1, "seller"), [])

    confirmation = {"confirmed": response.context["digest"]}
    assert impact(office.post(path, values | confirmation | {"lot_size": "10"}), "changes")[2] == [
        "Lot size",
        "1",
        "10",
    ]
    assert rules("AAPL")[2] == 1  # other values must be confirmed again

    assert office.post(path, values | confirmation).status_code == 302
    assert rules("AAPL") == ("AAPL", "0.0500", 100, "maker")


@pytest.mark.parametrize("action", ["halt", "resume", "edit"])
def test_the_page_of_an_action_shows_the_market(office: Client, action: str) -> None:
    place(Side.ASK, 5, "10")
    place(Side.BID, 2, "10")
    place(Side.BID, 4, "9.50")
    place(Side.ASK, 1, "1200")

    shown = impact(office.get(action_path(Instrument, action, "AAPL")))

    assert shown == [["AAPL", "10.00", "9.50", "10.00", "3", "1,268.00"]]  # the value is 30 + 38 + 1,200


def test_the_impact_on_many_instruments_takes_as_many_queries_as_on_one(
    office: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        instrument(f"S{number:02}")
        place(Side.BID, 1, "10", symbol=f"S{number:02}")
    place(Side.BID, 1, "10")
    place(Side.BID, 1, "9")

    with CaptureQueriesContext(connection) as for_one:
        office.get(action_path(Instrument, "halt", "AAPL"))
    with CaptureQueriesContext(connection) as for_many:
        shown = impact(office.get(action_path(Instrument, "halt", "AAPL", *(f"S{n:02}" for n in range(20)))))

    assert len(for_many) == len(for_one)
    assert [row[4:] for row in shown] == [["2", "19.00"], *[["1", "10.00"]] * 20]
    monkeypatch.setattr(open_orders, "MAX_SUMMED_ORDERS", 1)
    assert impact(office.get(action_path(Instrument, "halt", "AAPL")))[0][4:] == ["1+", "19.00+"]


def test_rules_that_open_orders_violate_are_rejected_per_field(office: Client) -> None:
    place(Side.BID, 7, "10.01")

    assert set(form_errors(perform(office, Instrument, "edit", "AAPL", **RULES))) == {"tick_size", "lot_size"}
    assert rules("AAPL") == ("AAPL", "0.0100", 1, "seller")
    assert audit_entries() == []


def test_an_unused_instrument_is_removed(office: Client) -> None:
    instrument("PETR4")
    path = action_path(Instrument, "remove", "PETR4")
    assert has_button(office, path, f"{LIST}PETR4/change/")

    response = perform(office, Instrument, "remove", "PETR4")

    assert result_messages(response) == [("success", "PETR4 removed.")]
    assert response.redirect_chain == [(LIST, 302)]
    assert office.get(f"{LIST}PETR4/change/").status_code == 404
    assert audit_entries() == [("olga", "instrument.remove", "PETR4", REASON)]


def test_a_used_instrument_is_not_removed(office: Client) -> None:
    path = action_path(Instrument, "remove", "AAPL")
    assert has_button(office, path, AAPL)  # without orders, but alice holds shares
    assert form_errors(perform(office, Instrument, "remove", "AAPL")) == {
        "__all__": ["This instrument was ordered or held, so it cannot be removed. Halt it instead."]
    }

    place(Side.BID, 5, "10")

    assert not has_button(office, path, AAPL)
    assert list(form_errors(perform(office, Instrument, "remove", "AAPL"))) == ["__all__"]
    assert (status(), audit_entries()) == (("trading", ""), [])


def test_halt_and_resume(office: Client) -> None:
    halt, resume = action_path(Instrument, "halt", "AAPL"), action_path(Instrument, "resume", "AAPL")
    assert (has_button(office, halt, AAPL), has_button(office, resume, AAPL)) == (True, False)

    assert result_messages(perform(office, Instrument, "halt", "AAPL")) == [("success", "AAPL halted.")]

    assert status() == ("halted", REASON)
    assert (has_button(office, halt, AAPL), has_button(office, resume, AAPL)) == (False, True)

    assert result_messages(perform(office, Instrument, "resume", "AAPL", reason="news are out")) == [
        ("success", "AAPL resumed.")
    ]

    assert status()[0] == "trading"
    assert audit_entries() == [
        ("olga", "instrument.halt", "AAPL", REASON),
        ("olga", "instrument.resume", "AAPL", "news are out"),
    ]


@pytest.mark.parametrize("action", ["halt", "resume", "edit"])
def test_actions_need_a_reason(office: Client, action: str) -> None:
    assert form_errors(perform(office, Instrument, action, "AAPL", reason="", **RULES)) == {
        "reason": ["This field is required."]
    }
    assert (status(), rules("AAPL"), audit_entries()) == (("trading", ""), ("AAPL", "0.0100", 1, "seller"), [])


def test_several_instruments_are_halted_at_once(office: Client) -> None:
    for symbol in ("PETR4", "VALE3"):
        instrument(symbol)

    response = perform(office, Instrument, "halt", "VALE3", "AAPL")

    assert result_messages(response) == [("success", "AAPL, VALE3 halted.")]
    assert response.redirect_chain == [(LIST, 302)]
    assert [status(symbol)[0] for symbol in ("AAPL", "PETR4", "VALE3")] == ["halted", "trading", "halted"]


def test_a_locked_instrument_is_reported_and_the_others_are_halted(office: Client) -> None:
    instrument("PETR4")
    with holding("AAPL"):
        response = perform(office, Instrument, "halt", "AAPL", "PETR4")

    ((level, message),) = result_messages(response)
    assert level == "warning"
    assert message.startswith("PETR4 halted. Could not confirm: AAPL.")
    assert (status("AAPL")[0], status("PETR4")[0]) == ("trading", "halted")


def test_all_instruments_are_halted(office: Client) -> None:
    for symbol in ("PETR4", "VALE3"):
        instrument(symbol)
    set_status("VALE3", InstrumentStatus.HALTED, "before")
    assert "2 instruments are trading." in html(office, action_path(Instrument, "halt-all"))

    response = perform(office, Instrument, "halt-all", confirmation="HALT")

    assert result_messages(response) == [("success", "AAPL, PETR4 halted.")]
    assert [status(symbol) for symbol in ("AAPL", "PETR4", "VALE3")] == [("halted", REASON)] * 2 + [
        ("halted", "before")
    ]
    assert audit_entries() == [("olga", "instrument.halt", symbol, REASON) for symbol in ("AAPL", "PETR4")]


@pytest.mark.parametrize("confirmation", ["", "halt", "HALTED", "yes"])
def test_halting_all_instruments_needs_a_confirmation(office: Client, confirmation: str) -> None:
    assert list(form_errors(perform(office, Instrument, "halt-all", confirmation=confirmation))) == ["confirmation"]
    assert status() == ("trading", "")


def test_halting_all_instruments_warns_if_none_are_trading(office: Client) -> None:
    set_status("AAPL", InstrumentStatus.HALTED)

    response = perform(office, Instrument, "halt-all", confirmation="HALT")

    assert result_messages(response) == [("warning", "No instruments were trading.")]


ACTS = {"list": "", "edit": "AAPL", "remove": "AAPL", "halt": "AAPL", "resume": "AAPL", "halt-all": ""}


@pytest.mark.parametrize("action", ACTS)
def test_viewers_see_no_button_and_are_refused(client: Client, action: str) -> None:
    viewer = sign_in(client, "vera", VIEW)
    set_status("AAPL", InstrumentStatus.HALTED if action == "resume" else InstrumentStatus.TRADING)
    path = action_path(Instrument, action, *filter(None, [ACTS[action]]))

    assert not any(has_button(viewer, path, each) for each in (LIST, AAPL))
    assert f"{LIST}{action}/" not in html(viewer, LIST)
    assert viewer.get(path).status_code == 403
    assert viewer.post(path, {"reason": REASON, "symbol": "X", "confirmation": "HALT", **RULES}).status_code == 403
    assert list(Instrument.objects.values_list("pk", "name", "halt_reason")) == [("AAPL", "AAPL", "")]


@pytest.mark.parametrize("path", [LIST, AAPL])
def test_users_without_view_permission_are_refused(client: Client, path: str) -> None:
    assert sign_in(client, "vera", ["exchange.view_broker"]).get(path).status_code == 403
