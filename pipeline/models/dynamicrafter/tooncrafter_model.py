"""ToonCrafter (Xing et al. 2024, arXiv:2405.17933): DynamiCrafter between two drawings, decoded with both in view."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import torch

from ....common.errors import CheckpointError, InputError
from ....common.shapes import DimRange, ShapeProfile
from ...decode import DecodeChunk
from ...request import ClipRequest
from .. import fused_unet3d
from ..base import Run
from ..diffusers_family import EAGER, Network
from ..latent_space import LatentSpace
from ..svd import networks as svd_networks
from . import specs, tooncrafter
from .model import CODE, FRAMES, MIXED, SPEED, DynamiCrafterInterpolation, ends_of, interpolates, sees_references
from .tooncrafter import INNER, LEVELS, REFERENCE_NAMES, REFERENCES, decode_between

ENDS = "ends"
"""Name of the clip's pictures among its encoded tensors."""
TOGETHER = DimRange(len(INNER), FRAMES, FRAMES + 1)
"""Numbers of frames that are decoded at once, and one more: Inductor asks on a CPU whether a convolution has at least
16 pictures, and of numbers that end there it would take 16 for the only one."""


class ToonCrafter(DynamiCrafterInterpolation):
    """A checkpoint of ToonCrafter, whose decoder sees the clip's first and last picture."""

    family: ClassVar[str] = "tooncrafter"
    title: ClassVar[str] = "ToonCrafter"
    hints: ClassVar[tuple[str, ...]] = (
        "ToonCrafter makes 16 frames between two drawings, decoded all together, and was published with ddim, 50 "
        "steps, eta 1 and guidance 7.5.",
        f"{SPEED}published is 10.",
        MIXED,
    )
    decodes_over_time: ClassVar[bool] = True
    decoder_inputs: ClassVar[Mapping[str, str]] = {ENDS: "the clip's first and last picture"}
    latent: ClassVar[LatentSpace] = LatentSpace(
        side_multiple=64, min_frames=FRAMES, max_frames=FRAMES, least_chunk=FRAMES
    )
    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]] = {"core": fused_unet3d.REWRITES}
    layout: ClassVar[Mapping[str, tuple[str, ...]]] = {**specs.LAYOUT, "vae": (specs.REFERENCE_VAE,)}
    settings: ClassVar[Mapping[str, Mapping[str, type]]] = {
        **specs.SETTINGS,
        "vae": {**specs.SETTINGS["vae"], "block_out_channels": list},
    }
    made_by: ClassVar[tuple[ModuleType, ...]] = (*CODE, sys.modules[__name__], tooncrafter, svd_networks)

    @classmethod
    def recognises(cls, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") == cls.pipeline_class and interpolates(index) and sees_references(index)

    def check(self) -> None:
        super().check()
        if (found := len(self.config("vae")["block_out_channels"])) != LEVELS:
            path = self.checkpoint.parts["vae"].config_path
            raise CheckpointError(f"{path}: expected block_out_channels of {LEVELS} levels, found {found}.")

    def networks(self) -> Mapping[str, Network]:
        return {**super().networks(), **specs.reference_vae(self.checkpoint)}

    def picture_tensors(self, first: torch.Tensor, request: ClipRequest, run: Run) -> dict[str, torch.Tensor]:
        """The pictures' latents, and the pictures themselves for the decoder: `ends` [1, 2, 3, height, width]."""
        return {**super().picture_tensors(first, request, run), ENDS: ends_of(first, request)[None]}

    def encode_images(self, images: torch.Tensor, run: Run) -> torch.Tensor:
        return run("vae_encoder", {"image": images})["latents"].float().cpu() * self.latent_scale

    def prepare_input(
        self, x: torch.Tensor, t: torch.Tensor, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        return super().prepare_input(x, t, {name: tensor for name, tensor in tensors.items() if name != ENDS})

    def decoder(self, run: Run, tensors: Mapping[str, torch.Tensor]) -> DecodeChunk:
        pictures = tensors[ENDS][0]
        states = run("vae_encoder", {"image": pictures})
        references = {name: states[name].clone() for name in REFERENCE_NAMES}

        def decode(latents: torch.Tensor, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return run("vae_decoder", {"latents": latents, **given})["image"]

        def decode_all(latents: torch.Tensor) -> torch.Tensor:
            height, width = (side * self.latent.factor for side in latents.shape[2:])
            if [height, width] != list(pictures.shape[2:]):
                wanted = f"{pictures.shape[3]}x{pictures.shape[2]}, as the clip's pictures are"
                raise InputError(f"ToonCrafter decodes latents of {wanted}, found {width}x{height}.")
            return decode_between(decode, latents, references)

        return decode_all

    def scratch_bytes(self, component: str, sizes: Mapping[str, int], precision: str, backend: str = EAGER) -> int:
        pictures = REFERENCES if component == "vae_encoder" else 1
        return pictures * super().scratch_bytes(component, sizes, precision, backend)

    def _limits(self, ranges: tuple[str, ...], side_multiple: int) -> ShapeProfile:
        limits = super()._limits(ranges, side_multiple).ranges
        return ShapeProfile({**limits, "chunk": TOGETHER} if "chunk" in limits else limits)
