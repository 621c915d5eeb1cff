"""Base of the families in diffusers' layout: a table of networks over the checkpoint's parts."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...common.shapes import DimRange, ShapeProfile
from ...common.spec import NetworkSpec, TensorSpec, rounds
from ..decode import BYTES_PER_PIXEL
from ..fused import blocks
from ..fused.kernels.attention import limit_attention
from .base import VideoModel
from .checkpoints.diffusers_folder import open_checkpoint
from .model_networks import DEEP, SHALLOW, Component, check_rewrites
from .parts import code_of

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_LATENT_SIDE = 256
MAX_TOKENS = 512
ENCODER_SCRATCH_BYTES = 64 * 1536
"""Of the picture VAE's encoder, for each latent place: measured on an H200 from 256x256 to 2048x2048."""
SMALL_SCRATCH_BYTES = 64 << 20
CONDITIONER_SCRATCH_BYTES = 220
"""Scratch bytes for each latent place, frame and branch: measured on an H200 with I2VGen-XL's, of full attention."""
EAGER = "eager"

Module = Callable[[Any], torch.nn.Module]
Rewritten = Callable[[Any, tuple[str, ...]], torch.nn.Module]


@dataclass(frozen=True)
class Network:
    """Recipe of a component: the checkpoint's part it comes from, its module, tensors, and shape limits."""

    part: str
    module: Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: tuple[str, ...]
    exportable: bool = True
    rewritten: Rewritten | None = None
    """The module with rewrites, where there are any."""

    def with_deep(
        self, deep: TensorSpec, modules: Sequence[Module], rewritten: Sequence[Rewritten]
    ) -> dict[str, Network]:
        """Recipes of a deep cache's two networks beside this denoiser: the one that gives `deep`, and its part above.

        `modules` and `rewritten` are those of both.
        """
        outputs = ((*self.outputs, deep), self.outputs)
        inputs = (self.inputs, (*self.inputs, deep))
        parts = zip((DEEP, SHALLOW), modules, rewritten, inputs, outputs, strict=True)
        return {
            name: replace(self, module=module, rewritten=fused, inputs=given, outputs=found)
            for name, module, fused, given, found in parts
        }


