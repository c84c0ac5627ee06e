"""The results as SVG bar charts, one picture for each question."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LABELS, ROW, TOP = 760, 250, 24, 44
COLOURS = {"floor": "#8a8f98", "naive": "#c2703d", "ours": "#2f6fab"}
Bars = list[tuple[str, float, str]]  # label, value, colour


def write(results: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (title, bars) in _pictures(results).items():
        if bars:
            (folder / f"bench-{name}.svg").write_text(svg(title, bars), encoding="utf-8")


def _pictures(results: dict[str, Any]) -> dict[str, tuple[str, Bars]]:
    return {
        "throughput": ("New orders per second", list(_throughput(results))),
        "latency": ("Milliseconds until an order is accepted, open loop", list(_latency(results))),
        "growth": ("New orders per second as things grow", list(_growth(results))),
    }


def _throughput(results: dict[str, Any]) -> Iterator[tuple[str, float, str]]:
    for clients, found in results.get("floor", {}).items():
        yield f"floor, {_count(clients, 'client')}", found["orders_per_second"], "floor"
    for cell, found in results.get("naive", {}).items():
        clients, _, processes = cell.split("x")
        yield f"naive, {clients} clients, {processes} proc.", found["orders_per_second"], "naive"
    for cell, found in results.get("http", {}).items():
        clients, symbols, processes = cell.split("x")
        label = f"{_count(clients, 'client')}, {_count(symbols, 'symbol')}, {processes} proc."
        yield label, found["orders_per_second"], "ours"
    for size, found in results.get("batches", {}).items():
        yield f"batches of {size}", found["orders_per_second"], "ours"


def _count(number: str, word: str) -> str:
    return f"{number} {word}" if number == "1" else f"{number} {word}s"


def _latency(results: dict[str, Any]) -> Iterator[tuple[str, float, str]]:
    for load, found in results.get("open", {}).items():
        for name in ("p50", "p99", "p999"):
            yield f"{load} % load, {name.replace('999', '99.9')}", found[f"{name}_ms"], "ours"


def _growth(results: dict[str, Any]) -> Iterator[tuple[str, float, str]]:
    words = {"resting": "resting orders", "history": "old orders, trades", "brokers": "brokers"}
    for name, found in results.get("growth", {}).items():
        kind, size, clients = name.split()
        yield f"{int(size):,} {words[kind]}, {clients} cl.", found["orders_per_second"], "ours"


def svg(title: str, bars: Bars) -> str:
    """Return one picture, readable on light and dark pages."""
    longest = max(value for _, value, _ in bars) or 1
    available = WIDTH - LABELS - 80
    rows = []
    for index, (label, value, colour) in enumerate(bars):
        y = TOP + index * ROW
        width = max(1.0, available * value / longest)
        number = f"{value:,.0f}" if longest >= 100 else f"{value:.2f}"
        rows.append(
            f'<text x="{LABELS - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="16" fill="{COLOURS[colour]}"/>'
            f'<text x="{LABELS + width + 6:.1f}" y="{y + 12}">{number}</text>'
        )
    height = TOP + len(bars) * ROW + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        f'<text x="16" y="26" font-size="16">{escape(title)}</text>\n' + "\n".join(rows) + "\n</svg>\n"
    )
