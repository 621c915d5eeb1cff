"""Plan of a clip, computed once, before the clip is made: the stages read the plan and compute no part of it again.

A plan is made in two steps, as ComfyUI's nodes need it: `plan_clip` takes the size, which is all that encoding and
decoding need, and `plan_sampling` adds the sampler's settings. A caller with all settings makes one plan for a clip:

    plan = plan_clip(engines, request.size)
    conditioning = encode_clip(plan, request, cache, stage)
    latents = sample_clip(plan_sampling(plan, denoising), conditioning, on_step)
    frames = decode_clip(plan, latents, chunk, on_chunk)

A result's name is no part of the plan, for a digest of the conditioning goes into it: see `result_cache.result_key`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..common.errors import BackendUnavailableError, InputError
from ..common.validation import check_number
from ..engine_builder.backends.base import Backend
from ..pipeline.acceleration.schedule import Calls
from ..pipeline.denoising.guidance import BOTH, Branches, branches_of
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.models.base import VideoModel
from ..pipeline.models.latent_space import dims_of
from ..pipeline.models.model_networks import DEEP, SHALLOW
from ..pipeline.request import ClipSize
from . import budget
from .acceleration import plan_model_calls, planned_line
from .budget import Budget
from .engines.engine_set import EngineSet

MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class Denoising:
    """Settings to sample a clip. A guidance scale of 1 or less runs the conditional branch alone, in half the time.

    With `min_guidance_scale` guidance goes evenly from that in the first frame to `guidance_scale` in the
    last; None leaves it to the family. `late_guidance_scale` is that of a second denoiser, which ends the clip;
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

    def scale_of(self, denoiser: str, model: VideoModel) -> float:
        """The guidance scale of one of a model's denoisers."""
        late = self.late_guidance_scale
        return self.guidance_scale if late is None or denoiser == model.denoiser else late


@dataclass(frozen=True)
class ClipPlan:
    """A clip of one size over a set of engines.

    `sizes` are those of every named dimension, with guidance: engines are built for these. `encode` is the budget of
    the largest encoder, `step` that of a denoising step, `decode` that of decoding one frame, `frames` that of all of
    them in host memory. `notes` are sentences for the user.
    """

    engines: EngineSet
    size: ClipSize
    sizes: Mapping[str, int]
    encode: Budget
    step: Budget
    decode: Budget
    frames: Budget
    notes: tuple[str, ...] = ()

    @property
    def engine_sizes(self) -> list[tuple[tuple[str, ...], Mapping[str, int]]]:
        """The components that the clip calls under the engines' preset, the longest build first, and their sizes."""
        model, acceleration = self.engines.model, self.engines.preset.acceleration
        denoisers = model.denoisers if acceleration.deep_interval == 1 else (DEEP, SHALLOW)
        others = tuple(name for name in model.build_order if name not in model.denoisers)
        alone = (denoisers, {**self.sizes, "batch": 1})
        if self.engines.second is not None:
            return [alone, (others, self.sizes)]
        if acceleration.is_exact:
            return [(model.build_order, self.sizes)]
        return [((*denoisers, *others), self.sizes), *([] if acceleration.guidance is None else [alone])]


@dataclass(frozen=True)
class DenoiserPlan:
    """Settings of sampling's calls to one of a model's denoisers.

    `sizes` are those of every named dimension of a call, of one branch each on two devices. `backend` serves it unless
    something fails; None where the policy's does not serve the device.
    """

    guidance_scale: float
    branches: Branches
    sizes: Mapping[str, int]
    backend: Backend | None


