"""A linear layer that multiplies in fp8, as ComfyUI's mixed-precision layers do on GPUs that can."""

from __future__ import annotations

import torch

FP8 = torch.float8_e4m3fn


class Fp8Linear(torch.nn.Module):
    """Linear layer over a weight in e4m3 with one scale, whose input is rounded to e4m3 too.

    `weight` is [out, in]; `weight_scale`, and `input_scale` where the layer has one, are fp32 without axes.
    Source: `MixedPrecisionOps.Linear` of ComfyUI 0.33 and `TensorCoreFP8Layout` of comfy-kitchen 0.2.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, input_scale: bool, dtype: torch.dtype
    ) -> None:
        """`dtype` is that of the bias; the parameters have no memory."""
        super().__init__()
        self.weight = _parameter((out_features, in_features), FP8)
        self.weight_scale = _parameter((), torch.float32)
        self.input_scale = _parameter((), torch.float32) if input_scale else None
        self.bias = _parameter((out_features,), dtype) if bias else None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out], both in the input's dtype."""
        rows = input.reshape(-1, input.shape[-1])
        scale = torch.ones_like(self.weight_scale) if self.input_scale is None else self.input_scale
        limit = torch.finfo(FP8).max
        rounded = (rows * (1.0 / scale).to(rows.dtype)).clamp(-limit, limit).to(FP8)
        found = torch._scaled_mm(
            rounded, self.weight.t(), scale, self.weight_scale, bias=self.bias, out_dtype=input.dtype
        )
        return found.reshape(*input.shape[:-1], found.shape[-1])


def _parameter(shape: tuple[int, ...], dtype: torch.dtype) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
