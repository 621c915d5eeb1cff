"""What the user wants of engines, in words that widgets and command lines share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ..engine_builder.backends.registry import AUTO
from ..engine_builder.errors import InputError
from ..engine_builder.spec import PRECISIONS, DimRange, ShapeProfile
from ..pipeline.decode import most_at_once

SHAPE_POLICIES = ("range", "exact")
MISS_POLICIES = (AUTO, "build", "eager", "stop")


@dataclass(frozen=True)
class EnginePolicy:
    """What the user wants of engines.

    `shapes`: `range` serves every size the network takes, `exact` the requested one, faster. `on_missing`:
    `build` it now, run `eager` with a warning, `stop`, or `auto`, see `on_missing_on`. `rewrites` are names of
    `VideoModel.known_rewrites`, each used where a component knows it; None for those that pay on the backend.
    """

    backend: str = AUTO
    precision: str = AUTO
    shapes: str = "range"
    on_missing: str = "build"
    rewrites: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, (AUTO, *PRECISIONS)),
            ("shape policy", self.shapes, SHAPE_POLICIES),
            ("miss policy", self.on_missing, MISS_POLICIES),
        ):
            if value not in known:
                raise InputError(f"The {name} is one of {', '.join(known)}, found {value!r:.80}.")

    def profile(self, limits: ShapeProfile, sizes: Mapping[str, int], factor: int) -> ShapeProfile:
        """The shapes that an engine is built for: of those that its network takes, all or `sizes`.

        One clip is decoded in chunks of several sizes: even an exact decoder takes all that can be indexed. A latent
        is `factor` pixels. Raises InputError for sizes that the network does not take.
        """
        misfits = limits.misfits(sizes)
        if misfits:
            raise InputError(f"No engine can serve this size: {'; '.join(misfits)} (a latent is {factor} pixels).")
        if self.shapes == "range":
            return limits.tuned_for(sizes)
        exact = limits.exact({name: size for name, size in sizes.items() if name != "chunk"})
        if "chunk" not in limits.ranges or "latent_height" not in sizes:
            return exact
        most = most_at_once(sizes["latent_height"] * factor, sizes["latent_width"] * factor)
        return ShapeProfile({**exact.ranges, "chunk": _at_most(limits.ranges["chunk"], most)})

    def precision_on(self, device: torch.device) -> str:
        """The precision to run in: `auto` is fp16 on a CUDA GPU, where it is faster, and fp32 elsewhere."""
        if self.precision != AUTO:
            return self.precision
        return "fp16" if device.type == "cuda" else "fp32"

    def on_missing_on(self, device: torch.device) -> str:
        """What to do where no engine fits: `auto` builds on a CUDA GPU and runs eager elsewhere.

        On a CPU an engine of ONNX Runtime saves about a tenth of a step, and its build takes as long as some clips.
        """
        if self.on_missing != AUTO:
            return self.on_missing
        return "build" if device.type == "cuda" else "eager"


def _at_most(limits: DimRange, most: int) -> DimRange:
    return replace(limits, opt=min(limits.opt, most), max=min(limits.max, most))


def default_device() -> torch.device:
    """What to compute on where no ComfyUI says so: the first CUDA GPU, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
