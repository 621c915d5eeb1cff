"""The ladder as a picture: seconds of a hot clip by row and stage, with how many times faster each is.

Where the slowest row dwarfs the others, a second panel shows them again without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .document import Document
from .draw import ACCENT, GRID, INK, SOFT, Card, Colour, ticks
from .row import Row

WIDTH = 1600
SIDE = 48
LABELS, RATIOS = 380, 350
COLUMNS = (80, 250)
"""Middles of the columns beside the bars, from the bars' end."""
ROW, BAR = 46, 26
HEAD, PANEL_HEAD, FOOT = 146, 90, 84
DWARFED = 3.0
"""Ratio of the slowest row to the next one from which there are two panels."""
STAGES: tuple[tuple[str, str, Colour], ...] = (
    ("denoise_s", "denoise", (52, 104, 214)),
    ("decode_s", "decode", (22, 160, 133)),
    ("write_s", "write file", (235, 152, 36)),
    ("encode_s", "encode", (142, 108, 208)),
)


NOTHING = "-"
Column = tuple[str, Callable[[Row], str]]


@dataclass(frozen=True)
class Panel:
    """Some rows on one scale, and the columns of text beside their bars."""

    title: str
    rows: Sequence[Row]
    columns: Sequence[Column]

    @property
    def height(self) -> int:
        """In pixels."""
        return PANEL_HEAD + ROW * len(self.rows)


def save_plot(document: Document, path: Path) -> None:
    """Draws the rows that have a hot clip; writes no file when there are none."""
    rows = [row for row in document.rows.values() if "clip_hot_s" in row.figures]
    if not rows:
        return
    panels = _panels(document, rows)
    card = Card(WIDTH, HEAD + sum(panel.height for panel in panels) + FOOT)
    _head(card, document)
    top = HEAD
    for panel in panels:
        _panel(card, document, panel, top)
        top += panel.height
    _legend(card, top + FOOT / 2 - 8, rows)
    card.save(path)


def _panels(document: Document, rows: Sequence[Row]) -> list[Panel]:
    slowest, *others = sorted(rows, key=_seconds, reverse=True)
    ratios = (
        ("against row 0", lambda row: _times(document.ratios(row).get("reference"))),
        ("against torch.compile", lambda row: _times(document.ratios(row).get("compiled"))),
    )
    known = [column for column in ratios if any(column[1](row) != NOTHING for row in rows)]
    whole = Panel("Seconds for one clip, picture to video file; shorter is better", rows, known)
    if not others or _seconds(slowest) < DWARFED * _seconds(others[0]):
        return [whole]
    shown = [row for row in rows if row is not slowest]
    return [whole, Panel(f"The same without {slowest.title}", shown, DETAILS)]


def _times(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{ratio:.2f}x"


def _figure(name: str, digits: int) -> Callable[[Row], str]:
    return lambda row: f"{row.figures[name]:.{digits}f}" if name in row.figures else NOTHING


DETAILS: Sequence[Column] = (("ms a step", _figure("step_ms", 1)), ("frames/s", _figure("frames_per_s", 2)))


def _seconds(row: Row) -> float:
    return row.figures["clip_hot_s"]


def _head(card: Card, document: Document) -> None:
    job = document.job
    card.text((SIDE, 58), f"{job.width}x{job.height}, {job.num_frames} frames, {job.steps} steps", 34, strong=True)
    torch = (document.versions.get("torch") or "").partition("+")[0]
    parts = [job.model, document.where, f"PyTorch {torch}", document.date[:10], f"commit {document.commit}"]
    card.text((SIDE, 104), "  ·  ".join(str(part) for part in parts), 20, SOFT)


def _panel(card: Card, document: Document, panel: Panel, top: float) -> None:
    left, right = SIDE + LABELS, WIDTH - SIDE - RATIOS
    card.text((SIDE, top + 30), panel.title, 22, strong=True)
    for place, (heading, _) in zip(COLUMNS, panel.columns, strict=False):
        card.text((right + place, top + 30), heading, 17, SOFT, anchor="mm")
    longest = max(_seconds(row) for row in panel.rows)
    scale = (right - left - 90) / longest
    bottom = top + PANEL_HEAD + ROW * len(panel.rows) - 14
    for tick in ticks(longest):
        x = left + tick * scale
        card.line([(x, top + 74), (x, bottom)], GRID)
        card.text((x, top + 62), f"{tick:g}", 15, SOFT, anchor="mm")
    for number, row in enumerate(panel.rows):
        _bar(card, panel, row, (left, top + PANEL_HEAD + ROW * number + ROW / 2 - 6), scale, right)


def _bar(card: Card, panel: Panel, row: Row, place: tuple[float, float], scale: float, right: float) -> None:
    left, middle = place
    best = row is min(panel.rows, key=_seconds)
    colour = ACCENT if best else INK
    card.text((left - 18, middle), _fitting(card, row.title, LABELS - 18), 20, colour, anchor="rm", strong=best)
    x = left
    for name, _, stage_colour in STAGES:
        end = x + row.figures.get(name, 0.0) * scale
        card.box((x, middle - BAR / 2, end, middle + BAR / 2), stage_colour)
        x = end
    card.text((x + 10, middle), f"{_seconds(row):.2f} s", 19, colour, strong=best)
    for offset, (_, cell) in zip(COLUMNS, panel.columns, strict=False):
        card.text((right + offset, middle), cell(row), 20, colour, anchor="mm", strong=best)


def _fitting(card: Card, text: str, width: float) -> str:
    """The text, cut where it would not fit."""
    while text and card.text_width(text, 20) > width:
        text = text[:-2].rstrip() + "…"
    return text


def _legend(card: Card, middle: float, rows: Sequence[Row]) -> None:
    x = float(SIDE)
    for name, label, colour in STAGES:
        if any(name in row.figures for row in rows):
            card.box((x, middle - 9, x + 18, middle + 9), colour, 4)
            card.text((x + 28, middle), label, 18, SOFT)
            x += 28 + card.text_width(label, 18) + 34
    card.text((WIDTH - SIDE, middle), "a later clip of the same process", 18, SOFT, anchor="rm")
