"""Market figures and candles, compared with placed orders and trades."""

from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from backoffice.queries import market_watch
from backoffice.queries.market_watch import Candle, Figures
from exchange import services
from exchange.database import database_now
from exchange.models import Instrument
from orders.enums import Side
from orders.models import Bar, Trade
from tests.orders.conftest import _check_invariants  # noqa: F401 (a fixture)
from tests.trading import BY, broker, cancel, instrument, place

pytestmark = pytest.mark.django_db(transaction=True)

NINE, TEN, ELEVEN, TWELVE = (Decimal(f"{number}.00") for number in range(9, 13))
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _alice() -> None:
    broker("alice")


def trade(price: str, quantity: int = 5, *, symbol: str = "AAPL", at: datetime | None = None) -> Trade:
    """Make a trade of a broker with itself, optionally moved to another time."""
    place(Side.ASK, quantity, price, symbol=symbol)
    place(Side.BID, quantity, price, symbol=symbol)
    made = Trade.objects.latest("id")
    if at is not None:
        Trade.objects.filter(pk=made.pk).update(executed_at=at)
        made.refresh_from_db()
    return made


def bar(minute: datetime, *prices: str, volume: int, symbol: str = "AAPL", trades: int = 1) -> Bar:
    """Create a bar with open, high, low and close. Its value is its volume at a price of 10."""
    names = ("open", "high", "low", "close")
    ohlc = dict(zip(names, map(Decimal, prices), strict=True)) if prices else {}
    return Bar.objects.create(
        instrument_id=symbol, minute=minute, trades=trades, volume=volume, value=volume * 10, **ohlc
    )


def midnight() -> datetime:
    return database_now().replace(hour=0, minute=0, second=0, microsecond=0)


def aapl() -> Figures:
    return market_watch.figures_of(["AAPL"])["AAPL"]


def test_without_orders_the_figures_are_empty() -> None:
    figures = aapl()

    assert (figures.best_bid, figures.best_ask, figures.spread) == (None, None, None)
    assert (figures.last_price, figures.last_trade_at, figures.change, figures.change_percent) == (None,) * 4
    assert (figures.first_price, figures.high, figures.low) == (None, None, None)
    assert (figures.trades, figures.volume, figures.value, figures.open_orders) == (0, 0, Decimal(0), 0)


def test_best_prices_and_spread() -> None:
    for price in ("10.10", "10.30", "10.20"):
        place(Side.ASK, 1, price)
    best = place(Side.BID, 1, "9.95")
    place(Side.BID, 1, "9.90")

    figures = aapl()
    assert (figures.best_bid, figures.best_ask, figures.spread) == (Decimal("9.95"), Decimal("10.10"), Decimal("0.15"))
    assert figures.open_orders == 5

    cancel(best)
    assert (aapl().best_bid, aapl().spread, aapl().open_orders) == (Decimal("9.90"), Decimal("0.20"), 4)


def test_one_side_has_no_spread() -> None:
    place(Side.ASK, 1, "10.10")

    figures = aapl()
    assert (figures.best_bid, figures.best_ask, figures.spread) == (None, Decimal("10.10"), None)


def test_an_expired_order_is_no_best_price() -> None:
    resting = place(Side.BID, 1, "9.95")
    type(resting).objects.filter(pk=resting.pk).update(expires_at=database_now())

    assert aapl().best_bid is None


def test_the_change_is_from_the_last_trade_of_the_day_before() -> None:
    trade("8", at=midnight() - timedelta(days=3))
    trade("10", at=midnight() - timedelta(microseconds=1))
    trade("11", at=midnight())
    last = trade("12")

    figures = aapl()
    assert (figures.first_price, figures.last_price, figures.last_trade_at) == (ELEVEN, TWELVE, last.executed_at)
    assert (figures.change, figures.change_percent) == (Decimal("2.00"), Decimal("20.00"))


def test_on_the_first_day_the_change_is_from_the_first_trade() -> None:
    trade("12", at=midnight())
    trade("11")

    assert (aapl().change, aapl().change_percent) == (Decimal("-1.00"), Decimal("-8.33"))


def test_after_one_trade_the_change_is_zero() -> None:
    trade("12")

    assert (aapl().change, aapl().change_percent) == (Decimal("0.00"), Decimal("0.00"))


