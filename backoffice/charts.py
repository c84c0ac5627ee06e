"""Charts as SVG, drawn on the server: numbers in, points out. A template puts them into a picture and into words."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

Number = int | float | Decimal


@dataclass(frozen=True, slots=True)
class Sparkline:
    """A line from left to right in a box of this size, and the area below it, as SVG's paths; zero is at the bottom."""

    width: int
    height: int
    line: str
    area: str


def sparkline(values: Sequence[Number], width: int = 240, height: int = 40) -> Sparkline:
    """The values at equal distances, the highest at the top; a point of room is left for the line's own width."""
    highest = max((float(value) for value in values), default=0.0) or 1.0
    step = width / max(len(values) - 1, 1)
    points = [
        f"{n * step:.1f},{height - 1 - float(each) / highest * (height - 2):.1f}" for n, each in enumerate(values)
    ]
    if not points:
        return Sparkline(width, height, "", "")
    line = f"M{' L'.join(points)}"
    return Sparkline(width, height, line, f"{line} L{(len(points) - 1) * step:.1f},{height} L0,{height} Z")
