"""The demo's model, and its default job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.pack_paths import BUNDLED, BUNDLED_NAME
from ..pipeline.dummies.i2vgen_xl import write_tiny_checkpoint
from ..pipeline.models.checkpoints.diffusers_folder import INDEX


@dataclass(frozen=True)
class DemoModel:
    """A checkpoint with clips that it makes in seconds; sizes in pixels. The first prompt is the default."""

    name: str
    folder: Path
    describes: str
    prompts: tuple[str, ...]
    side: int
    num_frames: int
    steps: int
    guidance_scale: float
    fps: int


def demo_model(cache: Path, *, tiny: bool = False) -> DemoModel:
    """The bundled model; or a tiny checkpoint of random weights, made once in `cache`."""
    if not tiny:
        prompts = ("zoom in slowly", "pan left", "rotate clockwise", "still")
        return DemoModel(BUNDLED_NAME, BUNDLED, "the bundled demonstration model", prompts, 128, 16, 20, 3.0, 8)
    folder = cache / "checkpoints" / "tiny-random"
    if not (folder / INDEX).is_file():
        write_tiny_checkpoint(folder)
    prompts = ("a red boat drifts to the right on a calm lake", "pan left", "zoom in", "still")
    describes = "a tiny checkpoint of random weights: its pictures are noise"
    return DemoModel(folder.name, folder, describes, prompts, 128, 8, 8, 9.0, 8)