def test_on_a_day_without_trades_there_is_no_change() -> None:
    trade("10", at=midnight() - timedelta(hours=3))
    trade("12", at=midnight() - timedelta(hours=2))

    figures = aapl()
    assert (figures.last_price, figures.change, figures.change_percent, figures.first_price) == (
        TWELVE,
        None,
        None,
        None,
    )


def test_open_orders_are_counted_for_all_brokers_of_the_instrument() -> None:
    instrument("PETR4")
    broker("bob", holdings={"PETR4": 10})
    for price in ("9", "10"):
        place(Side.BID, 1, price)
    partly = place(Side.ASK, 5, "11")
    place(Side.BID, 2, "11", by="bob")
    place(Side.BID, 1, "8", by="bob")
    place(Side.ASK, 1, "30", by="bob", symbol="PETR4")

    figures = market_watch.figures_of(["AAPL", "PETR4"])
    assert {symbol: each.open_orders for symbol, each in figures.items()} == {"AAPL": 4, "PETR4": 1}

    cancel(partly)
    assert aapl().open_orders == 3


def test_daily_sums_come_from_the_bars_of_the_day() -> None:
    bar(midnight() - MINUTE, "99", "99", "1", "50", volume=1_000)
    bar(midnight(), "10", "12", "9", "11", volume=30, trades=3)
    bar(midnight() + MINUTE, volume=0, trades=0)  # orders only
    bar(midnight() + 2 * MINUTE, "11", "11", "8.5", "10", volume=12, trades=2)

    figures = aapl()
    assert (figures.high, figures.low) == (TWELVE, Decimal("8.50"))
    assert (figures.trades, figures.volume, figures.value) == (5, 42, Decimal(420))


def test_all_instruments_are_read_in_one_query() -> None:
    instrument("PETR4", tick="0.0001", lot=10)
    broker("bob", holdings={"PETR4": 100})
    place(Side.ASK, 10, "30.1234", by="bob", symbol="PETR4")
    place(Side.BID, 1, "10")

    with CaptureQueriesContext(connection) as queries:
        figures = market_watch.figures_of(["PETR4", "AAPL", "NONE"])

    assert len(queries) == 1
    assert {symbol: (each.best_bid, each.best_ask) for symbol, each in figures.items()} == {
        "AAPL": (TEN, None),
        "PETR4": (None, Decimal("30.1234")),
    }
    assert str(figures["AAPL"].best_bid) == "10.00"  # with the instrument's decimals


# --- Quiet ----------------------------------------------------------------------------------------------------------


def test_an_instrument_in_trading_without_recent_trades_is_quiet() -> None:
    def quiet(now: datetime) -> list[str]:
        return [each.pk for each in Instrument.objects.filter(market_watch.is_quiet(now)).order_by("symbol")]

    instrument("PETR4")
    trade("10")
    ends_at = trade("10").executed_at + market_watch.QUIET_AFTER
    assert quiet(ends_at) == ["PETR4"]
    assert quiet(ends_at + timedelta(microseconds=1)) == ["AAPL", "PETR4"]

    services.halt("PETR4", by=BY)
    assert quiet(ends_at) == []


# --- Candles --------------------------------------------------------------------------------------------------------


def test_candles_aggregate_their_bars() -> None:
    begin = midnight()
    bar(begin - MINUTE, "1", "1", "1", "1", volume=1)
    bar(begin, "10", "12", "10", "11", volume=5)
    bar(begin + 4 * MINUTE, "11", "11.5", "9", "9.5", volume=7)
    bar(begin + 5 * MINUTE, volume=0, trades=0)
    bar(begin + 11 * MINUTE, "9", "9", "9", "9", volume=1)

    candles = market_watch.candles(Instrument.objects.get(pk="AAPL"), begin, 5 * MINUTE)

    assert candles == [
        Candle(begin, TEN, TWELVE, NINE, Decimal("9.50"), 12),
        Candle(begin + 10 * MINUTE, NINE, NINE, NINE, NINE, 1),
    ]
    assert str(candles[0].open) == "10.00"


def test_candles_contain_their_own_instrument_only() -> None:
    instrument("PETR4")
    bar(midnight(), "1", "1", "1", "1", volume=1, symbol="PETR4")

    assert market_watch.candles(Instrument.objects.get(pk="AAPL"), midnight(), MINUTE) == []
