"""Charts: positions in percent of the box, also for markets that hardly move."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from backoffice import charts
from backoffice.charts import AxisLabel, CandleColumn, LadderLevel, Span
from backoffice.queries.market_watch import Candle
from orders.enums import Side
from orders.market_data import BookSnapshot, Level

NOON = datetime(2026, 2, 16, 12, tzinfo=UTC)
TICK = Decimal("0.01")
MINUTE = timedelta(minutes=1)
HOUR = Span("1h", "1 hour", 60 * MINUTE, step=MINUTE, mark=10 * MINUTE)
TEN_MINUTES = Span("10m", "10 minutes", 10 * MINUTE, step=MINUTE, mark=5 * MINUTE)


def d(*numbers: str) -> list[Decimal]:
    return [Decimal(each) for each in numbers]


@pytest.mark.parametrize(
    ("low", "high", "least", "expected"),
    [
        pytest.param("0", "10", "0.01", d("0", "2", "4", "6", "8", "10"), id="by twos"),
        pytest.param("9.93", "10.12", "0.01", d("9.95", "10.00", "10.05", "10.10"), id="by five hundredths"),
        pytest.param("9.99", "10.01", "0.01", d("9.99", "10.00", "10.01"), id="never less than a tick apart"),
        pytest.param("9.97", "10.04", "0.03", d("9.99", "10.02"), id="by an odd tick"),
        pytest.param("7", "7", "1", d("7"), id="a single number"),
        pytest.param("0.2", "0.4", "1", [], id="nothing round between them"),
        pytest.param("999", "1000999", "1", d("200000", "400000", "600000", "800000", "1000000"), id="large"),
    ],
)
def test_an_axis_has_round_numbers(low: str, high: str, least: str, expected: list[Decimal]) -> None:
    assert charts.ticks(Decimal(low), Decimal(high), 5, Decimal(least)) == expected


# --- Order book -----------------------------------------------------------------------------------------------------


def book(*, bids: Sequence[tuple[str, int, int]] = (), asks: Sequence[tuple[str, int, int]] = ()) -> BookSnapshot:
    """Return a book with these prices, quantities and order counts."""
    return BookSnapshot("AAPL", levels(bids), levels(asks), spread=None, sequence=0, snapshot_at=NOON)


def levels(side: Sequence[tuple[str, int, int]]) -> list[Level]:
    return [Level(Decimal(price), quantity, orders) for price, quantity, orders in side]


BOTH_SIDES = book(bids=[("10.00", 50, 2), ("9.90", 25, 1)], asks=[("10.10", 100, 1), ("10.30", 20, 4), ("10.40", 1, 1)])


def test_a_ladder_cumulates_each_side_and_scales_bars_to_the_largest_level() -> None:
    bids, asks = charts.ladder(BOTH_SIDES, 2)

    assert bids == [LadderLevel(Decimal("10.00"), 50, 2, 50, 50.0), LadderLevel(Decimal("9.90"), 25, 1, 75, 25.0)]
    assert asks == [LadderLevel(Decimal("10.10"), 100, 1, 100, 100.0), LadderLevel(Decimal("10.30"), 20, 4, 120, 20.0)]


def test_the_ladder_of_an_empty_book_is_empty() -> None:
    assert charts.ladder(book(), 10) == ([], [])


def test_depth_rises_from_the_best_price_to_the_edge() -> None:
    chart = charts.depth_chart(BOTH_SIDES, TICK)

    assert chart is not None  # 9.875 to 10.425 are 0.55 wide; 121 shares are 95 % high
    assert chart.bids == "M 22.73 100 H 22.73 V 60.74 H 4.55 V 41.12 H 0 V 100 Z"
    assert chart.asks == "M 40.91 100 H 40.91 V 21.49 H 77.27 V 5.79 H 95.45 V 5.0 H 100 V 100 Z"
    assert chart.prices == [AxisLabel(22.73, "10.00"), AxisLabel(59.09, "10.20"), AxisLabel(95.45, "10.40")]
    assert chart.quantities == [AxisLabel(60.74, "50"), AxisLabel(21.49, "100")]
    assert chart.description == "Bids: 75 shares from 10.00 to 9.90; asks: 121 shares from 10.10 to 10.40."
    assert [(side, len(rungs)) for side, rungs in chart.sides] == [(Side.BID, 2), (Side.ASK, 3)]


def test_an_empty_book_has_no_depth() -> None:
    assert charts.depth_chart(book(), TICK) is None


def test_a_single_level_is_in_the_middle() -> None:
    chart = charts.depth_chart(book(asks=[("10.00", 7, 1)]), TICK)

    assert chart is not None
    assert (chart.bids, chart.asks) == ("", "M 50.0 100 H 50.0 V 5.0 H 100 V 100 Z")
    assert chart.prices == [AxisLabel(0.0, "9.99"), AxisLabel(50.0, "10.00"), AxisLabel(100.0, "10.01")]
    assert chart.description == "Bids: none; asks: 7 shares from 10.00 to 10.00."


def test_the_smallest_and_largest_values_can_be_drawn() -> None:
    chart = charts.depth_chart(
        book(bids=[("0.0001", 10**12, 1)], asks=[("9999999999999999.9999", 1, 1)]), Decimal("0.0001")
    )

    assert chart is not None
    assert chart.bids == "M 4.55 100 H 4.55 V 5.0 H 0 V 100 Z"
    assert chart.asks == "M 95.45 100 H 95.45 V 100.0 H 100 V 100 Z"


# --- Prices ---------------------------------------------------------------------------------------------------------


def candle(minute: int, *prices: str, volume: int = 10) -> Candle:
    open_, high, low, close = d(*prices)
    return Candle(NOON + minute * MINUTE, open_, high, low, close, volume)


def test_candles_are_positioned_by_time_price_and_volume() -> None:
    candles = [candle(0, "10.00", "11.00", "9.00", "10.50", volume=40), candle(9, "10.50", "10.50", "9.50", "10.00")]

    chart = charts.price_chart(candles, TEN_MINUTES, NOON, TICK)

    assert chart is not None  # 8.90 to 11.10 are the upper 76 %, the volumes the lower 20 %
    up, down = chart.paths
    assert (up.tone, up.candles) == ("up", "M 5.0 3.45 V 72.55 M 1.5 20.73 H 8.5 V 38.0 H 1.5 Z")
    assert up.volumes == "M 1.5 80.0 H 8.5 V 100 H 1.5 Z"
    assert (down.tone, down.candles) == ("down", "M 95.0 20.73 V 55.27 M 91.5 20.73 H 98.5 V 38.0 H 91.5 Z")
    assert down.volumes == "M 91.5 95.0 H 98.5 V 100 H 91.5 Z"
    first, last = chart.columns
    assert (first, chart.width) == (CandleColumn(0.0, "12:00", ("10.00", "11.00", "9.00", "10.50", "40")), 10.0)
    assert last.text == "12:09 UTC: open 10.50, high 10.50, low 9.50, close 10.00, 10 shares"
    assert chart.last == AxisLabel(38.0, "10.00")
    assert chart.prices == [
        AxisLabel(72.55, "9.00"),
        AxisLabel(55.27, "9.50"),
        AxisLabel(38.0, "10.00"),
        AxisLabel(20.73, "10.50"),
        AxisLabel(3.45, "11.00"),
    ]
    assert chart.times == [AxisLabel(0.0, "12:00"), AxisLabel(50.0, "12:05")]
    assert chart.description == "From 10.00 to 10.00, between 9.00 and 11.00; 50 shares."
    assert chart.newest_first == [last, first]


def test_one_trade_is_a_line_in_the_middle() -> None:
    chart = charts.price_chart([candle(3, "10.00", "10.00", "10.00", "10.00", volume=1)], TEN_MINUTES, NOON, TICK)

    assert chart is not None
    assert [(each.candles, each.volumes) for each in chart.paths] == [
        ("M 35.0 38.0 V 38.0 M 31.5 38.0 H 38.5 V 38.0 H 31.5 Z", "M 31.5 80.0 H 38.5 V 100 H 31.5 Z"),
        ("", ""),
    ]
    assert chart.prices == [AxisLabel(76.0, "9.99"), AxisLabel(38.0, "10.00"), AxisLabel(0.0, "10.01")]


CALM = [candle(minute, "148.00", "148.20", "147.80", "148.10") for minute in range(8)]


@pytest.mark.parametrize(
    ("outlier", "mark"),
    [
        pytest.param(candle(4, "1.00", "1.00", "1.00", "1.00"), "M 40.0 73.0 H 50.0 L 45.0 76.0 Z", id="far below"),
        pytest.param(candle(8, "900", "900", "900", "900"), "M 80.0 3 H 90.0 L 85.0 0 Z", id="the last trade"),
        pytest.param(candle(4, "148", "900", "147.90", "148"), "M 40.0 3 H 50.0 L 45.0 0 Z", id="within a minute"),
    ],
)
def test_an_outlying_trade_is_marked_and_does_not_flatten_the_chart(outlier: Candle, mark: str) -> None:
    candles = sorted([*(each for each in CALM if each.at != outlier.at), outlier], key=lambda each: each.at)

    chart = charts.price_chart(candles, TEN_MINUTES, NOON, TICK)

    assert chart is not None
    assert [each.text for each in chart.prices] == ["147.80", "147.90", "148.00", "148.10", "148.20"]
    assert chart.outliers == [mark]
    heights = [float(each) for path in chart.paths for each in re.findall(r"(?<=V )[\d.]+", path.candles)]
    assert 0 <= min(heights) <= max(heights) <= 76  # the outlier ends at the edge
    assert str(outlier.high) in chart.description or str(outlier.low) in chart.description


@pytest.mark.parametrize(
    "prices",
    [
        pytest.param(["148", "900"], id="two trades"),
        pytest.param(["100", "110", "120"], id="a trend"),
        pytest.param(["148"] * 8 + ["148.10"], id="a small move"),
        pytest.param(["148"] * 7 + ["152", "152"], id="a move that lasts"),
    ],
)
def test_all_other_prices_are_on_the_axis(prices: list[str]) -> None:
    candles = [candle(minute, *[price] * 4) for minute, price in enumerate(prices)]

    chart = charts.price_chart(candles, TEN_MINUTES, NOON, TICK)

    assert chart is not None
    assert chart.outliers == []
    assert 0 < chart.last.at < 76


def test_of_many_candles_one_in_twenty_may_be_an_outlier() -> None:
    def outliers(count: int) -> int:
        highs = [900 if minute < count else 148 for minute in range(60)]
        candles = [candle(minute, "148", f"{high}", "148", "148") for minute, high in enumerate(highs)]
        chart = charts.price_chart(candles, HOUR, NOON, TICK)
        return len(chart.outliers) if chart else 0

    assert [outliers(count) for count in (1, 3, 4)] == [1, 3, 0]


def test_a_price_axis_starts_above_zero() -> None:
    chart = charts.price_chart([candle(0, "0.01", "0.01", "0.01", "0.01")], TEN_MINUTES, NOON, TICK)

    assert chart is not None
    assert [mark.text for mark in chart.prices] == ["0.01", "0.02"]


def test_without_trades_there_is_no_chart() -> None:
    assert charts.price_chart([], TEN_MINUTES, NOON, TICK) is None


@pytest.mark.parametrize(
    ("now", "begin"),
    [
        pytest.param(NOON, NOON - 9 * MINUTE, id="the minute that has just begun is the last"),
        pytest.param(NOON + timedelta(seconds=59), NOON - 9 * MINUTE, id="as long as it lasts"),
        pytest.param(NOON.replace(hour=0, minute=2), NOON.replace(hour=0) - 7 * MINUTE, id="over midnight"),
    ],
)
def test_a_span_ends_with_the_current_step(now: datetime, begin: datetime) -> None:
    assert TEN_MINUTES.begin(now) == begin


def test_time_labels_are_multiples_of_the_step_since_midnight() -> None:
    chart = charts.price_chart([candle(0, "10", "10", "10", "10")], TEN_MINUTES, NOON - 3 * MINUTE, TICK)

    assert chart is not None
    assert chart.times == [AxisLabel(30.0, "12:00"), AxisLabel(80.0, "12:05")]
