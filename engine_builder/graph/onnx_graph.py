"""A network that is an ONNX graph already, with the sizes of an engine's specification."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...common.errors import EngineError
from ...common.spec import EngineSpec, split_dim

if TYPE_CHECKING:
    from onnx import ModelProto


def write_graph(model: ModelProto, spec: EngineSpec, path: Path) -> Path:
    """Writes the graph, whose sizes have the specification's names, with those that the profile fixes; it is changed.

    Raises EngineError where the engine is to hold no weights, which such a graph has inside.
    """
    import onnx

    if not spec.holds_weights:
        raise EngineError("An engine made of an ONNX file holds its weights, found one that is to hold none.")
    fixed = {name: limits.min for name, limits in spec.profile.ranges.items() if limits.min == limits.max}
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            name, factor = split_dim(dim.dim_param)
            if name in fixed:
                dim.dim_value = fixed[name] * factor
    onnx.save_model(model, str(path))
    return path
