"""The judge's results as JSON, a page, a plot of seconds against quality, and sheets of the worst clips."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...common.atomic_file import atomic_file, write_text
from ...pipeline.acceleration.presets import EXACT_NAME
from ...pipeline.media.contact_sheet import captioned, contact_sheet
from ...runtime.tools.table import Table
from ..ladder.draw import ACCENT, GRID, INK, SOFT, Card, ticks
from .measure import LINES, keeps
from .run import LOSSLESS, Evaluation

WORST = 4
"""Clips on a preset's sheet."""
WIDTH, HEIGHT = 1000, 640
LEFT, RIGHT, TOP, BOTTOM = 90, 60, 110, 80
LABEL = 140
"""Width of a dot's label, which stands above it: beside it, it would reach into the next dot."""
Summaries = Mapping[str, Mapping[str, Any]]
COLUMNS = {
    "seconds": ("s a clip", "{:.2f}"),
    "calls": ("calls", "{:.1f}"),
    "psnr_db": ("PSNR, dB", "{:.2f}"),
    "worst_psnr_db": ("worst clip, dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "still_right_percent": ("still the right way, %", "{:.1f}"),
    "speed_off": ("speed off, pixels a frame", "{:.4f}"),
    "flicker": ("flicker (VBench)", "{:.4f}"),
    "warping_error": ("warping error", "{:.5f}"),
}


def table_of(summaries: Summaries) -> Table:
    """A row for each variant."""
    rows = []
    for variant, found in summaries.items():
        cells = [form.format(found[key]) if key in found else "–" for key, (_, form) in COLUMNS.items()]
        rows.append((variant, *cells, str(found["clips"])))
    return Table(("preset", *(title for title, _ in COLUMNS.values()), "clips"), tuple(rows))


def verdicts(summaries: Summaries) -> list[str]:
    """A sentence on each preset with a quality line, kept or not."""
    found = []
    for name, line in LINES.items():
        if name in summaries:
            missed = keeps(line, summaries[name])
            found.append(f"{name}: keeps its line." if not missed else f"{name}: {'; '.join(missed)}.")
    return found


def write_report(document: Mapping[str, Any], summaries: Summaries, notes: Sequence[str], folder: Path) -> None:
    """`evaluation.json`, `evaluation.md` and `frontier.png`."""
    write_text(folder / "evaluation.json", json.dumps({**document, "notes": list(notes)}, indent=1) + "\n")
    lines = [f"# {document['title']}", "", table_of(summaries).markdown(), ""]
    lines += [f"- {sentence}" for sentence in (*verdicts(summaries), *notes)]
    write_text(folder / "evaluation.md", "\n".join(lines) + "\n")
    save_frontier(document["title"], summaries, folder / "frontier.png")


def save_frontier(title: str, summaries: Summaries, path: Path) -> None:
    """Draws each variant's seconds against its PSNR; the exact one, which has none, is a line at its seconds.

    Calls take the place of seconds where some were not measured.
    """
    shown = {name: found for name, found in summaries.items() if "psnr_db" in found and name != LOSSLESS}
    timed = all("seconds" in found for found in summaries.values())
    axis, unit = ("seconds", "{:.2f} s") if timed else ("calls", "{:.0f} calls")
    exact_s = summaries[EXACT_NAME][axis]
    card = Card(WIDTH, HEIGHT)
    card.text((LEFT, 44), title, 24, strong=True)
    card.text((LEFT, 74), f"PSNR against the exact clip, dB, over {axis} a clip; left and up is better", 17, SOFT)
    most_s = 1.1 * max([exact_s, *(found[axis] for found in shown.values())])
    most_db = 1.1 * max([40.0, *(found["psnr_db"] for found in shown.values())])

    def place(seconds: float, decibels: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * seconds / most_s
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * decibels / most_db

    for tick in ticks(most_db):
        card.line([place(0, tick), place(most_s, tick)], GRID)
        card.text((LEFT - 12, place(0, tick)[1]), f"{tick:g}", 15, SOFT, anchor="rm")
    for tick in ticks(most_s):
        card.text((place(tick, 0)[0], HEIGHT - BOTTOM + 22), f"{tick:g}", 15, SOFT, anchor="mm")
    card.line([place(exact_s, 0), place(exact_s, most_db)], SOFT)
    card.text((place(exact_s, 0)[0] - 8, TOP + 14), f"exact, {unit.format(exact_s)}", 15, SOFT, anchor="rm")
    for name, found in shown.items():
        at = place(found[axis], found["psnr_db"])
        card.dot(at, 7, ACCENT, ACCENT)
        card.text(
            (max(at[0], LEFT + LABEL / 2), at[1] - 20), f"{name}: {found['psnr_db']:.1f} dB", 16, INK, anchor="mm"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    card.save(path)


def save_sheets(evaluation: Evaluation, clips: Sequence[Any], rows: Mapping[str, Any], folder: Path) -> list[Path]:
    """For each preset a picture of its worst clips, each below the exact one; gives the paths."""
    paths = []
    for variant, by_clip in rows.items():
        if variant in (EXACT_NAME, LOSSLESS):
            continue
        worst = sorted((clip for clip in clips if clip.name in by_clip), key=lambda c: by_clip[c.name]["psnr_db"])
        strips = []
        for clip in worst[:WORST]:
            row = by_clip[clip.name]
            told = f"{row['psnr_db']:.1f} dB" + ("" if row.get("right", True) else ", moves the wrong way")
            strips.append((f"{clip.name}: exact", _strip(evaluation.frames(clip, EXACT_NAME))))
            strips.append((f"{clip.name}: {variant}, {told}", _strip(evaluation.frames(clip, variant))))
        path = folder / f"worst-{variant.replace(' ', '-')}.png"
        with atomic_file(path) as temporary:
            captioned(strips).save(temporary, "PNG")
        paths.append(path)
    return paths


def _strip(frames: torch.Tensor) -> Any:
    return contact_sheet(frames, count=6, columns=6)
