"""Interpolation over engines: RIFE's networks as the filter's function, and a batch that fits the memory."""

from __future__ import annotations

from torch import Tensor

from ...pipeline.filters.interpolation import CUT, Interpolation, OnFrame
from ...pipeline.filters.timing import Timing
from ..engines.engine_set import Engines
from .networks import FEATURES, INTERPOLATION, MOST_AT_ONCE, RifeNetworks


class EngineBetween:
    """The network of an `Interpolation`, by engines: each call is of exactly `sizes`' kind, or smaller in number."""

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


def fitting_batch(engines: Engines[RifeNetworks], height: int, width: int) -> int:
    """Pictures of height x width (pixels) that are made at once in the memory that is free, at least one."""
    spare = engines.memory_manager.spare_bytes()
    if spare is None:
        return MOST_AT_ONCE
    one = engines.model.scratch_bytes(INTERPOLATION, {"height": height, "width": width}, engines.precision)
    return max(1, min(MOST_AT_ONCE, spare // max(one, 1)))


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
    batch = fitting_batch(engines, **sizes)
    engines.prepare({"chunk": batch, **sizes})
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
