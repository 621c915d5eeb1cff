"""The clip that the ladder makes in every row, from the same noise."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ...common.pack_paths import PICTURE
from ...pipeline.models.base import VideoModel
from ...pipeline.request import ClipRequest
from ...runtime.clip_sizes import clip_sizes

NEGATIVE_PROMPT = "blurry, distorted, static"


@dataclass(frozen=True)
class Job:
    """All that decides the clip, as plain data for other processes. Width and height in pixels."""

    model: str
    folder: str
    width: int
    height: int
    num_frames: int
    fps: int
    steps: int
    guidance_scale: float
    seed: int
    prompt: str
    chunk: int
    """Frames decoded at once."""
    device: str
    work: str
    """The folder of engines, caches and intermediate results."""

    @property
    def guided(self) -> bool:
        """Whether the denoiser runs both guidance branches."""
        return self.guidance_scale > 1

    @property
    def torch_device(self) -> torch.device:
        """The device as PyTorch's."""
        return torch.device(self.device)

    @property
    def work_folder(self) -> Path:
        """`work` as a path."""
        return Path(self.work)

    @property
    def digest(self) -> str:
        """A name for the clip, the same on any device: row 0 of one job is no reference for another."""
        others = ("chunk", "device", "work")
        content = {name: value for name, value in asdict(self).items() if name not in others}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def describes(self) -> str:
        """The job in a line."""
        return (
            f"{self.model}, {self.width}x{self.height}, {self.num_frames} frames, {self.steps} steps, "
            f"guidance {self.guidance_scale:g}, seed {self.seed}"
        )

    def request(self) -> ClipRequest:
        """The clip as the pipeline takes it, with the bundled picture."""
        from PIL import Image

        from ...pipeline.media.image import rgb

        picture = rgb(Image.open(PICTURE))
        return ClipRequest(picture, self.prompt, NEGATIVE_PROMPT, self.width, self.height, self.num_frames, self.fps)

    def sizes(self, model: VideoModel) -> dict[str, int]:
        """Every named dimension of the clip's networks."""
        return clip_sizes(model, self.width, self.height, self.num_frames, guided=self.guided)

    def noise(self, model: VideoModel) -> torch.Tensor:
        """The noise that every row starts from, float32 [frames, channels, height, width] on the CPU."""
        generator = torch.Generator().manual_seed(self.seed)
        return model.noise(self.width, self.height, self.num_frames, generator)
