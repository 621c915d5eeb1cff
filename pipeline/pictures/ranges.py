"""The ranges in which a picture network takes pictures and gives them: seldom stated, often shown by trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .contract import BYTE, NCHW, SCALING, SIGMOID, SIGNED, STRETCH, UNIT
from .trials import Trials, scaled

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

ECHO_DB = 20.0
"""A result at least as near as this is the picture again, changed; one further off may be something else."""
CLEARLY_DB = 3.0
"""By so much an echo of the picture must be nearer in one range than in the usual one."""
ARITHMETIC = ("Sub", "Add", "Div", "Mul")
PASSING = ("Cast", "Identity", "Transpose", "Unsqueeze", "Squeeze")
"""Operators through which a picture keeps its range."""
LARGE, SMALL = 10.0, 0.05
"""A constant beyond LARGE is subtracted from, or divides, bytes alone; one below SMALL is what bytes are scaled by."""
MEANS = (0.35, 0.65)
"""What is subtracted from pictures from 0 to 1: the means of natural ones, or a half."""


def range_in_of(model: ModelProto, picture: str, dtype: str) -> str | None:
    """The range that the graph's first arithmetic shows, which brings pictures into its own; None for none."""
    if dtype == "uint8":
        return BYTE
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    name = picture
    for node in model.graph.node:
        if name not in node.input:
            continue
        if node.op_type in PASSING:
            name = node.output[0]
            continue
        others = [constants[each] for each in node.input if each in constants]
        return _shown(node.op_type, others[0]) if node.op_type in ARITHMETIC and others else None
    return None


def _shown(operator: str, tensor: object) -> str | None:
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)  # pyright: ignore[reportArgumentType] - a TensorProto
    if values.size not in (1, 3):
        return None
    size = float(abs(values).max())
    if size <= SMALL if operator == "Mul" else size >= LARGE:
        return BYTE
    return UNIT if operator == "Sub" and MEANS[0] <= size <= MEANS[1] else None


def find_ranges(
    trials: Trials, output: str, layout: str, natural: np.ndarray, *, open_size: bool
) -> tuple[str, str, tuple[str, ...]]:
    """Ranges of the picture and of what comes out, and the names of those that are guesses.

    A network that changes pictures gives the picture again, changed, when it is asked in its own range.
    """
    shown = range_in_of(trials.model, trials.picture, trials.dtype)

    def answer(kind: str) -> np.ndarray:
        found = trials.run(scaled(natural, kind), open_size=open_size)[output].astype("float32")
        return found.transpose(0, 2, 3, 1) if layout == NCHW else found.reshape(*found.shape[:3], -1)

    if trials.dtype == "uint8":
        values = answer(BYTE)
        return BYTE, _range_of(values), ()
    candidates = [kind for kind in (UNIT, SIGNED, BYTE) if shown in (None, kind)]
    answers = {kind: answer(kind) for kind in candidates}
    if answers[candidates[0]].shape[-1] == natural.shape[-1]:
        echoes = {kind: _echo_db(values, natural, kind) for kind, values in answers.items()}
        best, usual = max(echoes, key=lambda kind: echoes[kind]), candidates[0]
        if ECHO_DB <= echoes[usual] and echoes[best] < echoes[usual] + CLEARLY_DB:
            best = usual
        if echoes[best] >= ECHO_DB:
            return best, best, ()
    range_in = shown or UNIT
    guessed = () if shown else ("range_in",)
    return range_in, _range_of(answers[range_in]), (*guessed, "range_out")


def _range_of(values: np.ndarray) -> str:
    """The range that values seem to be in: of pictures, or of one channel that need not be one."""
    low, high = float(values.min()), float(values.max())
    if low >= -0.05 and high <= 1.05:
        return UNIT
    if values.shape[-1] == 1:
        return SIGMOID if low < -0.05 else STRETCH
    return BYTE if high > 2 else SIGNED if low < -0.05 else UNIT


def _echo_db(values: np.ndarray, natural: np.ndarray, kind: str) -> float:
    """Distance of a result, read in that range, from the picture that was given; both at the smaller one's size."""
    import numpy as np

    mean, deviation = SCALING[kind][0][0], SCALING[kind][1][0]
    found, wanted = _same_size(values * deviation + mean, natural)
    return -10 * float(np.log10(np.mean((found - wanted) ** 2) + 1e-12)) if np.isfinite(found).all() else -1e9


def _same_size(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both at the smaller one's size, by means over blocks: sides are whole multiples of each other here."""
    height, width = (min(a, b) for a, b in zip(one.shape[1:3], other.shape[1:3], strict=True))

    def shrunk(values: np.ndarray) -> np.ndarray:
        down, across = values.shape[1] // height, values.shape[2] // width
        cut = values[:, : down * height, : across * width]
        return cut.reshape(len(cut), height, down, width, across, -1).mean((2, 4))

    return shrunk(one), shrunk(other)
