"""Calibration of int8 and fp8: scales come from the denoisers' calls in clips of the user's own pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..common.digest import digest
from ..common.errors import InputError
from ..engine_builder.backends.base import Runner, WrappedRunner
from ..engine_builder.backends.eager import EagerBackend
from ..engine_builder.graph.recorded_calls import Calibration, Call, save_calls, spread
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.media.image import rgb
from ..pipeline.request import ClipRequest, ClipSize
from ..pipeline.tensor_cache import ConditioningCache
from .clip import encode_clip, sample_clip
from .clip_plan import Denoising, plan_clip, plan_sampling
from .engines.engine_set import EngineSet
from .engines.policy import EnginePolicy

if TYPE_CHECKING:
    from PIL import Image

MOST_CLIPS = 4
STEPS = 8
"""Steps of each clip: all of the schedule, from noise to picture, in steps as wide as a fast clip's."""
MOST_CALLS = 16
"""Scales hardly change with more, and each is run on the CPU."""
GUIDANCE_SCALE = 5.0
FPS = 8
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

OnClip = Callable[[int, int], None]
"""Callback with the number of recorded clips and the number of all clips; may raise to cancel."""


@dataclass(frozen=True)
class CalibrationData:
    """Pictures in RGB and prompts; raises InputError without a picture."""

    pictures: tuple[Image.Image, ...]
    prompts: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        if not self.pictures or not self.prompts:
            raise InputError("int8 and fp8 take their scales from at least one picture and one prompt, found none.")

    @property
    def clips(self) -> list[tuple[Image.Image, str]]:
        """Each picture and each prompt at least once, up to MOST_CLIPS of them."""
        count = min(max(len(self.pictures), len(self.prompts)), MOST_CLIPS)
        return [
            (self.pictures[number % len(self.pictures)], self.prompts[number % len(self.prompts)])
            for number in range(count)
        ]

    def name(self, size: ClipSize) -> str:
        """A digest of the recorded clips at that size; an engine's specification names the model already."""
        pictures = [(hashlib.sha256(each.tobytes()).hexdigest(), each.size, prompt) for each, prompt in self.clips]
        return digest({"clips": pictures, "size": size, "settings": [STEPS, MOST_CALLS, GUIDANCE_SCALE, FPS]})


def read_calibration_data(paths: Sequence[Path], prompts: Sequence[str]) -> CalibrationData:
    """Pictures from files and from folders of them, in alphabetical order; raises InputError for other files."""
    from PIL import Image, UnidentifiedImageError

    pictures = []
    for file in [file for path in paths for file in _files(path)][:MOST_CLIPS]:
        try:
            with Image.open(file) as picture:
                pictures.append(rgb(picture))
        except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise InputError(f"Expected a picture in {file}, which cannot be read: {error}.") from error
    return CalibrationData(tuple(pictures), tuple(prompts) or ("",))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"Expected pictures ({', '.join(SUFFIXES)}) in {path}, found none.")
    return found


def calibration_of(denoiser: str, calibration_data: CalibrationData, size: ClipSize, folder: Path) -> Calibration:
    """Calibration of a denoiser that `record` leaves in `folder`."""
    return Calibration(folder / f"{denoiser}.safetensors", calibration_data.name(size))


def record(
    engines: EngineSet, calibration_data: CalibrationData, size: ClipSize, folder: Path, on_clip: OnClip
) -> None:
    """Writes the calls of each denoiser over the material's clips, in eager PyTorch, as `calibration_of` has them.

    Raises InputError for a size that the model does not make.
    """
    policy = EnginePolicy(EagerBackend.name, on_missing="eager")
    calls: dict[str, list[Call]] = {denoiser: [] for denoiser in engines.model.denoisers}

    def wrap(component: str, runner: Runner) -> Runner:
        return _Recorder(runner, calls[component]) if component in calls else runner

    recording = EngineSet(engines.model, engines.store, policy, engines.device, engines.memory_manager, wrap=wrap)
    plan, cache, count = plan_clip(recording, size), ConditioningCache(None), len(calibration_data.clips)
    for number, (picture, prompt) in enumerate(calibration_data.clips):
        tell = partial(on_clip, number, count)
        tell()
        request = ClipRequest(picture, prompt, "", *size, fps=FPS)
        conditioning = encode_clip(plan, request, cache, lambda stage, done, total: None)
        denoising = Denoising(number, GUIDANCE_SCALE, SamplerSettings(STEPS, engines.model.schedulers[0]))
        sampling = plan_sampling(plan, denoising)
        sample_clip(sampling, conditioning, lambda done, total, latents, tell=tell: tell())
    recording.unload()
    for denoiser, made in calls.items():
        save_calls(spread(made, MOST_CALLS), calibration_of(denoiser, calibration_data, size, folder).path)


class _Recorder(WrappedRunner):
    """A loaded runner that keeps a copy of each call in host memory."""

    backend = EagerBackend.name

    def __init__(self, runner: Runner, calls: list[Call]) -> None:
        super().__init__(runner)
        self._calls = calls

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = self._runner(inputs)
        self._calls.append(Call(_copied(inputs), _copied(found)))
        return found


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.detach().to("cpu", copy=True) for name, x in tensors.items()}
