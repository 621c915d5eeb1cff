"""INT8 and FP8: scales for matrix products and convolutions, taken from inputs that real clips gave.

NVIDIA's ModelOpt writes them into the exported graph as pairs of QuantizeLinear and DequantizeLinear, which a
strongly typed TensorRT reads; the rest of the graph becomes fp16.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import BackendUnavailableError, EngineError, InputError
from ...common.spec import EngineSpec
from .recorded_calls import Calibration, Call

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

INSTALL = 'pip install "nvidia-modelopt[onnx]"'
LEAST_ARCH = {"int8": 75, "fp8": 89}
"""The first GPU architecture, as in `sm_89`, with products of that precision."""
OPERATORS = ("Conv", "Gemm", "MatMul")
REARRANGED = ("Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze")
"""Operators that an exporter puts between a weight and the product that uses it."""


def check_arch(precision: str, arch: str) -> None:
    """Raises EngineError for a GPU without products of that precision."""
    least = LEAST_ARCH[precision]
    if int(arch.removeprefix("sm_")) < least:
        raise EngineError(f"{precision} needs a GPU of sm_{least} or newer, found {arch}: choose fp16.")


def check_quantizable(precision: str, arch: str) -> None:
    """Raises EngineError for a GPU without such products, BackendUnavailableError with the command to install."""
    check_arch(precision, arch)
    try:
        import modelopt.onnx.quantization  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise BackendUnavailableError(
            f"{precision} needs NVIDIA's ModelOpt, in which {error.name} is missing. To install it: {INSTALL}"
        ) from error


def quantize(graph: Path, spec: EngineSpec, calibration: Calibration, opset: int) -> Path:
    """The fp32 graph with scales, beside it; its inputs and outputs stay fp32.

    Raises EngineError when ModelOpt cannot do it or finds nothing to quantize, InputError for a calibration of
    another network or of other sizes.
    """
    import onnx
    from modelopt.onnx.quantization import quantize as write_scales  # type: ignore[import-not-found]

    calls = calibration.calls()
    for call in calls:
        violations = spec.profile.violations(spec.network.sizes_of(call.inputs))
        if violations:
            raise InputError(f"The calibration does not fit {spec.network.component}: {'; '.join(violations)}.")
    path = graph.with_name("quantized.onnx")
    try:
        write_scales(
            str(graph),
            spec.precision,
            calibration_data_reader=_reader(calls, graph),
            calibration_method="max",
            calibration_eps=["cpu"],
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in left_out(graph)],
            high_precision_dtype="fp16",
            use_external_data_format=True,
            output_path=str(path),
            opset=opset,
            log_level="ERROR",
        )
    except Exception as error:  # ModelOpt raises any error of its passes
        log.warning("quantizing failed", exc_info=True)
        raise EngineError(f"ModelOpt cannot quantize {spec.network.component}: {error}") from error
    kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    if "QuantizeLinear" not in kinds:
        raise EngineError(f"ModelOpt found nothing to quantize in {spec.network.component}: choose fp16.")
    return path


def left_out(graph: Path) -> list[str]:
    """The names of nodes that stay fp16: their loss would be seen in the result, and they take little time.

    These are attention's own products, whose weights sum to one over many places, and the first and the last
    convolution. With the ends in int8 too, the bundled model's denoiser had a cosine of 0.9932, without 0.9994.
    """
    import onnx

    network = onnx.load(graph, load_external_data=False).graph
    weights = {tensor.name for tensor in network.initializer}
    makers = {name: node for node in network.node for name in node.output}

    def is_weight(name: str) -> bool:
        if name in weights:
            return True
        maker = makers.get(name)
        return maker is not None and maker.op_type in REARRANGED and is_weight(maker.input[0])

    products = [node.name for node in network.node if node.op_type == "MatMul" and not is_weight(node.input[1])]
    convolutions = [node.name for node in network.node if node.op_type == "Conv"]
    return [*products, *dict.fromkeys([*convolutions[:1], *convolutions[-1:]])]


def _reader(calls: Sequence[Call], graph: Path) -> Any:
    """The calls' inputs as ONNX Runtime's calibrator asks for them, without those that the graph does not have."""
    import onnx
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    known = {value.name for value in onnx.load(graph, load_external_data=False).graph.input}
    arrays = [{name: x.numpy() for name, x in call.inputs.items() if name in known} for call in calls]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self._left = iter(arrays)

        def get_first(self) -> Any:
            return arrays[0]

        def get_next(self) -> Any:
            return next(self._left, None)

    return Reader()
