"""From a network to ONNX, with the names and the dynamic dimensions of its specification."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import EngineError
from ...common.shapes import DimRange, ShapeProfile
from ...common.spec import EngineSpec, Guidance, TensorSpec, split_dim
from .attention_operator import attention
from .hollow import weight_names, without_memory
from .onnx_graph import write_graph
from .outside_weights import OutsideWeights, write_table
from .weight_inputs import declare_weights, fold, linear, take_out

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

log = logging.getLogger(__name__)

FILE_NAME = "network.onnx"
OPSET = 20
"""The newest opset whose graph ONNX Runtime's CPU and CUDA providers run without falling back."""


def exporter_version(opset: int = OPSET, *, fused_attention: bool = False) -> str:
    """What an exported graph depends on beside the network: PyTorch, onnxscript, the opset, the form of attention."""
    import onnxscript
    import torch

    found = f"torch {torch.__version__}, onnxscript {onnxscript.__version__}, opset {opset}"
    return f"{found}, fused attention" if fused_attention else found


def export_onnx(
    network: torch.nn.Module, spec: EngineSpec, folder: Path, opset: int = OPSET, *, fused_attention: bool = False
) -> Path:
    """Writes `network.onnx` (weights beside it when they are large) into `folder` and returns its path.

    The graph's inputs and outputs bear the names of the specification; a dimension is dynamic where the
    profile gives it more than one size. Where the engine holds no weights they are inputs too, with a table of them
    beside the graph, and the network may be one whose parameters have no memory (on the device `meta`).
    With `fused_attention` it is ONNX Runtime's own operator. A network that is an ONNX graph already gives it by
    `onnx_model`. Raises EngineError when the network cannot be
    exported.
    """
    import torch

    path = folder / FILE_NAME
    ready: Callable[[], ModelProto] | None = getattr(network, "onnx_model", None)
    if ready is not None:
        return write_graph(ready(), spec, path)
    try:
        with torch.inference_mode(False), torch.no_grad(), _quiet():
            operators = {torch.ops.aten.scaled_dot_product_attention.default: attention} if fused_attention else {}
            if spec.holds_weights:
                program = _program(network, spec, opset, custom_translation_table=operators)
                fold(program.model)
            else:
                program, table = _without_weights(network, spec, opset, operators)
                write_table(table, folder)
            program.save(str(path), external_data=True)
    except (OSError, EngineError):
        raise
    except Exception as error:  # the exporter raises any error of its passes
        log.debug("export failed", exc_info=True)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineError(f"The {spec.network.component} network cannot be exported to ONNX: {reason}") from error
    return path


def _program(network: torch.nn.Module, spec: EngineSpec, opset: int, **options: Any) -> torch.onnx.ONNXProgram:
    """The exporter's program, traced at a small size; raises any error of the exporter's passes."""
    import torch

    program = torch.onnx.export(
        network,
        (),
        kwargs=options.pop("inputs", None) or example_inputs(spec, trace_sizes(spec.profile)),
        dynamo=True,
        opset_version=opset,
        input_names=[tensor.name for tensor in spec.network.inputs],
        output_names=[tensor.name for tensor in spec.network.outputs],
        dynamic_shapes=dynamic_shapes(spec.network.inputs, spec.profile),
        verbose=False,
        optimize=False,  # see `fold`
        **options,
    )
    if program is None:
        raise EngineError("PyTorch's ONNX exporter returned nothing.")
    return program


def _without_weights(
    network: torch.nn.Module, spec: EngineSpec, opset: int, operators: Mapping[Any, Callable[..., Any]]
) -> tuple[torch.onnx.ONNXProgram, OutsideWeights]:
    """The program with the network's weights as inputs, and the table of them."""
    import torch

    names = weight_names(network)
    with without_memory(network) as mode:
        with mode:
            inputs = empty_tensors(spec.network.inputs, trace_sizes(spec.profile), spec.precision)
        table = {**operators, torch.ops.aten.linear.default: linear}
        program = _program(network, spec, opset, inputs=inputs, custom_translation_table=table)
    declare_weights(program.model.graph, names)
    fold(program.model)
    return program, take_out(program.model.graph, names)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the exporter's messages on its own passes: hundreds of lines that help no user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def trace_sizes(profile: ShapeProfile) -> dict[str, int]:
    """Sizes to trace at: small, and never 1 where a dimension is dynamic, since 1 is burnt into a trace."""
    return {name: _trace_size(limits) for name, limits in profile.ranges.items()}


