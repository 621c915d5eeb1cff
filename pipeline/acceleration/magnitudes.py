"""How the size of a network's residual changes from step to step: measured once for a checkpoint, and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ...common.atomic_file import write_text
from ...common.errors import InputError
from ..denoising.sampler import Denoise
from .settings import MagnitudeCache

SCHEMA = 1
MAX_STEPS = 1000


@dataclass(frozen=True)
class Magnitudes:
    """Ratio of each step's residual to the one before it, 1 for the first, as `measuring` gives them.

    `scheduler`, `spacing` and `guidance_scale` are those of the measured clips.
    """

    ratios: tuple[float, ...]
    scheduler: str
    spacing: str
    guidance_scale: float
    clips: int

    def at(self, steps: int) -> list[float]:
        """Ratios for another number of steps: the logarithm of the magnitude, read between the measured steps."""
        logs = [0.0]
        for ratio in self.ratios[1:]:
            logs.append(logs[-1] + math.log(ratio))
        places = [step * (len(logs) - 1) / max(steps - 1, 1) for step in range(steps)]
        read = [_between(logs, place) for place in places]
        return [1.0, *(math.exp(after - before) for before, after in zip(read, read[1:], strict=False))]


def _between(values: Sequence[float], place: float) -> float:
    below = min(int(place), len(values) - 1)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


def measuring(denoise: Denoise, found: list[float]) -> Denoise:
    """As `denoise`, and adds each call's ratio to `found`.

    The ratio is the mean over all places and frames of the residual's length over the channels, by the length that the
    last call's had there (MagCache, arXiv:2506.09045); 1 for the first call.
    """
    last: torch.Tensor | None = None

    def measured(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal last
        prediction = denoise(x, t)
        lengths = (prediction - x).float().norm(dim=1)
        found.append(1.0 if last is None else float((lengths / last.clamp_min(1e-8)).mean()))
        last = lengths
        return prediction

    return measured


def called_steps(ratios: Sequence[float], cache: MagnitudeCache, fresh: Sequence[int] = (0,)) -> list[int]:
    """Indices of the steps that are called; the others reuse the last call's residual.

    The expected error of a step is the sum of |1 - product of the ratios since the last call| over the steps left out.
    Steps of `fresh` are always called, and so are the kept ones and the last, which nothing would correct.
    """
    called, product, error, row = [], 1.0, 0.0, 0
    kept = math.ceil(cache.kept * len(ratios))
    for step, ratio in enumerate(ratios):
        product *= ratio
        error += abs(1 - product)
        row += 1
        leaves_out = error <= cache.threshold and row <= cache.most_in_a_row
        if leaves_out and step >= kept and step not in fresh and step < len(ratios) - 1:
            continue
        called.append(step)
        product, error, row = 1.0, 0.0, 0
    return called


def magnitudes_file(folder: Path, weights_sha256: str) -> Path:
    """The file of the ratios of a denoiser with these weights."""
    return folder / f"{weights_sha256[:32]}.json"


def write_magnitudes(magnitudes: Magnitudes, path: Path) -> None:
    """Keeps measured ratios."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"schema": SCHEMA, **asdict(magnitudes)}, indent=1) + "\n")


def read_magnitudes(path: Path) -> Magnitudes | None:
    """The kept ratios; None where there are none. Raises InputError for a file of another kind."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"Expected measured ratios in {path}, which cannot be read: {error}.") from error
    try:
        if data.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        found = Magnitudes(**{**data, "ratios": tuple(float(ratio) for ratio in data["ratios"])})
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"Expected measured ratios in {path}, found another file: {error}.") from error
    if not 0 < len(found.ratios) <= MAX_STEPS or not all(math.isfinite(r) and r > 0 for r in found.ratios):
        raise InputError(f"Expected 1 to {MAX_STEPS} positive ratios in {path}, found others.")
    return found


ReadMagnitudes = Callable[[str], Magnitudes | None]
"""Gives the ratios kept for a digest of weights."""
