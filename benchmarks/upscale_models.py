"""Upscale models with random weights at their published sizes: speed does not depend on the weights."""

from __future__ import annotations

import torch

Tensors = dict[str, torch.Tensor]


def compact(layers: int = 16, width: int = 64, scale: int = 4) -> Tensors:
    """Real-ESRGAN's compact network (SRVGGNetCompact), by default as realesr-animevideov3."""
    generator = torch.Generator().manual_seed(0)
    sizes = [3, *[width] * (layers + 1)]
    tensors: Tensors = {}
    for number, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
        tensors |= _convolution(f"body.{2 * number}", inputs, outputs, generator)
        tensors[f"body.{2 * number + 1}.weight"] = torch.full((outputs,), 0.25)
    return tensors | _convolution(f"body.{2 * len(sizes) - 2}", width, 3 * scale**2, generator, 0.1)


def esrgan(blocks: int = 23, width: int = 64, grow: int = 32) -> Tensors:
    """ESRGAN's network (RRDBNet) for four times the size, by default as RealESRGAN_x4plus."""
    generator = torch.Generator().manual_seed(0)
    tensors = _convolution("conv_first", 3, width, generator)
    for block in range(blocks):
        for dense in (1, 2, 3):
            for number in range(1, 6):
                outputs = width if number == 5 else grow
                name = f"body.{block}.rdb{dense}.conv{number}"
                tensors |= _convolution(name, width + (number - 1) * grow, outputs, generator, 0.3)
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
        tensors |= _convolution(name, width, width, generator)
    return tensors | _convolution("conv_last", width, 3, generator, 0.1)


MODELS = {"compact": compact, "esrgan": esrgan}


def _convolution(name: str, inputs: int, outputs: int, generator: torch.Generator, gain: float = 1.0) -> Tensors:
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * gain / (9 * inputs) ** 0.5
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(outputs)}
