"""The ladder as Markdown: speed, memory and building, similarity, and rows that did not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...pipeline.quality.similarity import MAX_DB
from .document import Document
from .row import MEASURED, Row

Cell = Callable[[Row], str]
NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A heading, and a row's cell under it."""

    heading: str
    cell: Cell


def figure(heading: str, name: str, digits: int) -> Column:
    """A column of one figure."""
    return Column(heading, lambda row: number(row.figures.get(name), digits))


def number(value: float | None, digits: int) -> str:
    """A figure as text; a dash where there is none."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def decibels(heading: str, name: str) -> Column:
    """A column of a ratio in dB, which is infinite for equal results."""
    return Column(heading, lambda row: "equal" if row.figures.get(name) == MAX_DB else number(row.figures.get(name), 1))


def difference(heading: str, name: str) -> Column:
    """A column of a difference, which may be very small."""
    return Column(heading, lambda row: f"{row.figures[name]:.1e}" if name in row.figures else NOTHING)


def markdown(document: Document) -> str:
    """The whole page."""
    rows = [row for row in document.rows.values() if row.figures]
    parts = [f"# The ladder: {document.job.describes}", _origin(document)]
    if rows:
        parts += [
            "## Speed", _table(rows, _speed(document)),
            "Times in seconds but where it says otherwise. *Hot* is a later clip of the same process, picture to "
            "h264 file; *warm start* a new process with engines and caches on disk, from its start; *cold* the first "
            "ever, builds included. *Interpolate* and *upscale* come after the clip, and are no part of it.",
            "## Memory and building", _table(rows, MEMORY),
            "Memory in GiB. *Resident*: PyTorch's peak with all weights on the GPU, and in brackets what the GPU "
            "itself says is in use; *offloaded*: while denoising and decoding, the encoders off the GPU after "
            "conditioning.",
            "## Likeness to row 0", _table(rows[1:], SIMILARITY) if len(rows) > 1 else "Only one row was measured.",
        ]  # fmt: skip
    if document.sweep:
        parts += ["## How cost grows", _sweep(document)]
    notes = _notes(document)
    return "\n\n".join([*parts, *(["## Notes", notes] if notes else [])]) + "\n"


def line(document: Document, row: Row) -> str:
    """A row for the console."""
    if not row.figures:
        return f"{row.title}: {row.reason}"
    cells = {column.heading: column.cell(row) for column in _speed(document)[1:]}
    text = ", ".join(f"{heading} {cell}" for heading, cell in cells.items() if cell != NOTHING)
    return f"{row.title}: {text}" + (f" ({row.reason})" if row.reason and row.state != MEASURED else "")


def _speed(document: Document) -> tuple[Column, ...]:
    def ratio(name: str) -> Cell:
        return lambda row: f"{times:.2f}x" if (times := document.ratios(row).get(name)) else NOTHING

    return (
        Column("", lambda row: row.title),
        figure("ms a step", "step_ms", 1),
        figure("p95 / median", "step_p95_over_median", 3),
        Column("TFLOP/s", lambda row: number(document.tflop_per_s(row), 0 if document.machine.get("gpu") else 3)),
        figure("kernels", "kernels_per_step", 0),
        figure("encode cold", "encode_cold_s", 2),
        figure("encode", "encode_s", 3),
        figure("denoise", "denoise_s", 2),
        figure("decode", "decode_s", 3),
        figure("write", "write_s", 3),
        figure("clip hot", "clip_hot_s", 2),
        figure("interpolate", "interpolate_s", 3),
        figure("upscale", "upscale_s", 3),
        Column("against row 0", ratio("reference")),
        Column("against torch.compile", ratio("compiled")),
        figure("warm start", "clip_warm_start_s", 1),
        figure("cold", "clip_cold_s", 1),
        figure("frames/s", "frames_per_s", 2),
    )


def _residency(row: Row, residency: str) -> str:
    used = row.figures.get(f"gpu_{residency}_used_gib")
    return number(row.peak_gib(residency), 2) + ("" if used is None else f" ({used:.2f})")


MEMORY = (
    Column("", lambda row: row.title),
    Column("GPU, resident", lambda row: _residency(row, "resident")),
    Column("GPU, offloaded", lambda row: _residency(row, "offloaded")),
    figure("host", "host_peak_gib", 2),
    figure("host, building", "build_host_peak_gib", 2),
    figure("build, s", "build_s", 1),
    figure("load, s", "load_s", 2),
)
SIMILARITY = (
    Column("", lambda row: row.title),
    figure("latents: cosine", "latents_cosine", 6),
    decibels("SNR, dB", "latents_snr_db"),
    difference("greatest difference", "latents_max_abs"),
    decibels("frames: PSNR mean, dB", "frames_psnr_mean_db"),
    decibels("worst, dB", "frames_psnr_worst_db"),
    figure("SSIM", "frames_ssim_mean", 4),
    difference("greatest difference ", "frames_max_abs"),
)


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Columns that are empty for every row are left out."""
    used = [column for column in columns if any(column.cell(row) != NOTHING for row in rows)]
    head = "| " + " | ".join(column.heading for column in used) + " |"
    rule = "| --- |" + " ---: |" * (len(used) - 1)
    return "\n".join([head, rule, *("| " + " | ".join(column.cell(row) for column in used) + " |" for row in rows)])


def _origin(document: Document) -> str:
    machine, versions = document.machine, document.versions
    driver = f", driver {machine['driver']}" if machine.get("driver") else ""
    known = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    return f"{document.where}{driver}. {known}. Commit {document.commit}, {document.date}."


def _notes(document: Document) -> str:
    lines = [f"- {row.title}: {row.reason}" for row in document.rows.values() if row.state != MEASURED]
    lines += [f"- {row.title}: {note}" for row in document.rows.values() for note in row.notes]
    return "\n".join(lines)


def _sweep(document: Document) -> str:
    head = "| | | ms a step | TFLOP a step | TFLOP/s | denoise, s | GPU, GiB | |"
    rule = "| --- | --- |" + " ---: |" * 5 + " --- |"
    lines = [
        "| " + " | ".join([
            point["axis"], point["label"], number(point.get("step_ms"), 1), number(point.get("tflop"), 2),
            number(point.get("tflop_per_s"), 0), number(point.get("denoise_s"), 2), number(point.get("peak_gib"), 2),
            point.get("reason", ""),
        ]) + " |"
        for point in document.sweep
    ]  # fmt: skip
    return "\n".join([head, rule, *lines])
