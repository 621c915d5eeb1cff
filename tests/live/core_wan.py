"""Writes an expert of Wan 2.2 A14B at its published size, with random weights in fp8 with scales, for ComfyUI.

Run by ComfyUI's Python as a script: the folder of ComfyUI, the file.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch

A14B: dict[str, Any] = {
    "model_type": "t2v",
    "in_dim": 36,
    "out_dim": 16,
    "dim": 5120,
    "ffn_dim": 13824,
    "num_heads": 40,
    "num_layers": 40,
}
FP8 = torch.float8_e4m3fn


def main(comfyui: str, file: str) -> None:
    sys.path.append(comfyui)
    import comfy.cli_args  # pyright: ignore[reportMissingImports]

    comfy.cli_args.args.cpu = True
    import comfy.ops  # pyright: ignore[reportMissingImports]
    from comfy.ldm.wan.model import WanModel  # pyright: ignore[reportMissingImports]
    from safetensors.torch import save_file

    network = WanModel(**A14B, device="meta", dtype=torch.float16, operations=comfy.ops.disable_weight_init)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(0)
    found = {"scaled_fp8": torch.zeros(1, dtype=FP8)}
    for name, like in network.state_dict().items():
        found |= _stored(name, _drawn(name, like.shape, generator))
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    save_file(found, file)


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Random weights of a size that keeps what goes through them."""
    values = torch.randn(shape, generator=generator, device=generator.device)
    if len(shape) > 1:
        return values / math.sqrt(math.prod(shape[1:]))
    return 0.02 * values if name.endswith("bias") else 1 + 0.1 * values


def _stored(name: str, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor as such files hold it: the blocks' products in e4m3 with a scale, the rest in fp16."""
    if not (name.startswith("blocks.") and name.endswith(".weight") and values.ndim == 2):
        return {name: values.half().cpu()}
    scale = values.abs().max() / torch.finfo(FP8).max
    return {name: (values / scale).to(FP8).cpu(), name.replace(".weight", ".scale_weight"): scale.float().cpu()}


if __name__ == "__main__":
    main(*sys.argv[1:])
