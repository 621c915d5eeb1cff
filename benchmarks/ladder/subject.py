"""The checkpoint that the ladder measures, and its default job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ...common.errors import InputError
from ...common.pack_paths import BUNDLED_NAME
from ...pipeline.models.checkpoints.diffusers_folder import INDEX
from ...pipeline.models.registry import open_model
from ...runtime.demo_model import DemoModel, demo_model

TINY = "tiny"
RANDOM = "random"


@dataclass(frozen=True)
class Usual:
    """Default job of a model; `precision` is that of the rows in half precision."""

    family: str
    size: tuple[int, int]
    num_frames: int
    steps: int
    guidance_scale: float
    fps: int
    prompt: str
    chunk: int
    """Frames decoded at once."""
    precision: str


PUBLISHED: dict[str, Usual] = {
    "i2vgen-xl": Usual(
        "i2vgen_xl", (512, 512), 16, 50, 9.0, 16, "a red boat drifts to the right on a calm lake", 4, "fp16"
    ),
    "svd-xt": Usual("svd", (1024, 576), 25, 25, 3.0, 7, "", 14, "bf16"),
    "dynamicrafter": Usual(
        "dynamicrafter", (1024, 576), 16, 50, 7.5, 10, "a red boat drifts to the right on a calm lake", 4, "fp16"
    ),
}
"""The published models by name; the first is measured on a GPU."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint's folder, and its default job."""

    name: str
    folder: Path
    usual: Usual
    is_full_size: bool = False
    """Whether the times known for the first published size hold for the variants."""
    is_random: bool = False
    """Whether it is written by the ladder, if it is not there yet."""


def choose_subject(model: str | None, weights: str | None, device: torch.device, work: Path) -> Subject:
    """The checkpoint for `--model` and `--weights`; by default the first published size with random weights on a
    GPU, and the bundled model elsewhere.

    Raises InputError when the two do not go together, or there is no checkpoint.
    """
    first = next(iter(PUBLISHED))
    model = model or (first if weights or device.type == "cuda" else BUNDLED_NAME)
    if weights and model not in PUBLISHED:
        raise InputError(f"Weights are chosen for {' or '.join(PUBLISHED)} alone, found the model {model}.")
    if model in (BUNDLED_NAME, TINY):
        return _small(demo_model(work, tiny=model == TINY))
    on_gpu = model == first and device.type == "cuda"
    if model in PUBLISHED and weights in (None, RANDOM):
        folder = work / "checkpoints" / f"{model}-random"
        return Subject(f"{model}, random weights", folder, PUBLISHED[model], on_gpu, is_random=True)
    folder = Path(weights or model).expanduser().resolve()
    if not (folder / INDEX).is_file():
        known = ", ".join((*PUBLISHED, BUNDLED_NAME, TINY))
        raise InputError(f"Expected {known}, or a checkpoint's folder, found no {INDEX} in {folder}.")
    return Subject(folder.name, folder, _usual(folder), on_gpu)


def _usual(folder: Path) -> Usual:
    """Default job of a checkpoint's family; raises InputError for a family that the ladder does not know."""
    family = open_model(folder).family
    found = next((usual for usual in PUBLISHED.values() if usual.family == family), None)
    if found is None:
        known = ", ".join(usual.family for usual in PUBLISHED.values())
        raise InputError(f"The ladder measures checkpoints of {known}, found one of {family} in {folder}.")
    return found


def _small(model: DemoModel) -> Subject:
    usual = Usual(
        "i2vgen_xl", (model.side, model.side), model.num_frames, model.steps, model.guidance_scale, model.fps,
        model.prompts[0], 4, "fp16",
    )  # fmt: skip
    return Subject(model.name, model.folder, usual)
