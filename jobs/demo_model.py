"""The model that the demo runs with, and what to ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..pipeline.models.checkpoint import INDEX
from ..pipeline.models.tiny import write_tiny_checkpoint

PACK = Path(__file__).resolve().parent.parent
BUNDLED = PACK / "demo_model"
PICTURE = PACK / "workflows" / "pictures" / "lake.png"
NEGATIVE = "distorted, discontinuous, ugly, blurry, low resolution, motionless, static"


@dataclass(frozen=True)
class DemoModel:
    """A checkpoint with a clip that it makes in seconds; sizes in pixels."""

    folder: Path
    describes: str
    prompt: str
    side: int
    num_frames: int
    steps: int
    guidance_scale: float
    fps: int


def demo_model(cache: Path) -> DemoModel:
    """The bundled model; without one a tiny checkpoint of random weights, made once in `cache`."""
    if (BUNDLED / INDEX).is_file():
        return DemoModel(BUNDLED, "the bundled demonstration model", "pan left", 128, 16, 20, 3.0, 8)
    folder = cache / "checkpoints" / "tiny-random"
    if not (folder / INDEX).is_file():
        write_tiny_checkpoint(folder)
    prompt = "a red boat drifts to the right on a calm lake"
    return DemoModel(folder, "a tiny checkpoint of random weights: its pictures are noise", prompt, 128, 8, 8, 9.0, 8)
