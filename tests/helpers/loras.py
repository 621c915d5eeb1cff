"""LoRA files as trainers write them, with the sums that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from i2v_tensorrt.pipeline.models.checkpoints.diffusers_folder import Part, tensor_shapes

RANK, ALPHA = 4, 2.0


@dataclass(frozen=True)
class Style:
    """How a trainer names the tensors of a module, and whether it writes alpha."""

    prefix: str
    down: str
    up: str
    alpha: bool = False
    underscores: bool = False

    def named(self, module: str) -> str:
        return self.prefix + (module.replace(".", "_") if self.underscores else module)


DIFFUSERS = Style("transformer.", ".lora_A.weight", ".lora_B.weight")
UNET = Style("unet.", ".lora.down.weight", ".lora.up.weight")
PEFT = Style("base_model.model.", ".lora_A.default.weight", ".lora_B.default.weight")
PLAIN = Style("", ".lora_A.weight", ".lora_B.weight")
PUBLISHED = Style("diffusion_model.", ".lora_down.weight", ".lora_up.weight", alpha=True)
KOHYA = Style("lora_unet_", ".lora_down.weight", ".lora_up.weight", alpha=True, underscores=True)


def layers(part: Part) -> dict[str, tuple[int, ...]]:
    """The weights of linear and convolutional layers of a part, by their modules."""
    shapes = tensor_shapes(next(iter(part.weights.values())))
    found = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    return {name: shape for name, shape in found.items() if len(shape) > 1}


def write_lora(
    path: Path,
    modules: Mapping[str, tuple[int, ...]],
    style: Style,
    called: Callable[[str], str] = str,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Writes a LoRA of random numbers for some weights, and returns what it adds to each at strength 1, in float64."""
    generator, tensors, sums = torch.Generator().manual_seed(seed), {}, {}
    for module, (out, *rest) in modules.items():
        down = (torch.randn(RANK, *rest, generator=generator) / RANK).to(dtype)
        up = (torch.randn(out, RANK, *[1] * (len(rest) - 1), generator=generator) / RANK).to(dtype)
        name = style.named(called(module))
        tensors |= {name + style.down: down, name + style.up: up}
        tensors |= {name + ".alpha": torch.tensor(ALPHA, dtype=dtype)} if style.alpha else {}
        scale = ALPHA / RANK if style.alpha else 1.0
        sums[module] = (up.double().flatten(1) @ down.double().flatten(1)).reshape(out, *rest) * scale
    save_file(tensors, path)
    return sums


def weights(network: torch.nn.Module, modules: Iterable[str]) -> dict[str, torch.Tensor]:
    """The weights of some modules in float64."""
    return {name: network.get_submodule(name).get_parameter("weight").detach().double() for name in modules}