@dataclass(frozen=True)
class SamplingPlan:
    """A clip with its sampler's settings; `step` is the budget of a step, of which guidance is known now.

    `asked` are the sampler's settings before the preset's solver replaced them. `calls` are those under the preset,
    None where every call is made as it is asked for.
    """

    clip: ClipPlan
    denoising: Denoising
    denoisers: Mapping[str, DenoiserPlan]
    step: Budget
    asked: SamplerSettings
    calls: Calls | None = None

    @property
    def is_guided(self) -> bool:
        """Whether any denoiser runs both branches."""
        return any(denoiser.branches == BOTH for denoiser in self.denoisers.values())

    @property
    def asked_calls(self) -> int:
        """How often the network would see a branch if every call were made as it is asked for."""
        return self.asked.steps * (2 if self.is_guided else 1)

    @property
    def most_calls(self) -> int:
        """How often it does under the preset, where that is known before the clip; the most, where it is not."""
        return self.asked_calls if self.calls is None else self.calls.branches

    @property
    def calls_line(self) -> str | None:
        """Sentence on the calls that the preset makes; None where it makes all."""
        if self.calls is None:
            return None
        return planned_line(self.calls, self.asked, self.denoising.sampler, self.is_guided)


def plan_clip(engines: EngineSet, asked: ClipSize, *, shrink: bool = False) -> ClipPlan:
    """The plan of a clip of that size, or with `shrink` of the largest one that fits the memory with guidance.

    Without `shrink` a step is planned without guidance, which is not known yet. The size is checked by the stages: a
    decoder takes more than a request may ask for. Raises BudgetError where nothing fits.
    """
    engines = _fitting_devices(engines, asked)
    step, (decode, frames) = budget.denoising(engines, guided=shrink), budget.decoding(engines)
    size, notes = asked, ()
    if shrink:
        size = budget.largest([step, decode, frames], asked, engine_multiple(engines.model))
    if size != asked:
        notes = (f"Made as {size.words}, for {asked.words} does not fit the memory.",)
    encode, sizes = budget.encoding(engines), _sizes(engines.model, size, BOTH)
    return ClipPlan(engines, size, sizes, encode, step, decode, frames, notes)


def plan_sampling(clip: ClipPlan, denoising: Denoising) -> SamplingPlan:
    """The plan of a clip, extended by how it is sampled.

    Raises InputError where the engines' preset makes a schedule that the model does not have.
    """
    engines, asked = clip.engines, denoising.sampler
    acceleration = engines.preset.acceleration
    denoising = replace(denoising, sampler=acceleration.sampler(asked))
    denoisers = {denoiser: _plan_denoiser(clip, denoiser, denoising) for denoiser in engines.model.denoisers}
    guided = [name for name, denoiser in denoisers.items() if denoiser.branches == BOTH]
    calls = None
    if not acceleration.is_exact:
        calls = plan_model_calls(acceleration, engines.model, denoising.sampler, guided, engines.store)
    return SamplingPlan(clip, denoising, denoisers, budget.denoising(engines, guided=bool(guided)), asked, calls)


def engine_multiple(model: VideoModel) -> int:
    """The multiple, in pixels, that a clip's sides must be for the denoiser's engines; eager PyTorch may take more."""
    return model.components[model.denoiser].spec.limits.ranges["latent_width"].multiple * model.latent.factor


def _fitting_devices(engines: EngineSet, size: ClipSize) -> EngineSet:
    """The engines, without those of a second device that has no room for its part of the clip, and a note on that."""
    second = engines.second
    if second is None or (room := budget.second_device(engines, second)).allows(size):
        return engines
    engines.note(f"{room.sentence(size)} One device makes the clip.")
    return engines.beside(None)


def _plan_denoiser(clip: ClipPlan, denoiser: str, denoising: Denoising) -> DenoiserPlan:
    scale = denoising.scale_of(denoiser, clip.engines.model)
    branches = branches_of(scale)
    sizes = _sizes(clip.engines.model, clip.size, branches)
    if clip.engines.second is not None:
        sizes["batch"] = 1
    try:
        backend = clip.engines.expected(denoiser, sizes)
    except BackendUnavailableError:
        backend = None
    return DenoiserPlan(scale, branches, sizes, backend)


def _sizes(model: VideoModel, size: ClipSize, branches: Branches) -> dict[str, int]:
    return {"batch": len(branches), **dims_of(model.latent, size)}
