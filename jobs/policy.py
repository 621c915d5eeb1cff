"""What the user wants of engines, in words that widgets and command lines share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..engine_builder.backends.registry import AUTO
from ..engine_builder.errors import InputError
from ..engine_builder.spec import PRECISIONS

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
