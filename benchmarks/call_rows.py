"""Ways to call Wan 14B's denoiser: diffusers' own, `torch.compile`'s, and the pack's, also on smaller cards."""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..common.spec import EngineSpec
from ..engine_builder.backends.base import Runner
from ..engine_builder.backends.inductor.backend import InductorBackend
from ..engine_builder.graph.onnx_export import example_inputs
from ..engine_builder.store.manifest import Manifest
from ..engine_builder.store.store import Plan, describe_files
from ..pipeline.models.checkpoints.diffusers_folder import Checkpoint, Part
from ..pipeline.models.wan.model import Wan21
from ..pipeline.models.wan.networks import FP8_PRODUCTS, PRODUCTS
from ..runtime.clip_sizes import clip_sizes
from .ladder.measure import GIB, free_memory
from .measured_child import tell

PRECISION = "bf16"
CARDS_GIB = (8, 12, 16, 24)
CONTEXT_BYTES = 1 << 29
"""Of a card, what CUDA's context takes beside PyTorch's own memory."""
WIDTH, HEIGHT, NUM_FRAMES = 832, 480, 81
USUAL_SIZE = "480p"
SIZES = {(WIDTH, HEIGHT, NUM_FRAMES): USUAL_SIZE, (1280, 720, NUM_FRAMES): "720p"}
"""Published sizes, by their names among the figures."""
CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "in_channels": 36,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 13824,
        "num_layers": 40,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": 1280,
        "added_kv_proj_dim": 5120,
        "rope_max_seq_len": 1024,
    },
    "image_encoder": {"image_size": 224, "patch_size": 14, "hidden_size": 1280},
}
"""Wan 2.1 I2V 14B as published (Wan-AI/Wan2.1-I2V-14B-480P-Diffusers), as far as its denoiser depends on it."""


class RandomWan(Wan21):
    """Wan 2.1's denoiser at its published size, with weights drawn on a device."""

    def __init__(self, device: torch.device, layers: int) -> None:
        configs = {**CONFIGS, "transformer": {**CONFIGS["transformer"], "num_layers": layers}}
        nowhere = Path(tempfile.gettempdir()) / "no-checkpoint"
        parts = {name: Part(name, nowhere / name, config, {}) for name, config in configs.items()}
        super().__init__(Checkpoint(nowhere, parts))
        self._device = device

    def networks(self) -> Mapping[str, Any]:
        return {"core": self._denoiser("transformer")}

    def part(self, name: str, precision: str) -> Any:
        from diffusers import WanTransformer3DModel

        torch.manual_seed(0)
        with torch.device(self._device):
            torch.set_default_dtype(torch.bfloat16)
            try:
                network: Any = WanTransformer3DModel.from_config(dict(self.config(name)))
            finally:
                torch.set_default_dtype(torch.float32)
        for path, module in network.named_modules():
            if any(kept in path.split(".") for kept in WanTransformer3DModel._keep_in_fp32_modules or ()):
                module.float()
        for path, parameter in network.named_parameters():
            if path.endswith("scale_shift_table"):
                parameter.data = parameter.data.float()
        return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Setting:
    """Size of the measured call: the number of layers is the published one but in tests."""

    width: int = WIDTH
    height: int = HEIGHT
    num_frames: int = NUM_FRAMES
    layers: int = CONFIGS["transformer"]["num_layers"]

    def sizes(self, model: RandomWan) -> dict[str, int]:
        """Every named dimension of a call without guidance."""
        return clip_sizes(model, self.width, self.height, self.num_frames, guided=False)


class Row(ABC):
    """A way to call the denoiser, in a process of its own."""

    title: str

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.device = device
        self.model = RandomWan(device, setting.layers)
        self.spec = self.model.components["core"].spec
        self.sizes = setting.sizes(self.model)
        limits = self.spec.limits
        self.engine = EngineSpec(self.spec, limits.exact({n: self.sizes[n] for n in limits.ranges}), PRECISION)
        self.inputs = {name: x.to(device) for name, x in example_inputs(self.engine, self.sizes).items()}
        self.noted: dict[str, float] = {}
        """Figures of the preparation."""

    @abstractmethod
    def prepare(self) -> Callable[[], torch.Tensor]:
        """The call, compiled and run once."""


