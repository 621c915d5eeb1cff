"""Trials of an ONNX file's picture network on the CPU, at small sizes that its file may not state."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...common.errors import InputError
from ...common.pack_paths import PICTURE
from .contract import NCHW, NHWC, SCALING, More
from .graph import check_bounds, dims_of, dtype_of, with_dims, without_weights

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, ValueInfoProto

FLOATS = ("float32", "float16", "float64")
NUMBER = 0.5
"""Value of a further number in a trial."""
THREADS = 4
"""Threads of a trial, each of which reserves address space."""
SILENT = 4
"""ONNX Runtime's level of messages that says nothing: the errors are raised as well."""


class Trials:
    """The network under one reading of its picture, with every size of it left open."""

    def __init__(
        self, model: ModelProto, picture: ValueInfoProto, layout: str, channels: int, more: tuple[More, ...]
    ) -> None:
        self.model, self.picture, self.layout, self.channels, self.more = model, picture.name, layout, channels, more
        self.bare, self.dtype = without_weights(model), dtype_of(picture)
        self.outputs = [value.name for value in model.graph.output]
        stated = dims_of(picture) or (None,) * 4
        height, width = stated[2:] if layout == NCHW else stated[1:3]
        self.stated_size = (height, width) if height and width else None
        self._sessions: dict[tuple[int | str, ...], Any] = {}

    def run(self, pictures: np.ndarray, *, open_size: bool = True) -> dict[str, np.ndarray]:
        """Outputs for pictures [number, height, width, channels] in the network's range.

        With an open size the network is asked as if it took every size. Raises InputError where it does not run.
        """
        count, height, width, _ = pictures.shape
        exact = self.dims(count, height, width)
        check_bounds(self.bare, exact)
        session = self._session(self.dims("number", "height", "width") if open_size else exact)
        given = self._laid_out(pictures)
        feeds = {self.picture: given.astype(self.dtype)}
        feeds |= {each.name: self._example(each, given) for each in self.more}
        try:
            return dict(zip(self.outputs, session.run(self.outputs, feeds), strict=True))
        except Exception as error:  # onnxruntime's own exceptions share no public base
            raise InputError(f"The network does not run at {width}x{height}: {_reason(error)}.") from error

    def _example(self, more: More, pictures: np.ndarray) -> np.ndarray:
        """A value for a further input: a number, another picture, or a vector of length one."""
        import numpy as np

        if more.is_picture:
            size = more.own_size(self.layout)
            other = pictures if size is None else self._laid_out(natural(*size, self.channels))
            return other.astype(more.dtype)
        shape = [size or (len(pictures) if axis == 0 else 1) for axis, size in enumerate(more.shape)]
        if more.is_number:
            return np.full(shape, NUMBER if more.dtype in FLOATS else 1, more.dtype)
        return np.full(shape, shape[-1] ** -0.5, more.dtype)

    def _laid_out(self, pictures: np.ndarray) -> np.ndarray:
        return pictures if self.layout == NHWC else pictures.transpose(0, 3, 1, 2)

    def dims(self, count: int | str, height: int | str, width: int | str) -> dict[str, Sequence[int | str]]:
        """Dimensions of the picture."""
        sides = (self.channels, height, width) if self.layout == NCHW else (height, width, self.channels)
        return {self.picture: (count, *sides)}

    def _session(self, dims: Mapping[str, Sequence[int | str]]) -> Any:
        import onnxruntime

        key = tuple(dims[self.picture])
        if key not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = SILENT
            options.intra_op_num_threads = THREADS
            content = with_dims(self.model, dims, self.outputs).SerializeToString()
            try:
                self._sessions[key] = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
            except Exception as error:
                raise InputError(f"ONNX Runtime does not open the network: {_reason(error)}.") from error
        return self._sessions[key]


def natural(height: int, width: int, channels: int) -> np.ndarray:
    """The pack's picture of a lake, float32 [1, height, width, channels] from 0 to 1; a fourth channel is opaque."""
    import numpy as np
    from PIL import Image

    with Image.open(PICTURE) as opened:
        picture = opened.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    values = np.asarray(picture, np.float32)[None] / 255
    if channels == 1:
        return values.mean(-1, keepdims=True)
    return values if channels == 3 else np.concatenate([values, np.ones_like(values[..., :1])], -1)


def scaled(pictures: np.ndarray, kind: str) -> np.ndarray:
    """Pictures from 0 to 1 in another range."""
    import numpy as np

    mean, deviation = (np.asarray(values, np.float32) for values in SCALING[kind])
    colours = pictures[..., :3]
    if pictures.shape[-1] == 1:
        mean, deviation = mean.mean(keepdims=True), deviation.mean(keepdims=True)
    return np.concatenate([(colours - mean) / deviation, pictures[..., 3:]], -1)


def _reason(error: Exception) -> str:
    """The library's own words, without its name and the error's number."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", " ".join(str(error).split()))[:200].rstrip(".")
