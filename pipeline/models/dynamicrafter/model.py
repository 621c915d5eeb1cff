"""DynamiCrafter (Xing et al. 2023, arXiv:2310.12190) at 256, 512 and 1024, and between two pictures at 512.

Diffusers has no pipeline of it, but its denoiser is a composition of diffusers' modules; see `stored`. The way through
them follows the published code, except that the picture's latents are the mean of the VAE's posterior and no draw.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image

from ....common.errors import CheckpointError
from ...denoising.guidance import GuidanceScale, guide, rescale_of
from ...fused import blocks, cross_attention, kernels
from ...media.image import antialiased, crop_to_aspect, to_unit_tensor
from ...request import ClipRequest, Encoded
from .. import deep_features, fused_unet3d, fused_vae, parts, unet3d
from ..base import Run, Stage
from ..clip_vision_file import MEAN, STD
from ..diffusers_family import DiffusersFamily, Network
from ..latent_space import LatentSpace
from ..tokenizers import tokenize_prompts
from . import fused, networks, specs, stored_names
from .specs import LAYOUT, REFERENCE_VAE, SETTINGS
from .stored_names import published

if TYPE_CHECKING:
    from typing_extensions import Self

FRAMES = 16
CODE = (
    *(sys.modules[__name__], networks, fused, specs, stored_names, unet3d, fused_unet3d, deep_features),
    *(blocks, cross_attention, fused_vae, parts, kernels),
)
NO_MOTION = "DynamiCrafter is told to move by prompt and fps: motion bucket and noise augmentation are not used."
UNUSED: Mapping[str, str] = dict.fromkeys(("motion_bucket_id", "noise_aug_strength", "noise_aug_seed"), NO_MOTION)
PUBLISHED = "DynamiCrafter makes 16 frames, and was published with ddim, 50 steps, eta 1 and guidance 7.5."
SPEED = "fps is the film's speed, of which less gives more motion: "
MIXED = "In fp16 its norms are computed in fp32, as published, and its VAE in bf16, or in fp32 on a GPU without bf16."
HINTS = (
    PUBLISHED,
    f"{SPEED}published are 24 for 512 and 10 for 1024. For 256 it is a stride from 1 to 6, of which more gives more "
    "motion: published is 3.",
    MIXED,
)
NO_LAST = (
    "This checkpoint of DynamiCrafter does not end in a given picture: last_picture is not used, for it takes the 512 "
    "interpolation weights."
)
LOOP = "No last_picture: the clip ends in its first one, as a loop does."


class DynamiCrafter(DiffusersFamily):
    """A checkpoint of DynamiCrafter."""

    family: ClassVar[str] = "dynamicrafter"
    title: ClassVar[str] = "DynamiCrafter"
    pipeline_class: ClassVar[str] = "DynamiCrafterPipeline"
    hints: ClassVar[tuple[str, ...]] = HINTS
    unused: ClassVar[Mapping[str, str]] = {**UNUSED, "last_picture": NO_LAST}
    schedulers: ClassVar[tuple[str, ...]] = ("ddim",)
    latent: ClassVar[LatentSpace] = LatentSpace(side_multiple=64, min_frames=FRAMES, max_frames=FRAMES)
    engine_components: ClassVar[tuple[str, ...]] = (
        "text_encoder",
        "image_encoder",
        "vae_encoder",
        "core",
        "vae_decoder",
    )
    build_order: ClassVar[tuple[str, ...]] = ("core", "text_encoder", "vae_decoder", "image_encoder", "vae_encoder")
    instead_of_fp16: ClassVar[Mapping[str, str]] = {"vae_encoder": "bf16", "vae_decoder": "bf16"}
    """As published: in fp16 its pictures may be black."""
    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "core": fused_unet3d.REWRITES,
        "vae_decoder": fused_vae.REWRITES,
    }
    rewriting_backends: ClassVar[frozenset[str]] = frozenset({"inductor"})
    layout: ClassVar[Mapping[str, tuple[str, ...]]] = LAYOUT
    settings: ClassVar[Mapping[str, Mapping[str, type]]] = SETTINGS
    made_by: ClassVar[tuple[ModuleType, ...]] = CODE
    not_encoding: ClassVar[frozenset[str]] = frozenset({"scheduler", "unet"})
    denoiser_scratch_bytes: ClassVar[Mapping[str, int]] = {"eager": 21_200, "inductor": 11_300}
    """I2VGen-XL's, whose denoiser has the same blocks at the same widths."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        model = super().open(folder)
        model.check()
        return model

    @classmethod
    def recognises(cls, index: Mapping[str, Any]) -> bool:
        return super().recognises(index) and not interpolates(index)

    def check(self) -> None:
        """Raises CheckpointError when the parts' configurations do not go together."""
        unet, projection = self.config("unet"), self.config("image_projection")
        wanted = {
            "embed_dims": self.config("image_encoder")["hidden_size"],
            "output_dims": unet["cross_attention_dim"],
            "num_queries": max(projection["num_queries"] // FRAMES, 1) * FRAMES,
        }
        for name, value in wanted.items():
            if projection[name] != value:
                path = self.checkpoint.parts["image_projection"].config_path
                raise CheckpointError(f"{path}: expected {name} to be {value}, found {projection[name]}.")
        if unet["in_channels"] != 2 * self.latent.channels:
            path = self.checkpoint.parts["unet"].config_path
            raise CheckpointError(f"{path}: expected in_channels to be 8, found {unet['in_channels']}.")

    def networks(self) -> Mapping[str, Network]:
        return specs.networks_of(self.checkpoint, FRAMES)

    def lora_names(self, module: str) -> tuple[str, ...]:
        return published(module)

    def encode(self, request: ClipRequest, run: Run, stage: Stage) -> Encoded:
        """The picture through CLIP and its projection, the pictures through the VAE, the prompts through CLIP."""
        stage("encode picture", 0, 3)
        first = image_of(request.picture, request)
        states = run("image_encoder", {"pixel_values": self._clip_pixels(first)})["image_states"]
        tokens = run("image_projection", {"image_states": states})["image_tokens"]
        stage("encode latents", 1, 3)
        pictures = self.picture_tensors(first, request, run)
        stage("encode text", 2, 3)
        ids, notes = self._tokenize(request)
        values = {
            "text_states": run("text_encoder", {"input_ids": ids})["text_states"],
            "image_tokens": tokens.unflatten(1, (FRAMES, -1)),
            "fs": torch.tensor([float(request.fps)]),
            **pictures,
        }
        stage("encode text", 3, 3)
        return Encoded({name: tensor.float().cpu() for name, tensor in values.items()}, (*notes, *self.notes(request)))

    def notes(self, request: ClipRequest) -> tuple[str, ...]:
        """Sentences on a request for the user."""
        return ()

    def noise(self, width: int, height: int, num_frames: int, generator: torch.Generator) -> torch.Tensor:
        frames, channels, *plane = self.latent.shape(width, height, num_frames)
        return torch.randn(channels, frames, *plane, generator=generator).transpose(0, 1)

    def prepare_input(
        self, x: torch.Tensor, t: torch.Tensor, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        return {**tensors, "sample": x[None], "timestep": t.float().reshape(1)}

    def combine(self, outputs: Mapping[str, torch.Tensor], guidance_scale: GuidanceScale) -> torch.Tensor:
        return guide(outputs["prediction"], guidance_scale, rescale_of(self.scheduler_config))

    def _clip_pixels(self, image: torch.Tensor) -> torch.Tensor:
        """Grey, which the unconditional branch sees, and the whole picture for CLIP, float32 [2, 3, side, side]."""
        side = self.config("image_encoder")["image_size"]
        square = antialiased(image, side) / 2 + 0.5
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
        return (torch.cat([torch.full_like(square, 0.5), square]) - mean) / std

    def picture_tensors(self, first: torch.Tensor, request: ClipRequest, run: Run) -> dict[str, torch.Tensor]:
        """Tensors of the clip's pictures, the first one [1, 3, height, width] in -1..1.

        `image_latents` is what the denoiser sees beside every frame's noise, float32 [1, frames, 4, h, w]: the
        picture's latents.
        """
        return {"image_latents": self.encode_images(first, run)[None].repeat(1, FRAMES, 1, 1, 1)}

    def encode_images(self, images: torch.Tensor, run: Run) -> torch.Tensor:
        """Scaled latents, float32 [n, 4, h, w], of images [n, 3, height, width] in -1..1."""
        means = [run("vae_encoder", {"image": image[None]})["latents"].float().cpu() for image in images]
        return torch.cat(means) * self.latent_scale

    def _tokenize(self, request: ClipRequest) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Token ids int64 [2, 77] of the negative and the positive prompt, and notes on prompts that were cut."""
        config, part = self.config("text_encoder"), self.checkpoint.parts["tokenizer"]
        return tokenize_prompts(part, config, request, pad=0)  # as OpenCLIP pads, whatever the folder says


def image_of(picture: Image.Image, request: ClipRequest) -> torch.Tensor:
    """The middle of a picture at the clip's size, float32 [1, 3, height, width] in -1..1."""
    part = crop_to_aspect(picture, request.width, request.height)
    return to_unit_tensor(part.resize((request.width, request.height), Image.Resampling.BILINEAR)) * 2 - 1


class DynamiCrafterInterpolation(DynamiCrafter):
    """A checkpoint that goes from a first picture to a last one, and in a loop where they are the same."""

    family: ClassVar[str] = "dynamicrafter_interpolation"
    title: ClassVar[str] = "DynamiCrafter interpolation"
    hints: ClassVar[tuple[str, ...]] = (PUBLISHED, f"{SPEED}published is 5 between two pictures.", MIXED)
    unused: ClassVar[Mapping[str, str]] = UNUSED

    @classmethod
    def recognises(cls, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") == cls.pipeline_class and interpolates(index) and not sees_references(index)

    def picture_tensors(self, first: torch.Tensor, request: ClipRequest, run: Run) -> dict[str, torch.Tensor]:
        """The pictures' latents at the clip's ends, and zeros between them."""
        first_latents, last_latents = self.encode_images(ends_of(first, request), run).split(1)
        between = torch.zeros(FRAMES - 2, *first_latents.shape[1:])
        return {"image_latents": torch.cat([first_latents, between, last_latents])[None]}

    def notes(self, request: ClipRequest) -> tuple[str, ...]:
        return (LOOP,) if request.last_picture is None else ()


def ends_of(first: torch.Tensor, request: ClipRequest) -> torch.Tensor:
    """Images at a clip's ends, float32 [2, 3, height, width]: the first one twice where there is no last picture."""
    return torch.cat([first, first if request.last_picture is None else image_of(request.last_picture, request)])


def interpolates(index: Mapping[str, Any]) -> bool:
    """Whether a model_index.json is that of a checkpoint between two pictures."""
    return index.get("interpolates") is True


def sees_references(index: Mapping[str, Any]) -> bool:
    """Whether a model_index.json is that of a checkpoint whose decoder sees the clip's pictures: ToonCrafter."""
    return isinstance(index.get("vae"), list) and REFERENCE_VAE in index["vae"]
