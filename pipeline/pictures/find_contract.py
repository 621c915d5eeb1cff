"""Finds a picture network's contract: what its file states, and where that is nothing or wrong, what trials show."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.errors import InputError
from .contract import AUTO, NCHW, NHW, NHWC, Contract, More
from .graph import check_bounds, dims_of, dtype_of, free_inputs, read_model
from .ranges import find_ranges
from .trials import FLOATS, Trials, natural

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, ValueInfoProto

HEIGHT, WIDTH = 128, 256
"""Pixels of the first trial: multiples of what networks ask for."""
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
CHANNELS = (3, 1, 4)
"""Channels of pictures, the usual first."""
LARGEST_SCALE = 16
SAME = 1e-3
"""Relative error between a picture alone and in a batch."""


@dataclass(frozen=True)
class _Output:
    """An output that is a picture or a mask."""

    name: str
    layout: str
    channels: int
    scale: Fraction


def find_contract(path: Path, layout: str = AUTO, output: str = "") -> Contract:
    """The contract of the network in a file, read in that layout, with the output of that name (else the first fit).

    Raises InputError with the reason where it maps no picture to a picture or a mask.
    """
    model = read_model(path)
    picture, more = _inputs(model)
    failures = []
    for layout_tried, channels in _readings(picture, layout):
        try:
            return _contract(Trials(model, picture, layout_tried, channels, more), output)
        except InputError as error:
            failures.append(error)
    raise failures[0]


def _inputs(model: ModelProto) -> tuple[ValueInfoProto, tuple[More, ...]]:
    """The input that is a picture, and the others."""
    inputs = free_inputs(model)
    pictures = [value for value in inputs if _may_be_picture(value)]
    if not pictures:
        shapes = ", ".join(f"{value.name[:40]} {list(dims_of(value) or ())}" for value in inputs[:4]) or "none"
        raise InputError(f"Expected an input [number, channels, height, width], found {shapes}.")
    more = []
    for value in (value for value in inputs if value is not pictures[0]):
        dims = dims_of(value)
        if dims is None or (len(dims) != 4 and None in dims[1:]):
            raise InputError(f"Expected further inputs of known sizes, found {value.name[:40]} {list(dims or ())}.")
        more.append(More(value.name, dtype_of(value), dims))
    if sum(each.is_number for each in more) > 1 or sum(not each.is_number for each in more) > 1:
        named = ", ".join(f"{each.name[:40]} {list(each.shape)}" for each in more)
        raise InputError(f"Expected at most one number and one tensor beside the picture, found {named}.")
    return pictures[0], tuple(more)


def _may_be_picture(value: ValueInfoProto) -> bool:
    dims = dims_of(value)
    return (dims is None or len(dims) == 4) and dtype_of(value) in (*FLOATS, "uint8")


def _readings(picture: ValueInfoProto, wanted: str) -> list[tuple[str, int]]:
    """Layouts and channels that the input may have, what the file states first; raises InputError for none."""
    dims = dims_of(picture) or (None,) * 4
    stated, open_ones = [], []
    for layout, axis in ((NCHW, 1), (NHWC, 3)):
        if wanted not in (AUTO, layout):
            continue
        if dims[axis] in CHANNELS:
            stated.append((layout, dims[axis]))
        elif dims[axis] is None:
            open_ones += [(layout, channels) for channels in CHANNELS[:2]]
    if not stated and not open_ones:
        raise InputError(f"Expected a picture of 1, 3 or 4 channels, found {picture.name[:40]} {list(dims)}.")
    return stated or open_ones


def _contract(trials: Trials, wanted: str) -> Contract:
    """The contract under one reading of the input."""
    size, picture, found, chosen = _tried(trials, wanted)
    height, width = picture.shape[1:3]
    tensors = check_bounds(trials.bare, trials.dims(1, height, width))
    range_in, range_out, guessed = find_ranges(trials, chosen.name, chosen.layout, picture, open_size=size is None)
    return Contract(
        picture=trials.picture,
        channels=trials.channels,
        layout=trials.layout,
        dtype=trials.dtype,
        output=chosen.name,
        outputs=tuple(trials.outputs),
        out_channels=chosen.channels,
        out_layout=chosen.layout,
        out_dtype=str(found[chosen.name].dtype),
        size=size,
        multiple=_multiple(trials, chosen) if size is None else 1,
        batches=_batches(trials, chosen.name, picture, open_size=size is None),
        scale=(chosen.scale.numerator, chosen.scale.denominator),
        range_in=range_in,
        range_out=range_out,
        guessed=guessed,
        more=trials.more,
        precision=_precision(trials.model),
        bytes_per_pixel=-(-sum(tensors[:4]) // (height * width)),
    )


def _tried(trials: Trials, wanted: str) -> tuple[tuple[int, int] | None, np.ndarray, dict[str, np.ndarray], _Output]:
    """The size that the network is bound to (None for none), a picture, its outputs, and the one that is meant."""
    try:
        picture = natural(HEIGHT, WIDTH, trials.channels)
        found = trials.run(picture)
        chosen = _output(found, wanted, picture)
        turned = natural(WIDTH, HEIGHT, trials.channels)
        if _read(chosen.name, trials.run(turned)[chosen.name], turned) != chosen:
            raise InputError(f"Expected an output as large as the picture or a multiple, found {chosen.name[:40]}.")
        return None, picture, found, chosen
    except InputError:
        if trials.stated_size is None:
            raise
    picture = natural(*trials.stated_size, trials.channels)
    found = trials.run(picture, open_size=False)
    return trials.stated_size, picture, found, _output(found, wanted, picture)


def _output(found: dict[str, np.ndarray], wanted: str, picture: np.ndarray) -> _Output:
    """The output of the wanted name, else the first that is a picture or a mask; raises InputError."""
    if wanted and wanted not in found:
        raise InputError(f"Expected an output among {', '.join(found)[:200]}, found {wanted[:80]!r}.")
    names = [wanted] if wanted else list(found)
    read = [_read(name, found[name], picture) for name in names]
    chosen = next((each for each in read if each is not None), None)
    if chosen is None:
        shapes = ", ".join(f"{name[:40]} {list(found[name].shape)}" for name in names[:4])
        raise InputError(
            f"Expected an output of 1, 3 or 4 channels in the picture's proportions, found {shapes} of "
            f"{picture.shape[2]}x{picture.shape[1]} pixels."
        )
    return chosen


def _read(name: str, values: np.ndarray, picture: np.ndarray) -> _Output | None:
    """An output as a picture or a mask: its layout, channels and scale; None for anything else."""
    shape = values.shape
    readings = {4: [(NCHW, 1, (2, 3)), (NHWC, 3, (1, 2))], 3: [(NHW, None, (1, 2))]}.get(len(shape), [])
    for layout, axis, sides in readings:
        channels = 1 if axis is None else shape[axis]
        scales = {Fraction(shape[side], given) for side, given in zip(sides, picture.shape[1:3], strict=True)}
        scale = scales.pop()
        is_small = scale.numerator <= LARGEST_SCALE and scale.denominator <= LARGEST_SCALE
        if channels in CHANNELS and shape[0] == len(picture) and not scales and is_small:
            if scale < 1 and channels != 1:
                continue  # coarse features of that many channels are no picture
            return _Output(name, layout, channels, scale)
    return None


def _multiple(trials: Trials, chosen: _Output) -> int:
    """The least of the known multiples in which the network takes sides."""
    for multiple in MULTIPLES:
        picture = natural(HEIGHT + multiple, WIDTH - multiple, trials.channels)
        try:
            if _read(chosen.name, trials.run(picture)[chosen.name], picture) == chosen:
                return multiple
        except InputError:
            continue
    return HEIGHT


def _batches(trials: Trials, output: str, picture: np.ndarray, *, open_size: bool) -> bool:
    """Whether two pictures at once give what each gives alone; files often say one alone, and mean it or not."""
    import numpy as np

    if not open_size:
        return False
    pair = np.concatenate([picture, picture[:, ::-1]])
    try:
        both = trials.run(pair)[output]
        alone = np.concatenate([trials.run(pair[number : number + 1])[output] for number in range(2)])
    except InputError:
        return False
    return both.shape == alone.shape and bool(np.allclose(both, alone, rtol=SAME, atol=SAME * abs(alone).max()))


def _precision(model: ModelProto) -> str:
    """The precision that the network's weights are in."""
    import onnx

    def size(kind: int) -> int:
        return sum(tensor.ByteSize() for tensor in model.graph.initializer if tensor.data_type == kind)

    return "fp16" if size(onnx.TensorProto.FLOAT16) > size(onnx.TensorProto.FLOAT) else "fp32"