class Eager(Row):
    """diffusers' transformer by its own forward."""

    title = "diffusers, eager"

    def prepare(self) -> Callable[[], torch.Tensor]:
        network = self.compiled(self.model.part("transformer", PRECISION))
        given = self.inputs
        arguments = {
            "hidden_states": torch.cat([given["sample"], given["condition"]], dim=1),
            "timestep": given["timestep"],
            "encoder_hidden_states": given["text_states"],
            "encoder_hidden_states_image": given["image_states"],
        }

        def call() -> torch.Tensor:
            with torch.no_grad():
                return network(**arguments, return_dict=False)[0]

        call()
        return call

    def compiled(self, network: Any) -> Any:
        """The network as it is."""
        return network


class Compiled(Eager):
    """The same under torch.compile."""

    title = "torch.compile"

    def compiled(self, network: Any) -> Any:
        return torch.compile(network)


class Engine(Row):
    """The pack's engine."""

    title = "AOTInductor"

    def rewrites(self) -> tuple[str, ...]:
        """The rewrites of the engine: those that pay here."""
        return self.model.rewrites("core", InductorBackend.name)

    def prepare(self) -> Callable[[], torch.Tensor]:
        backend = InductorBackend(self.device)
        self.engine = replace(self.engine, rewrites=self.rewrites())
        network = self.model.load("core", PRECISION, self.engine.rewrites)
        folder, started = Path(tempfile.mkdtemp(prefix="i2v-call-")), time.monotonic()
        backend.build(network, self.engine, folder, lambda stage, _: tell(f"{self.title}: {stage}"))
        self.noted["build_s"] = time.monotonic() - started
        plan = Plan(folder, Manifest(self.engine, backend.target(self.device), describe_files(folder), None, 0.0, ""))
        runner: Runner = backend.load(plan, self.engine, lambda: network, self.device)
        self.place(runner, network)
        runner.load()

        def call() -> torch.Tensor:
            return runner(self.inputs)["prediction"]

        call()
        return call

    def place(self, runner: Runner, network: torch.nn.Module) -> None:
        """Puts the weights where the row has them before the engine is loaded."""


class Unfused(Engine):
    """The same engine without rewrites."""

    title = "AOTInductor, no rewrites"

    def rewrites(self) -> tuple[str, ...]:
        return ()


class ProductsApart(Engine):
    """The same engine without the products that do more than multiply."""

    title = "AOTInductor, without fused products"

    def rewrites(self) -> tuple[str, ...]:
        return tuple(name for name in super().rewrites() if name != PRODUCTS)


class Fp8(Engine):
    """The engine whose blocks multiply in fp8."""

    title = "AOTInductor, fp8"

    def rewrites(self) -> tuple[str, ...]:
        return (*super().rewrites(), *self.model.roundings("core", "fp8", InductorBackend.name))


class Fp8Products(Engine):
    """The engine whose linear layers alone multiply in fp8."""

    title = "AOTInductor, fp8 products"

    def rewrites(self) -> tuple[str, ...]:
        return (*super().rewrites(), FP8_PRODUCTS)


class Small(Engine):
    """The engine where PyTorch may take so much memory and no more: blocks without room come from host memory."""

    gib: int
    title = "AOTInductor on a smaller card"

    def place(self, runner: Runner, network: torch.nn.Module) -> None:
        network.to("cpu")
        free_memory(self.device)
        room_bytes = self.gib * GIB - CONTEXT_BYTES
        if self.device.type == "cuda":
            total_bytes = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(room_bytes / total_bytes, self.device)
        scratch_bytes = self.model.scratch_bytes("core", self.sizes, PRECISION, InductorBackend.name)
        runner.room_bytes = max(room_bytes - scratch_bytes, 0)


def small(gib: int) -> type[Small]:
    """The row for a card of that size."""
    return type(f"Small{gib}", (Small,), {"gib": gib, "title": f"AOTInductor in {gib} GiB"})


ROWS: dict[str, type[Row]] = {
    "eager": Eager,
    "compile": Compiled,
    "inductor": Engine,
    "unfused": Unfused,
    "products-apart": ProductsApart,
    "fp8": Fp8,
    "fp8-products": Fp8Products,
    **{f"{gib}-gib": small(gib) for gib in CARDS_GIB},
}
