"""Geometry of the SVG charts, which templates draw and describe.

Coordinates of the depth and price charts are percentages of a box of any shape. Only coordinates are binary floats;
the numbers in labels are exact.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from itertools import accumulate

from backoffice.queries.market_watch import Candle
from exchange.rules import price_decimals, rounded
from orders.enums import Side
from orders.market_data import BookSnapshot, Level

Number = int | float | Decimal

TICKS = 5  # the maximum on an axis
HEIGHT_USED = Decimal("0.95")  # size of the depth chart's box
PRICES_PART, VOLUMES_PART = Decimal("0.76"), Decimal("0.2")  # share of the price chart's height
BODY_PART = 0.7  # share of a candle's column; the rest is the gap
CANDLES_PER_OUTLIER = 20  # the share of candles that may be outliers: one in 20, but at least one
OUTLIER_STRETCH = 4  # outliers are left out of the price axis if they stretch it by more than this factor
CALM_TICKS = 20  # a smaller range of the other candles counts as this, so that small moves are not outliers
MARK_HEIGHT = 3  # percent of the box


@dataclass(frozen=True, slots=True)
class Sparkline:
    """SVG paths of a line in a box of this size, and of the area below it. Zero is at the bottom."""

    width: int
    height: int
    line: str
    area: str


def sparkline(values: Sequence[Number], width: int = 240, height: int = 40) -> Sparkline:
    """Draw the values at equal distances, the highest at the top, with a margin of one point for the line width."""
    highest = max((float(value) for value in values), default=0.0) or 1.0
    step = width / max(len(values) - 1, 1)
    points = [
        f"{n * step:.1f},{height - 1 - float(each) / highest * (height - 2):.1f}" for n, each in enumerate(values)
    ]
    if not points:
        return Sparkline(width, height, "", "")
    line = f"M{' L'.join(points)}"
    return Sparkline(width, height, line, f"{line} L{(len(points) - 1) * step:.1f},{height} L0,{height} Z")


# --- Axes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AxisLabel:
    """A text on an axis and its position, in percent from the left or from the top."""

    at: float
    text: str


def ticks(low: Decimal, high: Decimal, at_most: int, least: Decimal) -> list[Decimal]:
    """Return evenly spaced round numbers from `low` to `high`, at least `least` apart."""
    rough = (high - low) / at_most
    unit = Decimal(1).scaleb(rough.adjusted()) if rough else least
    step = max(least, next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough))
    first = int((low / step).to_integral_value(ROUND_CEILING))
    last = int((high / step).to_integral_value(ROUND_FLOOR))
    return [n * step for n in range(first, last + 1)]


def _percent(part: Decimal, whole: Decimal | int) -> float:
    """Return `part` as a percentage of `whole`, with two decimals."""
    return round(float(100 * part / whole), 2)


@dataclass(frozen=True, slots=True)
class _PriceScale:
    """A scale of prices with a margin at both ends."""

    low: Decimal
    high: Decimal
    tick_size: Decimal

    @classmethod
    def around(cls, lowest: Decimal, highest: Decimal, tick_size: Decimal) -> "_PriceScale":
        margin = max(tick_size, (highest - lowest) / 20)
        return cls(lowest - margin, highest + margin, tick_size)

    def across(self, price: Decimal) -> float:
        """Return a price's position from the left, on a horizontal axis."""
        return _percent(price - self.low, self.high - self.low)

    def down(self, price: Decimal) -> float:
        """Return a price's position from the top, above the volumes; at the edge if it is outside the scale."""
        return _percent((self.high - min(max(price, self.low), self.high)) * PRICES_PART, self.high - self.low)

    def ticks(self) -> list[Decimal]:
        return ticks(max(self.low, self.tick_size), self.high, TICKS, self.tick_size)

    def written(self, price: Decimal) -> str:
        return f"{rounded(price, price_decimals(self.tick_size)):,}"


# --- Order book -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LadderLevel:
    """A price level with the cumulative quantity at its price or better, and the length of its bar in percent."""

    price: Decimal
    quantity: int
    orders: int
    cumulative: int
    bar: float


def ladder(book: BookSnapshot, depth: int) -> tuple[list[LadderLevel], list[LadderLevel]]:
    """Return the best `depth` levels of bids and asks, best first. Both sides share one bar scale."""
    bids, asks = book.bids[:depth], book.asks[:depth]
    largest = max((level.total_quantity for level in (*bids, *asks)), default=1)
    return _ladder_levels(bids, largest), _ladder_levels(asks, largest)


