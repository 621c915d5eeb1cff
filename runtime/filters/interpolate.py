"""Interpolation over engines: RIFE's networks as the filter's function, and a batch that fits the memory."""

from __future__ import annotations

from torch import Tensor

from ...pipeline.filters.interpolation import CUT, Interpolation, OnFrame
from ...pipeline.filters.timing import Timing
from ..engines.engine_set import Engines
from .networks import FEATURES, INTERPOLATION, RifeNetworks, exact_batch


class EngineBetween:
    """The network of an `Interpolation`, by engines."""

    def __init__(self, engines: Engines[RifeNetworks]) -> None:
        self._engines = engines

    def features(self, images: Tensor) -> Tensor:
        return self._engines.run(FEATURES, {"image": images})["features"].clone()

    def __call__(self, first: Tensor, second: Tensor, known: tuple[Tensor, Tensor], times: Tensor) -> Tensor:
        inputs = {
            "first": first,
            "second": second,
            "first_features": known[0],
            "second_features": known[1],
            "time": times.view(-1, 1, 1, 1),
        }
        return self._engines.run(INTERPOLATION, inputs)["image"]


def interpolation(
    engines: Engines[RifeNetworks],
    timing: Timing,
    height: int,
    width: int,
    *,
    cut: float = CUT,
    drop_repeats: bool = False,
    on_frame: OnFrame = lambda done: None,
) -> Interpolation:
    """The filter for frames of height x width (pixels); builds missing engines first, where the policy is to."""
    align = engines.model.align
    sizes = {"height": height + -height % align, "width": width + -width % align}
    batch = exact_batch(engines, INTERPOLATION, sizes)
    engines.prepare({"pictures": batch, **sizes})
    return Interpolation(
        EngineBetween(engines),
        timing,
        device=engines.device,
        align=align,
        batch=batch,
        cut=cut,
        drop_repeats=drop_repeats,
        on_frame=on_frame,
    )