def _trace_size(limits: DimRange) -> int:
    if limits.min == limits.max:
        return limits.min
    step = limits.multiple
    smallest = -(-max(limits.min, 2) // step) * step
    return min(smallest + step, limits.max // step * step)


def example_inputs(
    spec: EngineSpec, sizes: dict[str, int], seed: int = 0, part: tuple[float, float] = (0.0, 1.0)
) -> dict[str, torch.Tensor]:
    """Random inputs of the specification's dtypes at the given sizes, on the CPU, the same for one seed.

    `part` is the fraction of its span from which a timestep is drawn, see `TensorSpec.is_timestep`.
    Rewritten networks may compute shared inputs once per batch, so these get one value for all branches, as in use.
    Plain networks get different values per branch, so that swapped branches fail the check.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = [_within(part, tensor) if tensor.is_timestep else tensor for tensor in spec.network.inputs]
    return {tensor.name: _draw(tensor, spec, sizes, generator) for tensor in tensors}


def empty_tensors(
    tensors: Iterable[TensorSpec], sizes: Mapping[str, int], precision: str, device: torch.device | None = None
) -> dict[str, torch.Tensor]:
    """Tensors of these specifications with any values, on PyTorch's default device or that one.

    PyTorch's fake tensor mode gives them no memory.
    """
    import torch

    return {
        tensor.name: torch.empty(
            tensor.shape_at(sizes), dtype=getattr(torch, tensor.dtype_at(precision)), device=device
        )
        for tensor in tensors
    }


def _within(part: tuple[float, float], tensor: TensorSpec) -> TensorSpec:
    low, high = tensor.span or (0.0, 1.0)
    return replace(tensor, span=(low + part[0] * (high - low), low + part[1] * (high - low)))


def _draw(tensor: TensorSpec, spec: EngineSpec, sizes: dict[str, int], generator: torch.Generator) -> torch.Tensor:
    import torch

    shape, dtype = tensor.shape_at(sizes), getattr(torch, tensor.dtype_at(spec.precision))
    shared = spec.rewrites and tensor.guidance is Guidance.SHARED and tensor.dims[:1] == ("batch",)
    drawn = (1, *shape[1:]) if shared else shape
    if tensor.scene is not None:
        values = scene(drawn, tensor.scene, generator.initial_seed())
    elif tensor.span is None:
        values = torch.randn(drawn, generator=generator)
    else:
        low, high = tensor.span
        values = low + (high - low) * torch.rand(drawn, generator=generator)
    return values.to(dtype).expand(shape).contiguous()


SCENE_CELLS = (32, 8)
"""Pixels between the lattice points of a scene's octaves."""
SCENE_MARGIN = 16
"""Pixels by which a scene may be shifted."""


def scene(shape: tuple[int, ...], shift: tuple[int, int], seed: int) -> torch.Tensor:
    """Smooth pictures [..., height, width] from 0 to 1, seen `shift` pixels (x, y) further on; one scene for a seed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    (*many, height, width), (x, y) = shape, shift
    wide, high = width + 2 * SCENE_MARGIN, height + 2 * SCENE_MARGIN
    values = torch.zeros(1, math.prod(many), high, wide)
    for cell in SCENE_CELLS:
        lattice = torch.randn(1, math.prod(many), high // cell + 2, wide // cell + 2, generator=generator)
        values += torch.nn.functional.interpolate(lattice, (high, wide), mode="bicubic") * cell / SCENE_CELLS[0]
    seen = values[..., SCENE_MARGIN + y :, SCENE_MARGIN + x :][..., :height, :width]
    return torch.sigmoid(2 * seen).reshape(shape)


def dynamic_shapes(inputs: tuple[TensorSpec, ...], profile: ShapeProfile) -> dict[str, dict[int, Any]]:
    """torch.export's dynamic shapes: one symbol a named dimension, shared by all tensors that have it."""
    symbols = {name: _symbol(name, limits) for name, limits in profile.ranges.items() if limits.min < limits.max}
    return {tensor.name: _dynamic_axes(tensor, symbols) for tensor in inputs}


def _dynamic_axes(tensor: TensorSpec, symbols: dict[str, Any]) -> dict[int, Any]:
    named = [(axis, *split_dim(dim)) for axis, dim in enumerate(tensor.dims) if isinstance(dim, str)]
    return {
        axis: symbols[name] if factor == 1 else factor * symbols[name]
        for axis, name, factor in named
        if name in symbols
    }


def _symbol(name: str, limits: DimRange) -> Any:
    """A symbol for the dimension; one that comes in multiples is the product of a smaller symbol."""
    import torch

    if limits.multiple == 1:
        return torch.export.Dim(name, min=limits.min, max=limits.max)
    step = limits.multiple
    return step * torch.export.Dim(f"{name}_by_{step}", min=-(-limits.min // step), max=limits.max // step)
