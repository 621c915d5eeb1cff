"""The user's choices about engines, in words that widgets and command lines share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ...common.errors import InputError
from ...common.shapes import DimRange, ShapeProfile, span
from ...common.spec import PRECISIONS, QUANTIZED
from ...engine_builder.backends.base import INSIDE, OUTSIDE, Backend
from ...engine_builder.backends.registry import AUTO
from ...pipeline.decode import most_at_once
from ...pipeline.models.latent_space import LatentSpace, dims_of
from ...pipeline.request import ClipSize

PRESETS = "presets"
SHAPE_POLICIES = ("range", "exact", PRESETS)
MISS_POLICIES = (AUTO, "build", "eager", "stop")
WEIGHT_PLACES = (AUTO, OUTSIDE, INSIDE)
LATER = "later"
"""Meaning of `auto` on a GPU of a host that builds engines while there is nothing to run."""


@dataclass(frozen=True)
class EnginePolicy:
    """The user's choices about engines.

    `shapes`: `range` serves every size the network takes, `exact` the requested one, faster, `presets` those in
    `presets` and no others, each as fast as if it were alone, from one engine. `on_missing`: `build` it now, run
    `eager` with a warning, `stop`, or `auto`, see `on_missing_on`. `rewrites` are names of
    `VideoModel.known_rewrites`, each used where a component knows it; None for those that pay on the backend.
    `weights` are `outside` an engine, which then serves every fine-tune, `inside` it, or `auto`, by the backend.
    """

    backend: str = AUTO
    precision: str = AUTO
    shapes: str = "range"
    on_missing: str = "build"
    rewrites: tuple[str, ...] | None = None
    presets: tuple[ClipSize, ...] = ()
    weights: str = AUTO

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, (AUTO, *PRECISIONS, *QUANTIZED)),
            ("shape policy", self.shapes, SHAPE_POLICIES),
            ("miss policy", self.on_missing, MISS_POLICIES),
            ("place of weights", self.weights, WEIGHT_PLACES),
        ):
            if value not in known:
                raise InputError(f"The {name} is one of {', '.join(known)}, found {value!r:.80}.")
        if self.shapes == PRESETS and not self.presets:
            raise InputError("The shape policy presets needs sizes such as 512x512x16, found none.")

    def profile(self, limits: ShapeProfile, sizes: Mapping[str, int], latent: LatentSpace) -> ShapeProfile:
        """The shapes that an engine is built for: of those that its network takes, all, `sizes` or the presets.

        One clip is decoded in chunks of several sizes: even an exact decoder takes all that can be indexed. Raises
        InputError for sizes that the network does not take, or that are no preset.
        """
        pixels = f"(a latent is {latent.factor} pixels)"
        violations = limits.violations(sizes)
        if violations:
            raise InputError(f"No engine can serve this size: {'; '.join(violations)} {pixels}.")
        if self.shapes == "range":
            return limits.tuned_for(sizes)
        if self.shapes == "exact":
            return _exact(limits, sizes, _most(sizes, latent))
        presets = [_preset_sizes(each, limits, sizes, latent) for each in self.presets]
        most = _most({name: max(each[name] for each in presets) for name in sizes}, latent)
        found = span([_exact(limits, each, most) for each in presets], limits)
        if violations := found.violations({name: size for name, size in sizes.items() if name != "chunk"}):
            raise InputError(f"No preset serves this size: in the nearest, {'; '.join(violations)} {pixels}.")
        return found

    @property
    def weight_place(self) -> str | None:
        """The wished place of weights; None leaves it to the backend."""
        return None if self.weights == AUTO else self.weights

    def holds_weights(self, backend: Backend) -> bool:
        """Whether engines for a network whose weights are on the device already hold a copy of their own.

        Raises InputError for a place that the backend does not know.
        """
        return backend.builds and backend.place_weights(self.weight_place, 0, torch.device("cpu")) == INSIDE

    @property
    def quantized(self) -> str | None:
        """int8 or fp8, where that is the precision of a model's denoisers; None where they have that of the rest."""
        return self.precision if self.precision in QUANTIZED else None

    def precision_on(self, device: torch.device) -> str:
        """The precision to run in: `auto` is fp16 on a CUDA GPU, where it is faster, and fp32 elsewhere.

        The same beside denoisers in int8 or fp8, see `quantized`.
        """
        if self.precision != AUTO and self.quantized is None:
            return self.precision
        return "fp16" if device.type == "cuda" else "fp32"

    def on_missing_on(self, device: torch.device, *, builds_later: bool = False) -> str:
        """Policy where no engine fits: `auto` builds on a CUDA GPU, now or later, and runs eager elsewhere.

        On a CPU an engine of ONNX Runtime saves about a tenth of a step, and its build takes as long as some clips.
        """
        if self.on_missing != AUTO:
            return self.on_missing
        if device.type != "cuda":
            return "eager"
        return LATER if builds_later else "build"


def _preset_sizes(
    preset: ClipSize, limits: ShapeProfile, asked: Mapping[str, int], latent: LatentSpace
) -> dict[str, int]:
    """The sizes of a network at a preset; other dimensions, such as guidance's batch, keep the requested size."""
    found = {name: size for name, size in dims_of(latent, preset).items() if name in asked}
    violation = latent.violation("this model", *preset) or "; ".join(limits.violations(found))
    if violation:
        raise InputError(f"No engine can serve the preset {preset}: {violation.rstrip('.')}.")
    return {**asked, **found}


def _most(sizes: Mapping[str, int], latent: LatentSpace) -> int | None:
    """Greatest number of frames that a decoder takes at once at these sizes; None for another network."""
    if "chunk" not in sizes or "latent_height" not in sizes:
        return None
    return most_at_once(sizes["latent_height"] * latent.factor, sizes["latent_width"] * latent.factor)


def _exact(limits: ShapeProfile, sizes: Mapping[str, int], most: int | None) -> ShapeProfile:
    """The sizes alone, but for a decoder's chunk of up to `most` frames."""
    exact = limits.exact({name: size for name, size in sizes.items() if name != "chunk"})
    if most is None:
        return exact
    return ShapeProfile({**exact.ranges, "chunk": _at_most(limits.ranges["chunk"], most)})


def _at_most(limits: DimRange, most: int) -> DimRange:
    return replace(limits, opt=min(limits.opt, most), max=min(limits.max, most))
