"""Attention as ONNX Runtime's own operator: the same results, and only where it can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from i2v_tensorrt.engine_builder.graph.attention_operator import attention

HEADS, WIDTH, TRACED, RUN = 4, 8, 6, 33
MASKS: dict[str, dict[str, Any]] = {
    "added": {"attn_mask": torch.linspace(-3, 3, RUN).expand(RUN, RUN)},
    "chosen": {"attn_mask": torch.ones(RUN, RUN, dtype=torch.bool).tril()},
    "causal": {"is_causal": True},
}


class Attention(torch.nn.Module):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, **self.options)


def exported(folder: Path, options: dict[str, Any], *, width: int = WIDTH, fixed: int = 0) -> Path:
    def tensor(channels: int) -> Tensor:
        return torch.rand(2, HEADS, fixed or TRACED, channels)

    program = torch.onnx.export(
        Attention(options).eval(),
        (tensor(WIDTH), tensor(WIDTH), tensor(width)),
        dynamo=True,
        opset_version=20,
        verbose=False,
        dynamic_shapes=None if fixed else [{2: torch.export.Dim("count")}] * 3,
        custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: attention},
    )
    assert program is not None
    program.save(str(folder / "network.onnx"))
    return folder / "network.onnx"


def differs_by(path: Path, options: dict[str, Any], *, width: int = WIDTH) -> float:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = [(2, HEADS, RUN, channels) for channels in (WIDTH, WIDTH, width)]
    given = [torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n, shape in enumerate(shapes)]
    named = {each.name: tensor.numpy() for each, tensor in zip(session.get_inputs(), given, strict=True)}
    return float(np.abs(session.run(None, named)[0] - Attention(options)(*given).numpy()).max())


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("width", [WIDTH, 2 * WIDTH])
def test_it_is_one_operator_for_any_number_of_tokens(tmp_path: Path, scale: float | None, width: int) -> None:
    path = exported(tmp_path, {"scale": scale}, width=width)
    assert operators(path).count("MultiHeadAttention") == 1 and "Softmax" not in operators(path)
    assert differs_by(path, {"scale": scale}, width=width) < 1e-6
    assert differs_by(path, {"scale": 0.5}, width=width) > 1e-3, "another scale is another result"


@pytest.mark.parametrize("kind", MASKS)
def test_with_a_mask_it_is_written_out(tmp_path: Path, kind: str) -> None:
    path = exported(tmp_path, MASKS[kind], fixed=RUN)
    assert "MultiHeadAttention" not in operators(path)
    assert differs_by(path, MASKS[kind]) < 1e-6 and differs_by(path, {}) > 1e-3
