"""What a clip comes to: its sizes, and how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.errors import InputError
from ..common.validation import check_number
from ..pipeline.conditioning import Conditioning
from ..pipeline.denoising.guidance import BOTH, branches_of
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.models.base import VideoModel
from ..pipeline.models.latent_space import dims_of
from ..pipeline.request import ClipSize

MAX_GUIDANCE = 100.0


def clip_sizes(model: VideoModel, width: int, height: int, num_frames: int, *, guided: bool = True) -> dict[str, int]:
    """The sizes of every named dimension for a clip of width x height (pixels).

    Raises InputError, with the nearest, for a size that the family does not make.
    """
    misfit = model.latent.misfit(model.title, width, height, num_frames)
    if misfit is not None:
        raise InputError(misfit)
    return {"batch": 2 if guided else 1, **dims_of(model.latent, ClipSize(width, height, num_frames))}


@dataclass(frozen=True)
class Denoising:
    """How to sample a clip. A guidance scale of 1 or less runs the conditional branch alone, in half the time.

    With `min_guidance_scale` guidance goes evenly from that in the first frame to `guidance_scale` in the
    last; None leaves it to the family. `late_guidance_scale` is that of a second core, which ends the clip;
    None gives it the first one's.
    """

    seed: int
    guidance_scale: float
    sampler: SamplerSettings
    min_guidance_scale: float | None = None
    late_guidance_scale: float | None = None

    def __post_init__(self) -> None:
        others = (scale for scale in (self.min_guidance_scale, self.late_guidance_scale) if scale is not None)
        for scale in (self.guidance_scale, *others):
            check_number("Guidance is", scale, 0, MAX_GUIDANCE)
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 64:
            raise InputError(f"The seed is a whole number from 0 to {(1 << 64) - 1}, found {self.seed}.")

    def scale_of(self, core: str, model: VideoModel) -> float:
        """The guidance scale of one of a model's cores."""
        late = self.late_guidance_scale
        return self.guidance_scale if late is None or core == model.core else late


def core_sizes(core: str, model: VideoModel, conditioning: Conditioning, denoising: Denoising) -> dict[str, int]:
    """The sizes at which sampling calls one of a model's cores."""
    width, height, count = conditioning.width, conditioning.height, conditioning.num_frames
    guided = branches_of(denoising.scale_of(core, model)) == BOTH
    return clip_sizes(model, width, height, count, guided=guided)