def _ladder_levels(levels: Sequence[Level], largest: int) -> list[LadderLevel]:
    totals = accumulate(level.total_quantity for level in levels)
    return [
        LadderLevel(
            price=level.price,
            quantity=level.total_quantity,
            orders=level.order_count,
            cumulative=total,
            bar=_percent(Decimal(level.total_quantity), largest),
        )
        for level, total in zip(levels, totals, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class DepthChart:
    """Cumulative quantity at each price or better: an area per side, empty for a side without orders."""

    bids: str
    asks: str
    prices: list[AxisLabel]
    quantities: list[AxisLabel]
    description: str
    sides: list[tuple[Side, list[LadderLevel]]]


def depth_chart(book: BookSnapshot, tick_size: Decimal) -> DepthChart | None:
    """Return the depth chart of an order book, or None if it is empty."""
    bids, asks = ladder(book, max(len(book.bids), len(book.asks)))
    levels = [*bids, *asks]
    if not levels:
        return None
    scale = _PriceScale.around(min(each.price for each in levels), max(each.price for each in levels), tick_size)
    most = Decimal(max(each.cumulative for each in levels))

    def y(quantity: Decimal) -> float:
        return round(100 - _percent(quantity * HEIGHT_USED, most), 2)

    def points(side: list[LadderLevel]) -> list[tuple[float, float]]:
        return [(scale.across(each.price), y(Decimal(each.cumulative))) for each in side]

    return DepthChart(
        bids=_steps(points(bids), edge=0),
        asks=_steps(points(asks), edge=100),
        prices=[AxisLabel(scale.across(price), scale.written(price)) for price in scale.ticks()],
        quantities=[AxisLabel(y(each), f"{int(each):,}") for each in ticks(Decimal(1), most, TICKS, Decimal(1))],
        description=f"{_describe_side('Bids', bids)}; {_describe_side('asks', asks)}.",
        sides=[(Side.BID, bids), (Side.ASK, asks)],
    )


def _steps(points: Sequence[tuple[float, float]], *, edge: int) -> str:
    """Return the path of a staircase from the best price to the edge of the box and back along its bottom."""
    if not points:
        return ""
    stairs = " ".join(f"H {x} V {y}" for x, y in points)
    return f"M {points[0][0]} 100 {stairs} H {edge} V 100 Z"


def _describe_side(side: str, levels: Sequence[LadderLevel]) -> str:
    if not levels:
        return f"{side}: none"
    return f"{side}: {levels[-1].cumulative:,} shares from {levels[0].price:,} to {levels[-1].price:,}"


# --- Prices ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """A time span of a price chart, with a candle per `step` and a label per `mark`."""

    name: str
    label: str
    length: timedelta
    step: timedelta
    mark: timedelta

    def begin(self, now: datetime) -> datetime:
        """Return the start of the span whose last step is the current one."""
        return _floor(now, self.step) + self.step - self.length

    def part(self, time: timedelta) -> float:
        """Return a duration as a percentage of the span."""
        return round(100 * (time / self.length), 2)


def _floor(at: datetime, step: timedelta) -> datetime:
    """Round a time down to a multiple of `step` since midnight."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    return at - (at - midnight) % step


@dataclass(frozen=True, slots=True)
class CandleColumn:
    """The column of a candle, which reacts to the pointer, with open, high, low, close and volume."""

    x: float
    time: str
    numbers: tuple[str, str, str, str, str]

    @property
    def text(self) -> str:
        open_, high, low, close, volume = self.numbers
        return f"{self.time} UTC: open {open_}, high {high}, low {low}, close {close}, {volume} shares"


@dataclass(frozen=True, slots=True)
class CandlePaths:
    """The paths of all rising or all falling candles: wicks and bodies in one, volumes in the other."""

    tone: str
    candles: str
    volumes: str


@dataclass(frozen=True, slots=True)
class PriceChart:
    """Candles over time with volumes, the marks of outliers, and the position of the last price."""

    paths: list[CandlePaths]
    outliers: list[str]  # a path per mark
    columns: list[CandleColumn]
    width: float  # of a column
    prices: list[AxisLabel]
    times: list[AxisLabel]
    last: AxisLabel
    description: str

    @property
    def newest_first(self) -> list[CandleColumn]:
        return self.columns[::-1]


def price_chart(candles: Sequence[Candle], span: Span, begin: datetime, tick_size: Decimal) -> PriceChart | None:
    """Return the price chart, or None without trades."""
    if not candles:
        return None
    lowest, highest = min(each.low for each in candles), max(each.high for each in candles)
    scale = _PriceScale.around(*_main_range(candles, tick_size), tick_size)
    most = max(each.volume for each in candles)
    first, last = candles[0].open, candles[-1].close
    x_of = {candle: span.part(candle.at - begin) for candle in candles}
    width = span.part(span.step)

    def draw(tone: str, selected: list[Candle]) -> CandlePaths:
        shapes = " ".join(_candle(candle, x_of[candle], width, scale) for candle in selected)
        return CandlePaths(tone, shapes, " ".join(_volume(candle, x_of[candle], width, most) for candle in selected))

    return PriceChart(
        paths=[
            draw("up", [each for each in candles if each.close >= each.open]),
            draw("down", [each for each in candles if each.close < each.open]),
        ],
        outliers=[mark for candle in candles for mark in _outlier_marks(candle, x_of[candle], width, scale)],
        columns=[_column(candle, x_of[candle], scale) for candle in candles],
        width=width,
        prices=[AxisLabel(scale.down(price), scale.written(price)) for price in scale.ticks()],
        times=list(_times(span, begin)),
        last=AxisLabel(scale.down(last), scale.written(last)),
        description=(
            f"From {scale.written(first)} to {scale.written(last)}, between {scale.written(lowest)} and "
            f"{scale.written(highest)}; {sum(each.volume for each in candles):,} shares."
        ),
    )


def _main_range(candles: Sequence[Candle], tick_size: Decimal) -> tuple[Decimal, Decimal]:
    """Return the range of the prices, without a few extremes that would flatten all other candles."""
    lows, highs = sorted(each.low for each in candles), sorted(each.high for each in candles)
    count, spare = len(candles), max(1, len(candles) // CANDLES_PER_OUTLIER)
    if count <= 2:
        return lows[0], highs[-1]
    cores = [(lows[below], highs[count - 1 - (spare - below)]) for below in range(spare + 1)]
    low, high = min(cores, key=lambda core: core[1] - core[0])
    is_flattened = highs[-1] - lows[0] > OUTLIER_STRETCH * max(high - low, CALM_TICKS * tick_size)
    return (low, high) if is_flattened else (lows[0], highs[-1])


def _outlier_marks(candle: Candle, x: float, width: float, scale: _PriceScale) -> Iterator[str]:
    """Yield a triangle at each edge of the scale that the candle's prices exceed."""
    right, middle, bottom = round(x + width, 2), round(x + width / 2, 2), _percent(PRICES_PART, 1)
    if candle.high > scale.high:
        yield f"M {x} {MARK_HEIGHT} H {right} L {middle} 0 Z"
    if candle.low < scale.low:
        yield f"M {x} {round(bottom - MARK_HEIGHT, 2)} H {right} L {middle} {bottom} Z"


def _candle(candle: Candle, x: float, width: float, scale: _PriceScale) -> str:
    top, bottom = scale.down(max(candle.open, candle.close)), scale.down(min(candle.open, candle.close))
    wick = f"M {round(x + width / 2, 2)} {scale.down(candle.high)} V {scale.down(candle.low)}"
    return f"{wick} {_box(x, width, top, bottom)}"


def _volume(candle: Candle, x: float, width: float, most: int) -> str:
    return _box(x, width, round(100 - _percent(candle.volume * VOLUMES_PART, most), 2), 100)


def _box(x: float, width: float, top: float, bottom: float) -> str:
    """Return the path of a rectangle in the middle of a column."""
    margin = width * (1 - BODY_PART) / 2
    return f"M {round(x + margin, 2)} {top} H {round(x + width - margin, 2)} V {bottom} H {round(x + margin, 2)} Z"


def _column(candle: Candle, x: float, scale: _PriceScale) -> CandleColumn:
    open_, high, low, close = map(scale.written, (candle.open, candle.high, candle.low, candle.close))
    return CandleColumn(x, f"{candle.at:%H:%M}", (open_, high, low, close, f"{candle.volume:,}"))


def _times(span: Span, begin: datetime) -> Iterator[AxisLabel]:
    at = _floor(begin + span.mark - timedelta(microseconds=1), span.mark)
    while at < begin + span.length:
        yield AxisLabel(span.part(at - begin), f"{at:%H:%M}")
        at += span.mark
