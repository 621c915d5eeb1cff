"""Weights in int8 and fp8 as a TensorRT plan's inputs, with constant scales: which layers take them, by real builds."""

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info
from onnx.numpy_helper import from_array

from i2v_tensorrt.engine_builder.backends.tensorrt.library import aim, load_library, make_logger

WIDTH = 64
KINDS = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


def layer(kind: str, quantized: str, per_channel: bool, rounds_input: bool) -> onnx.ModelProto:
    """A linear layer or a convolution in fp16 over such a weight; the layer's own input may be rounded too."""
    shape, sides = ([4, WIDTH], []) if kind == "linear" else ([1, WIDTH, 16, 16], [3, 3])
    values = [make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in ("x", "y")]
    weight = make_tensor_value_info("weight", KINDS[quantized], [WIDTH, WIDTH, *sides])
    scale = from_array(np.full(WIDTH if per_channel else (), 0.01, np.float16), "scale")
    axis: dict[str, Any] = {"axis": 0} if per_channel else {}
    nodes, constants, source = [make_node("DequantizeLinear", ["weight", "scale"], ["wide"], **axis)], [scale], "x"
    if rounds_input:
        constants += [from_array(np.array(0.02, np.float16), "step"), make_tensor("zero", KINDS[quantized], [], [0])]
        nodes.append(make_node("QuantizeLinear", ["x", "step", "zero"], ["rounded"]))
        nodes.append(make_node("DequantizeLinear", ["rounded", "step", "zero"], ["again"]))
        source = "again"
    nodes.append(
        make_node("Gemm", [source, "wide"], ["y"], transB=1)
        if kind == "linear"
        else make_node("Conv", [source, "wide"], ["y"], pads=[1, 1, 1, 1])
    )
    graph = make_graph(nodes, "layer", [values[0], weight], [values[1]], constants)
    return make_model(graph, opset_imports=[make_opsetid("", 22)], ir_version=10)


@pytest.mark.parametrize("arch", ["sm_89", "sm_120"])
@pytest.mark.parametrize(
    ("kind", "quantized", "per_channel", "rounds_input"),
    list(product(("linear", "convolution"), KINDS, (True, False), (True, False))),
)
def test_every_kind_of_layer_builds(
    kind: str, quantized: str, per_channel: bool, rounds_input: bool, arch: str
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    library = load_library(rtx.__name__)
    logger = make_logger(library)
    builder = rtx.Builder(logger)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, logger)
    assert parser.parse(layer(kind, quantized, per_channel, rounds_input).SerializeToString()), logger.last_error
    config = builder.create_builder_config()
    assert aim(library, config, arch)
    assert builder.build_serialized_network(network, config) is not None, logger.last_error
