"""Limits of widgets that ComfyUI itself compares each value with, so that the guilty input alone is marked.

A sentence of `validate_inputs` it lays at the door of every input that the function names. Its own check is
`value > max`, which these limits answer for NaN and for sides too; a page and a program see plain numbers. Where a
ComfyUI checks otherwise, the nodes refuse the value as they run.
"""

from __future__ import annotations

from comfy_api.latest import io

from ..pipeline.conditioning import MAX_SIDE, MIN_SIDE

STEP = 8
"""What sides are multiples of."""


class MostFloat(float):
    """A greatest number that NaN is beyond, too."""

    def __lt__(self, value: float) -> bool:
        return not value <= float(self)


class MostPixels(int):
    """A greatest side that one between two multiples of `STEP` is beyond, too."""

    def __lt__(self, value: int) -> bool:
        return value > int(self) or value % STEP != 0

    def __format__(self, spec: str) -> str:
        return f"{int(self)} in steps of {STEP}"


def side_input(name: str, default: int, tooltip: str = "Pixels.") -> io.Int.Input:
    """A width or a height."""
    return io.Int.Input(name, default=default, min=MIN_SIDE, max=MostPixels(MAX_SIDE), step=STEP, tooltip=tooltip)
