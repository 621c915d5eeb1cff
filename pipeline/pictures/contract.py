"""What an ONNX file's picture network takes and gives, as plain data: found by trials, or said by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from ...common.errors import InputError

AUTO = "auto"
NCHW, NHWC, NHW = "NCHW", "NHWC", "NHW"
"""Orders of a tensor's dimensions: number, channels, height, width. Masks may have no channels at all."""
LAYOUTS = (AUTO, NCHW, NHWC)

UNIT, SIGNED, BYTE, IMAGENET = "0..1", "-1..1", "0..255", "imagenet"
SIGMOID, STRETCH = "sigmoid", "min..max"
SCALING: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    UNIT: ((0.0,), (1.0,)),
    SIGNED: ((0.5,), (0.5,)),
    BYTE: ((0.0,), (1 / 255,)),
    IMAGENET: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and deviation of each range: a picture x from 0 to 1 stands there as (x - mean) / deviation."""
RANGES_IN = (AUTO, *SCALING)
RANGES_OUT = (AUTO, UNIT, SIGNED, BYTE, SIGMOID, STRETCH)
RGB, BGR = "RGB", "BGR"


@dataclass(frozen=True)
class More:
    """A further input: one number, or a tensor of that shape; None stands for the number of pictures or any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    @property
    def is_number(self) -> bool:
        """Whether it holds a single number."""
        return all(size == 1 for size in self.shape)

    @property
    def is_picture(self) -> bool:
        """Whether it is another picture."""
        return len(self.shape) == 4

    def own_size(self, layout: str) -> tuple[int, int] | None:
        """Height and width of another picture that has its own; None for one of the first picture's."""
        height, width = self.shape[2:] if layout == NCHW else self.shape[1:3]
        return (height, width) if height and width else None


@dataclass(frozen=True)
class Contract:
    """A picture network's input and output.

    `size` is the height and width in pixels of a network that takes no others. `multiple`: what both are multiples of
    elsewhere. The output's sides are `scale` times the input's. `guessed` names what nothing in the file tells.
    `bytes_per_pixel` is the memory of a call for each pixel of the input, as far as the graph tells.
    """

    picture: str
    channels: int
    layout: str
    dtype: str
    output: str
    outputs: tuple[str, ...]
    out_channels: int
    out_layout: str
    out_dtype: str
    size: tuple[int, int] | None = None
    multiple: int = 1
    batches: bool = False
    scale: tuple[int, int] = (1, 1)
    range_in: str = UNIT
    range_out: str = UNIT
    guessed: tuple[str, ...] = ()
    more: tuple[More, ...] = ()
    precision: str = "fp32"
    bytes_per_pixel: int = 0

    @property
    def factor(self) -> Fraction:
        """The output's side as a multiple of the input's."""
        return Fraction(*self.scale)

    @property
    def gives_masks(self) -> bool:
        """Whether one channel comes out, which is a mask."""
        return self.out_channels == 1

    @property
    def step(self) -> int:
        """What the input's sides are multiples of, so that the output's are whole."""
        return math.lcm(self.multiple, self.factor.denominator)

    @property
    def picture_dims(self) -> tuple[str | int, ...]:
        """The input's dimensions, by the names of a specification: `chunk`, `rows` and `columns`."""
        return self._dims(self.layout, self.channels, self.factor.denominator, Fraction(1))

    @property
    def output_dims(self) -> tuple[str | int, ...]:
        """The output's dimensions."""
        return self._dims(self.out_layout, self.out_channels, self.factor.numerator, self.factor)

    def more_dims(self, more: More) -> tuple[str | int, ...]:
        """The dimensions of a further input."""
        if more.is_picture and more.own_size(self.layout) is None:
            return self.picture_dims
        return tuple(size or ("chunk" if self.batches else 1) for size in more.shape)

    def _dims(self, layout: str, channels: int, per_row: int, factor: Fraction) -> tuple[str | int, ...]:
        sides: tuple[str | int, ...] = (f"rows*{per_row}", f"columns*{per_row}")
        if self.size is not None:
            sides = tuple(int(side * factor) for side in self.size)
        inner = {NCHW: (channels, *sides), NHWC: (*sides, channels), NHW: sides}[layout]
        return ("chunk" if self.batches else 1, *inner)

    def with_ranges(self, range_in: str, range_out: str) -> Contract:
        """The contract with what the user says of its ranges; `auto` leaves what was found."""
        said = {name: value for name, value in (("range_in", range_in), ("range_out", range_out)) if value != AUTO}
        return replace(self, **said, guessed=tuple(name for name in self.guessed if name not in said))

    def describe(self) -> str:
        """One line for the user."""
        size = f"{self.size[1]}x{self.size[0]} alone" if self.size else f"multiples of {self.multiple}"
        guessed = f"; guessed: {', '.join(name.replace('_', ' ') for name in self.guessed)}" if self.guessed else ""
        taken = f"{self.picture} {self.layout}, {self.channels} channels {self.range_in}, {size}"
        given = f"{self.output} {self.out_layout}, {self.out_channels} channels {self.range_out}, x{self.factor}"
        return f"{taken} -> {given}{guessed}"


def contract_from_dict(data: Mapping[str, Any]) -> Contract:
    """A contract from `dataclasses.asdict` after JSON; raises InputError for anything else."""
    try:
        made = dict(data)
        for name in ("outputs", "scale", "guessed"):
            made[name] = tuple(made[name])
        made["size"] = tuple(made["size"]) if made["size"] else None
        made["more"] = tuple(More(each["name"], each["dtype"], tuple(each["shape"])) for each in made["more"])
        return Contract(**made)
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"A picture network's description is malformed: {error}.") from error


def contract_to_dict(contract: Contract) -> dict[str, Any]:
    """The contract as JSON takes it."""
    return asdict(contract)
