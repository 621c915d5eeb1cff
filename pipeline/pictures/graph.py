"""ONNX files from strangers: read as data, within bounds, and never anything beside the file itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import InputError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Domains whose operators ONNX Runtime itself brings."""
MOST_BYTES = (1 << 31) - 1
"""Size of a file: more than this no ONNX file holds without others beside it."""
MOST_NODES = 100_000
MOST_TENSOR_BYTES = 8 << 30
"""Size of one tensor within a call."""
SMALL_BYTES = 1 << 16
"""Constants up to here may say a shape; larger ones are weights, of which bounds need no values."""


def read_model(path: Path) -> ModelProto:
    """The model in a file, checked; raises InputError for what is no ONNX file, or wants more than its own bytes."""
    import onnx

    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise InputError(f"Expected an ONNX file of at most 2 GiB, found {size / (1 << 30):.1f} in {path.name}.")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"The ONNX file {path.name} cannot be read: {error.strerror or error}.") from error
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own errors share no base with onnx's
        raise InputError(f"Expected an ONNX file, found other content in {path.name}.") from error
    _check(model, len(content), path.name)
    return model


def _check(model: ModelProto, size: int, name: str) -> None:
    import onnx

    graphs = list(_graphs(model))
    nodes = sum(len(graph.node) for graph in graphs)
    if not model.graph.node or nodes > MOST_NODES:
        raise InputError(f"Expected a graph of 1 to {MOST_NODES} operators, found {nodes} in {name}.")
    own = {(function.domain, function.name) for function in model.functions}
    for node in (node for graph in graphs for node in graph.node):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            raise InputError(
                f"Expected ONNX's own operators, found {node.op_type[:40]} of {node.domain[:40]} in {name}."
            )
    for tensor in _tensors(model, graphs):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise InputError(f"Expected an ONNX file with its weights inside, found {name}, which names other files.")
        if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > 8 * size + 64:
            raise InputError(f"Expected constants that lie in the file, found one of {list(tensor.dims)} in {name}.")
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # its own error, and protobuf's
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"Expected a sound ONNX graph, found {name}: {reason.rstrip('.')}.") from error


def _graphs(model: ModelProto) -> Iterator[Any]:
    """Every graph and function, those within operators too."""
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            waiting += [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs


def _tensors(model: ModelProto, graphs: Sequence[Any]) -> Iterator[TensorProto]:
    for graph in graphs:
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            for sparse in [attribute.sparse_tensor, *attribute.sparse_tensors]:
                yield from (sparse.values, sparse.indices)


def free_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """Inputs that a caller gives: older files list their weights among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def dims_of(value: ValueInfoProto) -> tuple[int | None, ...] | None:
    """Sizes of a tensor; None for one that any size may have, or for a tensor of any rank."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in kind.shape.dim)


def dtype_of(value: ValueInfoProto) -> str:
    """NumPy's name of a tensor's dtype; raises InputError for a value that is no tensor of numbers."""
    import onnx

    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"Expected tensors of numbers, found {value.name[:40]} of another kind.") from error


def with_dims(model: ModelProto, dims: Mapping[str, Sequence[int | str]], outputs: Sequence[str]) -> ModelProto:
    """A copy whose inputs have these sizes or names of sizes, with these outputs alone, and nothing said of the rest.

    Files often state sizes that their network does not need.
    """
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph: GraphProto = made.graph
    del graph.value_info[:]
    kept = [value for value in graph.output if value.name in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in (*graph.input, *graph.output):
        if value.name in dims:
            _set_dims(value, dims[value.name])
    return made


def _set_dims(value: ValueInfoProto, dims: Sequence[int | str]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for size in dims:
        dim = shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size


def largest_tensors(bare: ModelProto, dims: Mapping[str, Sequence[int | str]]) -> list[int]:
    """Bytes of the tensors within a call at these sizes, largest first, as far as the graph tells before it runs.

    `bare` is a model `without_weights`.
    """
    import onnx

    sized = with_dims(bare, dims, [value.name for value in bare.graph.output])
    try:
        graph = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    except Exception as error:  # its own error, and any of its operators' functions
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"Expected a graph whose sizes agree, found: {reason.rstrip('.')}.") from error
    found = []
    for value in (*graph.value_info, *graph.output):
        sizes = dims_of(value)
        if sizes is not None and None not in sizes:
            found.append(math.prod(size or 1 for size in sizes) * 4)
    return sorted(found, reverse=True)


def check_bounds(bare: ModelProto, dims: Mapping[str, Sequence[int | str]]) -> list[int]:
    """`largest_tensors`; raises InputError where one is larger than any picture's, before anything is allocated."""
    found = largest_tensors(bare, dims)
    if found and found[0] > MOST_TENSOR_BYTES:
        raise InputError(
            f"Expected tensors of at most {MOST_TENSOR_BYTES >> 30} GiB, found a graph that asks for "
            f"{found[0] / (1 << 30):.0f} GiB."
        )
    return found


def without_weights(model: ModelProto) -> ModelProto:
    """The model with its large constants as inputs, so that a look at its shapes copies none of them."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    given = {value.name for value in made.graph.input}
    small = []
    for tensor in made.graph.initializer:
        if tensor.ByteSize() <= SMALL_BYTES:
            small.append(tensor)
        elif tensor.name not in given:
            made.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in small]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made
