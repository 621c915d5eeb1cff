"""Which checkpoint the ladder measures, and what it asks of it unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ...engine_builder.errors import InputError
from ...jobs.demo_model import BUNDLED_NAME, DemoModel, demo_model
from ...pipeline.models.checkpoint import INDEX
from .full_size import NAME

PUBLISHED = "i2vgen-xl"
TINY = "tiny"
RANDOM = "random"
PROMPT = "a red boat drifts to the right on a calm lake"


@dataclass(frozen=True)
class Subject:
    """A checkpoint's folder, whether it has still to be written, and the job that is usual for it."""

    name: str
    folder: Path
    side: int
    num_frames: int
    steps: int
    guidance_scale: float
    fps: int
    prompt: str
    is_full_size: bool
    """Whether times known of the published size tell how long a rung takes."""


def choose_subject(model: str | None, weights: str | None, device: torch.device, work: Path) -> Subject:
    """The checkpoint for `--model` and `--weights`; by default the published size with random weights on a GPU,
    and the bundled model elsewhere.

    Raises InputError when the two do not go together, or there is no checkpoint.
    """
    model = model or (PUBLISHED if weights or device.type == "cuda" else BUNDLED_NAME)
    if weights and model != PUBLISHED:
        raise InputError(f"Weights are chosen for the model {PUBLISHED} alone, found the model {model}.")
    if model in (BUNDLED_NAME, TINY):
        return _small(demo_model(work, tiny=model == TINY))
    if model == PUBLISHED and weights in (None, RANDOM):
        return _published(f"{PUBLISHED}, random weights", work / "checkpoints" / NAME, device)
    folder = Path(weights or model).expanduser().resolve()
    if not (folder / INDEX).is_file():
        known = f"{PUBLISHED}, {BUNDLED_NAME}, {TINY}"
        raise InputError(f"Expected {known}, or a checkpoint's folder, found no {INDEX} in {folder}.")
    return _published(folder.name, folder, device)


def _published(name: str, folder: Path, device: torch.device) -> Subject:
    return Subject(name, folder, 512, 16, 50, 9.0, 16, PROMPT, device.type == "cuda")


def _small(model: DemoModel) -> Subject:
    return Subject(
        model.name, model.folder, model.side, model.num_frames, model.steps, model.guidance_scale, model.fps,
        model.prompts[0], False,
    )  # fmt: skip
