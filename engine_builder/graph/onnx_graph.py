"""A network that is an ONNX graph already, with the sizes of an engine's specification."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import EngineError
from ...common.spec import EngineSpec, TensorSpec, split_dim

if TYPE_CHECKING:
    from onnx import ModelProto


def write_graph(model: ModelProto, spec: EngineSpec, path: Path) -> Path:
    """Writes the graph with the specification's sizes, names where the profile has several; the model is changed.

    Raises EngineError where the engine is to hold no weights, which such a graph has inside.
    """
    import onnx

    if not spec.holds_weights:
        raise EngineError("An engine made of an ONNX file holds its weights, found one that is to hold none.")
    tensors = {tensor.name: tensor for tensor in (*spec.network.inputs, *spec.network.outputs)}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in tensors:
            _set_dims(value.type.tensor_type.shape, tensors[value.name], spec)
    onnx.save_model(model, str(path))
    return path


def _set_dims(shape: Any, tensor: TensorSpec, spec: EngineSpec) -> None:
    del shape.dim[:]
    for size in tensor.dims:
        dim = shape.dim.add()
        limits = spec.profile.ranges.get(split_dim(size)[0]) if isinstance(size, str) else None
        if isinstance(size, int):
            dim.dim_value = size
        elif limits is not None and limits.min == limits.max:
            dim.dim_value = limits.min * split_dim(size)[1]
        else:
            dim.dim_param = size
