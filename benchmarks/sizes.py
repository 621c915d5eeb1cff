"""`run.py bench sizes`: the largest clip that each family serves on a card, computed as the nodes compute it.

Nothing runs: the budgets of `runtime/budget.py` are asked, which rest on measurements on an H200 (`scratch.json`,
for Wan on a count over its layers), for the weights of the published sizes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.atomic_file import write_text
from ..common.errors import BackendUnavailableError, BudgetError
from ..engine_builder.backends.registry import choose_backend
from ..engine_builder.store.store import EngineStore
from ..pipeline.conditioning import MAX_SIDE, MIN_SIDE
from ..pipeline.models.base import VideoModel
from ..pipeline.request import ClipSize
from ..runtime import budget
from ..runtime.budget import Budget, largest
from ..runtime.clip_plan import engine_multiple
from ..runtime.clip_sizes import clip_sizes
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.memory_manager import LoadInPlace
from ..runtime.engines.policy import EnginePolicy
from ..runtime.tools.table import Table
from .full_models import PUBLISHED, Published, full_model
from .ladder.machine import describe_commit, now

DESCRIPTION = "The largest clip that each family serves on cards of some sizes, computed; no GPU is needed."
RESULTS = Path(__file__).resolve().parent / "results" / "gpu" / "sizes.json"
CARDS_GIB = (8, 12, 16, 24, 80, 141)
BACKENDS = ("eager", "inductor")
GIB = 1 << 30
CPU = torch.device("cpu")
CONTEXT_BYTES = 831 << 20
"""Bytes that a ComfyUI without models holds of an H200: CUDA's context, and the libraries' memory."""
NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """Sizes that a family serves on a card by a backend; None where it serves none.

    `made` is the largest clip that is like the published one and no larger, `widest` the largest of the published shape
    and number of frames, `longest` the most frames of the published size.
    """

    model: str
    asked: str
    backend: str
    card_gib: float
    weights_gib: float
    encoder_gib: float
    made: str | None
    widest: str | None
    longest: int | None


class Card(LoadInPlace):
    """A GPU of `total_bytes`, of which a ComfyUI's context is taken, and a host with any amount."""

    def __init__(self, total_bytes: int) -> None:
        self._room_bytes = total_bytes - CONTEXT_BYTES

    def room_bytes(self) -> int | None:
        return self._room_bytes


class Strict(Budget):
    """A budget that allows no more than the memory there is, without a tolerance."""

    def allows(self, size: ClipSize) -> bool:
        return self.room is None or self.cost(size) <= self.room


def main(argv: Sequence[str]) -> int:
    """Computes, and writes the rows and the table; 1 where a backend cannot run here, for it has no budget then."""
    parser = argparse.ArgumentParser(prog="run.py bench sizes", description=DESCRIPTION)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file; the table lies beside it")
    options = parser.parse_args(argv)
    try:
        found = compute()
    except BackendUnavailableError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    content = {"benchmark": "sizes", "date": now(), "commit": describe_commit(None), "context_bytes": CONTEXT_BYTES}
    texts = {options.out: json.dumps({**content, "rows": found}, indent=1), options.out.with_suffix(".md"): page(found)}
    for path, text in texts.items():
        write_text(path, f"{text}\n")
    return 0


def compute() -> list[dict[str, Any]]:
    """Every row as plain data, printed as it comes; raises BackendUnavailableError."""
    found = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        for number, published in enumerate(PUBLISHED):
            for row in rows_of(published, full_model(published, Path(work) / str(number)), Path(work) / "engines"):
                found.append(asdict(row))
                sys.stdout.write(f"{json.dumps(found[-1])}\n")
                sys.stdout.flush()
    return found


def rows_of(published: Published, model: VideoModel, store: Path) -> Iterator[Row]:
    """A row for each backend and card; raises BackendUnavailableError."""
    for backend in BACKENDS:
        choose_backend(backend, CPU)  # budgets are of eager PyTorch where it is not here
        for card_gib in CARDS_GIB:
            policy = EnginePolicy(backend, "fp16", on_missing="build")
            engines = EngineSet(model, EngineStore(store), policy, CPU, Card(card_gib * GIB))
            steps = (budget.encoding(engines), budget.denoising(engines, guided=True), *budget.decoding(engines))
            budgets = [Strict(each.stage, each.cost, each.room, each.space, each.known_bytes) for each in steps]
            yield Row(
                published.title,
                published.size.words,
                backend,
                card_gib,
                round(model.size_bytes(model.denoiser, "fp16") / GIB, 2),
                round(encoder_bytes(model, published.size) / GIB, 2),
                made(budgets, published.size, engine_multiple(model)),
                widest(budgets, published.size, engine_multiple(model)),
                longest(budgets, published.size),
            )