class DiffusersFamily(VideoModel):
    """A family by its layout and its table of networks."""

    layout: ClassVar[Mapping[str, tuple[str, ...]]]
    """Part names, and the classes in model_index.json that are accepted for each."""
    settings: ClassVar[Mapping[str, Mapping[str, type]]]
    """Settings read from each part's configuration here, with their types; the libraries read the rest."""
    made_by: ClassVar[tuple[ModuleType, ...]]
    """Modules of code that make the networks: a change to one of them makes engines stale."""
    not_encoding: ClassVar[frozenset[str]] = frozenset({"scheduler"})
    """Parts that a clip's conditioning does not depend on."""
    denoiser_scratch_bytes: ClassVar[Mapping[str, int]]
    """Scratch bytes of a UNet for each latent place of each frame and branch, in half precision, by backend; a backend
    that has not been measured needs no more than eager PyTorch."""
    decoder_scratch_bytes: ClassVar[Mapping[str, int]] = {EAGER: 64 * BYTES_PER_PIXEL}
    """Scratch bytes of the decoder for each latent place of each frame, in half precision, by backend."""
    min_latent_side: ClassVar[int] = 8
    rewriting_backends: ClassVar[frozenset[str]] = frozenset()
    """Backends whose engines are built with every known rewrite, unless the user names some."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        return cls(open_checkpoint(folder, cls.layout, cls.settings))

    @abstractmethod
    def networks(self) -> Mapping[str, Network]:
        """Every component of the family, with sizes read from the checkpoint's configurations."""

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        return self.config("scheduler")

    @property
    def latent_scale(self) -> float:
        return float(self.config("vae")["scaling_factor"])

    @cached_property
    def encode_sha256(self) -> str:
        digests = [self.part_sha256(name) for name in self.checkpoint.parts if name not in self.not_encoding]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    @cached_property
    def components(self) -> Mapping[str, Component]:
        return {name: self._component(name, network) for name, network in self.networks().items()}

    def _component(self, name: str, network: Network) -> Component:
        part = self.checkpoint.parts[network.part]
        side_multiple = self.denoiser_side_multiple if name in (*self.denoisers, DEEP, SHALLOW) else 1
        spec = NetworkSpec(
            family=self.family,
            component=name,
            config_sha256=part.config_sha256,
            weights_sha256=self.part_sha256(network.part),
            inputs=network.inputs,
            outputs=network.outputs,
            limits=self._limits(network.ranges, side_multiple),
            exportable=network.exportable,
            code=code_of(__name__, *(module.__name__ for module in self.made_by)),
        )
        return Component(spec, lambda precision, rewrites=(): self.load(name, precision, rewrites))

    @property
    def denoiser_side_multiple(self) -> int:
        """Divisor of the denoiser's sides in latents: a UNet halves the sides at each level."""
        return 2 ** (len(self.config("unet")["block_out_channels"]) - 1)

    def _limits(self, ranges: tuple[str, ...], side_multiple: int) -> ShapeProfile:
        """The sizes that an engine may serve; eager PyTorch takes others too."""
        side = DimRange(self.min_latent_side, max(64, side_multiple), MAX_LATENT_SIDE, side_multiple)
        least, most = (self.latent.frames(count) for count in (self.latent.min_frames, self.latent.max_frames))
        known = {
            "batch": DimRange(1, 2, 2),
            "frames": DimRange(least, max(least, 16), most),
            "chunk": DimRange(1, 8, most),
            "tokens": DimRange(1, 32, MAX_TOKENS),
            "latent_height": side,
            "latent_width": side,
        }
        return ShapeProfile({name: known[name] for name in ranges})

    def rewrites(self, component: str, backend: str) -> tuple[str, ...]:
        return self.known_rewrites.get(component, ()) if backend in self.rewriting_backends else ()

    def part_of(self, component: str) -> str:
        return self.networks()[component].part

    def size_bytes(self, component: str, precision: str, rewrites: tuple[str, ...] = ()) -> int:
        return self.checkpoint.parts[self.part_of(component)].elements * (4 if precision == "fp32" else 2)

    def load(self, component: str, precision: str, rewrites: tuple[str, ...] = ()) -> torch.nn.Module:
        check_rewrites(self, component, rewrites)
        network = self.networks()[component]
        whole = self.part(network.part, precision)
        made = network.rewritten(whole, rewrites) if network.rewritten and rewrites else network.module(whole)
        module = made.eval().requires_grad_(False)
        limit_attention(module)
        if not rounds(rewrites):  # else the network has weights of its own
            # Keeps the whole part alive, so that its other components share it instead of reading it again.
            object.__setattr__(module, "whole", whole)
        return module

    def config(self, part: str) -> Mapping[str, Any]:
        """The configuration of a part."""
        return self.checkpoint.parts[part].config

    def scratch_bytes(self, component: str, sizes: Mapping[str, int], precision: str, backend: str = EAGER) -> int:
        places = sizes.get("latent_height", 8) * sizes.get("latent_width", 8)
        width, chunk = 2 if precision == "fp32" else 1, sizes.get("chunk", 1)
        volume = places * sizes.get("batch", 1) * sizes.get("frames", 1)
        if component in (*self.denoisers, DEEP, SHALLOW):
            return width * volume * self.denoiser_scratch_bytes.get(backend, self.denoiser_scratch_bytes[EAGER])
        if component == self.decoder_component:
            scores = blocks.score_bytes(places) if backend in self.rewriting_backends else 0
            place_bytes = self.decoder_scratch_bytes.get(backend, self.decoder_scratch_bytes[EAGER])
            return SMALL_SCRATCH_BYTES + width * chunk * (places * place_bytes + scores)
        if component == "vae_encoder":
            return SMALL_SCRATCH_BYTES + width * places * ENCODER_SCRATCH_BYTES
        return SMALL_SCRATCH_BYTES + width * volume * CONDITIONER_SCRATCH_BYTES
