"""An exported graph's weights made its inputs, and what it computes from weights alone taken out of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...common.errors import EngineError
from .outside_weights import Constant, OutsideWeights, Step, Weight
from .weight_operators import OPERATORS

if TYPE_CHECKING:
    import onnx_ir

MAX_CONSTANT = 1 << 20
"""Elements of the largest constant that is kept for work on weights."""


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """PyTorch's linear layer in ONNX, for the exporter: a Gemm, which takes the weight [out, in] as it lies.

    The exporter's own translation transposes the weight, for inputs of more than two dimensions, before a MatMul.
    """
    from onnxscript import opset20

    op: Any = opset20
    terms = (weight,) if bias is None else (weight, bias)
    if len(x.shape) == 2:
        return op.Gemm(x, *terms, transB=1)
    features_out, features_in = weight.shape
    flat = op.Gemm(op.Reshape(x, op.Constant(value_ints=[-1, features_in])), *terms, transB=1)
    shape = op.Concat(op.Shape(x, end=-1), op.Constant(value_ints=[features_out]), axis=0)
    return op.Reshape(flat, shape)


def declare_weights(graph: onnx_ir.Graph, names: Iterable[str]) -> None:
    """Makes inputs of the initializers of these names; called before a graph is optimized, which would fold them."""
    for name in names:
        value = graph.initializers.pop(name, None)
        if value is not None:
            value.const_value = None
            graph.inputs.append(value)


def fold(model: onnx_ir.Model) -> None:
    """Computes what depends on constants alone, in place, and removes what is not used or is there twice.

    The exporter's own optimizer also rewrites graphs, by rules that look at every node for every node: a minute for a
    UNet. The libraries that read this graph have rules of their own.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    fold_constants(model, onnx_shape_inference=True)
    _drop_zero_biases(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.NameFixPass()(model)


def _drop_zero_biases(graph: onnx_ir.Graph) -> None:
    """Drops the bias that the exporter gives a convolution without one: zeros, and at times of a wrong shape."""
    from onnx_ir.convenience import get_const_tensor

    for node in graph:
        if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 2:
            bias = None if node.inputs[2] is None else get_const_tensor(node.inputs[2])
            if bias is not None and not bias.numpy().any():
                node.resize_inputs(2)


def take_out(graph: onnx_ir.Graph, weights: Iterable[str]) -> OutsideWeights:
    """Takes every node that depends on weights alone out of an optimized graph, and the weights that none uses.

    Raises EngineError for a node whose operator is not known here, or that the graph cannot do without.
    """
    names = set(weights)
    sources = [value for value in graph.inputs if value.name in names]
    for value in (value for value in sources if value.is_graph_output()):
        raise EngineError(f"The graph gives the weight {value.name} as it is.")
    nodes = _weights_alone(graph, set(sources))
    table = _Table()
    steps = tuple(table.step(node) for node in nodes)
    removed = set(nodes)
    for node in nodes:
        for value in node.outputs:
            _as_input(graph, value, removed)
    graph.remove(nodes, safe=True)
    for name in table.constants:
        if name in graph.initializers and not graph.initializers[name].uses():
            del graph.initializers[name]
    results = {step.result for step in steps}
    needed = {name for step in steps for name in step.operands}
    found = {str(value.name): Weight(_sizes(value), _dtype(value)) for value in sources if _is_needed(value, needed)}
    for value in sources:
        if not value.uses():
            graph.inputs.remove(value)
    inputs = tuple(str(value.name) for value in graph.inputs if value.name in found or value.name in results)
    return OutsideWeights(found, inputs, steps, table.constants)


def _is_needed(value: onnx_ir.Value, operands: set[str]) -> bool:
    return bool(value.uses()) or value.name in operands


def _weights_alone(graph: onnx_ir.Graph, sources: set[onnx_ir.Value]) -> list[onnx_ir.Node]:
    """Nodes that compute from weights and constants, and from no other input, in order."""
    found: list[onnx_ir.Node] = []
    known = set(sources)
    for node in graph:
        given = [value for value in node.inputs if value is not None]
        if any(value in known for value in given) and all(value in known or _is_constant(value) for value in given):
            found.append(node)
            known.update(node.outputs)
    return found


def _is_constant(value: onnx_ir.Value) -> bool:
    from onnx_ir.convenience import get_const_tensor

    return get_const_tensor(value) is not None


def _as_input(graph: onnx_ir.Graph, value: onnx_ir.Value, removed: set[onnx_ir.Node]) -> None:
    """Has the nodes that stay read an input in the place of a removed node's result."""
    import onnx_ir
    from onnx_ir.convenience import replace_all_uses_with

    if value.is_graph_output():
        raise EngineError(f"The graph's output {value.name} depends on nothing but weights.")
    if not any(use.node not in removed for use in value.uses()):
        return
    _dtype(value)  # an input without one is refused by every reader
    made = onnx_ir.Value(name=value.name, shape=value.shape, type=value.type)
    replace_all_uses_with(value, made)
    graph.inputs.append(made)


class _Table:
    """Writes nodes down as steps, and gathers the constants that they need."""

    def __init__(self) -> None:
        self.constants: dict[str, Constant] = {}

    def step(self, node: onnx_ir.Node) -> Step:
        """The node as a step; raises EngineError where it is none."""
        if node.op_type not in OPERATORS or node.domain or len(node.outputs) != 1:
            known = ", ".join(OPERATORS)
            raise EngineError(f"Expected {known} on weights alone, found {node.op_type}: choose weights inside.")
        operands = [value for value in node.inputs if value is not None]
        for value in operands:
            self._keep(value)
        attributes = {name: _plain(name, each.value) for name, each in node.attributes.items()}
        return Step(node.op_type, tuple(str(x.name) for x in operands), attributes, str(node.outputs[0].name))

    def _keep(self, value: onnx_ir.Value) -> None:
        from onnx_ir.convenience import get_const_tensor

        tensor = get_const_tensor(value)
        if tensor is None:
            return
        values = tensor.numpy()
        if values.size > MAX_CONSTANT:
            raise EngineError(f"A constant of {list(values.shape)} works on weights: choose weights inside.")
        self.constants[str(value.name)] = Constant(
            tuple(values.flatten().tolist()), tuple(values.shape), _torch_name(tensor.dtype)
        )


def _plain(name: str, value: Any) -> Any:
    """An attribute as JSON holds it; a dtype by its name."""
    import onnx_ir

    if name == "to":
        return _torch_name(onnx_ir.DataType(value))
    return list(value) if isinstance(value, tuple | list) else value


def _sizes(value: onnx_ir.Value) -> tuple[int, ...]:
    return tuple(int(size) for size in value.shape or ())  # pyright: ignore[reportArgumentType]  # a weight's are known


def _dtype(value: onnx_ir.Value) -> str:
    if value.dtype is None:
        raise EngineError(f"The exported graph does not tell the dtype of {value.name}.")
    return _torch_name(value.dtype)


def _torch_name(dtype: onnx_ir.DataType) -> str:
    names = {"FLOAT": "float32", "DOUBLE": "float64"}
    return names.get(dtype.name, dtype.name.lower())
