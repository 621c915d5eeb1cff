"""Growth of cost, as a picture: time and memory against work, and time against steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .document import Document, Point
from .draw import GRID, INK, SOFT, Card, Colour, ticks

WIDTH, HEIGHT = 1600, 680
SIDE, TOP, BOTTOM = 48, 200, 142
GAP = 92
SERIES: dict[str, Colour] = {"frames": (52, 104, 214), "size": (224, 116, 32), "steps": (22, 160, 133)}


@dataclass(frozen=True)
class Chart:
    """One figure of the points against another, for some of the axes that were swept."""

    title: str
    x: str
    y: str
    across: str
    axes: tuple[str, ...]


CHARTS = (
    Chart("Milliseconds a step", "tflop", "step_ms", "TFLOP a step", ("frames", "size")),
    Chart("GPU memory at its peak, GiB", "tflop", "peak_gib", "TFLOP a step", ("frames", "size")),
    Chart("Seconds for all steps", "steps", "denoise_s", "steps", ("steps",)),
)


def save_sweep_plot(document: Document, path: Path) -> None:
    """Draws the sweep, a chart for each figure that there is; writes no file when there is none."""
    charts = [chart for chart in CHARTS if _points(document.sweep, chart, chart.axes)]
    if not charts:
        return
    card = Card(WIDTH, HEIGHT)
    _head(card, document)
    width = (WIDTH - 2 * SIDE - GAP * (len(charts) - 1)) / len(charts)
    for number, chart in enumerate(charts):
        left = SIDE + number * (width + GAP)
        _chart(card, document.sweep, chart, (left + 44, TOP, left + width, HEIGHT - BOTTOM))
    _legend(card, document.sweep)
    card.save(path)


def _points(sweep: Sequence[Point], chart: Chart, axes: Sequence[str]) -> list[Point]:
    return [
        point for point in sweep
        if point["axis"] in axes and point.get(chart.x) is not None and point.get(chart.y) is not None
    ]  # fmt: skip


def _head(card: Card, document: Document) -> None:
    job = document.job
    backends = sorted({point["backend"] for point in document.sweep if "backend" in point})
    card.text((SIDE, 58), f"How cost grows: {job.model}, {', '.join(backends)}", 30, strong=True)
    torch = (document.versions.get("torch") or "").partition("+")[0]
    middle = f"around {job.width}x{job.height}, {job.num_frames} frames, {job.steps} steps"
    parts = [middle, document.where, f"PyTorch {torch}", document.date[:10], f"commit {document.commit}"]
    card.text((SIDE, 104), "  ·  ".join(map(str, parts)), 19, SOFT)


def _chart(card: Card, sweep: Sequence[Point], chart: Chart, edges: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = edges
    shown = _points(sweep, chart, chart.axes)
    most_x, most_y = (max(point[name] for point in shown) * 1.06 for name in (chart.x, chart.y))
    card.text((left - 44, top - 30), chart.title, 21, strong=True)
    for tick in ticks(most_y):
        y = bottom - tick / most_y * (bottom - top)
        card.line([(left, y), (right, y)], GRID)
        card.text((left - 10, y), f"{tick:g}", 15, SOFT, anchor="rm")
    for tick in ticks(most_x):
        card.text((left + tick / most_x * (right - left), bottom + 18), f"{tick:g}", 15, SOFT, anchor="mm")
    card.text(((left + right) / 2, bottom + 44), chart.across, 16, SOFT, anchor="mm")
    for axis in chart.axes:
        points = sorted(_points(sweep, chart, (axis,)), key=lambda point: point[chart.x])
        places = [
            (left + point[chart.x] / most_x * (right - left), bottom - point[chart.y] / most_y * (bottom - top))
            for point in points
        ]
        card.line(places, SERIES[axis], 3)
        for place in places:
            card.dot(place, 6, SERIES[axis], (255, 255, 255))
        if points and axis != "steps":
            _label(card, places[-1], str(points[-1]["label"]), SERIES[axis], above=axis == chart.axes[0])


def _label(card: Card, place: tuple[float, float], text: str, colour: Colour, *, above: bool) -> None:
    """Names the last point of a line, on the side where the other line is not."""
    x, y = place
    if above:
        card.text((x - 12, y - 8), text, 15, colour, anchor="rb")
    else:
        card.text((x + 52, y + 20), text, 15, colour, anchor="rt")


def _legend(card: Card, sweep: Sequence[Point]) -> None:
    x, middle = float(SIDE), HEIGHT - 44
    for axis in dict.fromkeys(point["axis"] for point in sweep if point["axis"] in SERIES):
        card.dot((x + 9, middle), 6, SERIES[axis], (255, 255, 255))
        card.text((x + 26, middle), axis, 18, SOFT)
        x += 26 + card.text_width(axis, 18) + 30
    ends = [point for point in sweep if "Memory ends" in point.get("reason", "")]
    told = "; ".join(f"{point['label']}: {point['reason'].rstrip('.')}" for point in ends)
    card.text((WIDTH - SIDE, middle), told or "Memory did not end within these points.", 18, INK, anchor="rm")