def encoder_bytes(model: VideoModel, size: ClipSize) -> int:
    """The most memory of a network that has done its work before the first step, weights and scratch."""
    sizes = {**clip_sizes(model, size.width, size.height, size.num_frames), "batch": 1, "chunk": 1}
    others = {*model.denoisers, model.decoder_component, "conditioner"}
    names = (name for name in model.components if name not in others and not name.startswith(("core", "vae_decoder")))
    return max(model.size_bytes(name, "fp16") + model.scratch_bytes(name, sizes, "fp16") for name in names)


def made(budgets: Sequence[Budget], size: ClipSize, multiple: int) -> str | None:
    """Size of a clip that shrinks to the memory; None where none fits."""
    try:
        return largest(budgets, size, multiple).words
    except BudgetError:
        return None


def widest(budgets: Sequence[Budget], size: ClipSize, multiple: int) -> str | None:
    """The largest frames of about the size's shape, as many of them."""
    found = _first(budgets, _of_shape(size, multiple))
    return None if found is None else f"{found.width}x{found.height}"


def longest(budgets: Sequence[Budget], size: ClipSize) -> int | None:
    """The most frames of the size that the family makes."""
    space = budgets[0].space
    counts = map(space.num_frames, range(space.frames(space.max_frames), 0, -1))
    found = _first(budgets, (size._replace(num_frames=count) for count in counts))
    return None if found is None else found.num_frames


def _of_shape(size: ClipSize, multiple: int) -> Iterator[ClipSize]:
    """Sizes of the same shape, the largest first, the longer side in multiples of `multiple` pixels."""
    most = max(size.width, size.height)
    for side in range(MAX_SIDE, MIN_SIDE - 1, -multiple):
        width, height = (
            max(round(each * side / most / multiple) * multiple, MIN_SIDE) for each in (size.width, size.height)
        )
        yield size._replace(width=width, height=height)


def _first(budgets: Sequence[Budget], sizes: Iterator[ClipSize]) -> ClipSize | None:
    return next((each for each in sizes if all(budget.allows(each) for budget in budgets)), None)


ORIGIN = f"""\
# The largest clips by card

Computed by `python run.py bench sizes` and not run: the budgets by which the nodes refuse a clip, from figures that
were measured on an H200 ([scratch.json](scratch.json)), for Wan from what its layers hold; with guidance, in half
precision, weights whole on the card. Nothing was measured of Inductor's engines but I2VGen-XL's: the others are taken
to need what eager PyTorch needs. A ComfyUI's own {CONTEXT_BYTES >> 20} MiB are off each card, as measured on an H200,
and the host has memory enough for the frames. Estimates are no better than {budget.TOLERANCE - 1:.0%}: by so much more
the nodes try before they refuse.

*Asked*: the published size, or what `shrink` would make of it; *widest*: the largest frames of its shape, as many;
*longest*: the most of its frames. Sides end at {MAX_SIDE}; a dash is what does not fit at all.
"""


def page(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each model."""
    parts = [ORIGIN]
    for title in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == title]
        first = own[0]
        parts.append(
            f"## {title}\n\nWeights that denoise: {first['weights_gib']:.1f} GiB. The largest encoder takes "
            f"{first['encoder_gib']:.1f} GiB before that.\n\n"
            f"{table(first['asked'], own).markdown()}\n"
        )
    return "\n".join(parts).rstrip()


def table(asked: str, rows: Sequence[dict[str, Any]]) -> Table:
    """A line for each card, with both backends side by side."""
    shown: tuple[tuple[str, Callable[[dict[str, Any]], Any]], ...] = (
        (f"asked: {asked}", lambda row: "as asked" if row["made"] == row["asked"] else row["made"]),
        ("widest", lambda row: row["widest"]),
        ("longest", lambda row: row["longest"]),
    )
    head = ("Card", *(f"{backend}, {name}" for backend in BACKENDS for name, _ in shown))
    lines = []
    for card in dict.fromkeys(row["card_gib"] for row in rows):
        own = {row["backend"]: row for row in rows if row["card_gib"] == card}
        cells = (str(read(own[backend]) or NOTHING) for backend in BACKENDS for _, read in shown)
        lines.append((f"{card:g} GiB", *cells))
    return Table(head, tuple(lines))
