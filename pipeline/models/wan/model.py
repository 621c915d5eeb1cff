"""Wan (Wan Team 2025, arXiv:2503.20314) in diffusers' layouts of Wan-AI: 2.1 I2V 14B (480P and 720P), 2.2 I2V A14B
and 2.2 TI2V-5B, and models distilled from them.

A picture and a prompt become a clip by flow matching in the latents of a causal video VAE: one frame of them is the
picture, each later one four frames of the clip. In 2.1 the picture comes as latents beside the noise and through
CLIP, in A14B as latents alone, in TI2V it is the clip's first frame, free of noise at every step.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import torch
from PIL import Image

from ....common.errors import CheckpointError
from ....common.spec import Scope, TensorSpec
from ...decode import DecodeChunk
from ...denoising.guidance import GuidanceScale, guide, rescale_of
from ...denoising.schedulers import FLOW_SCHEDULERS
from ...fused import fp8_product, kernels
from ...media.image import crop_to_aspect, middle_square, to_unit_tensor
from ...request import ClipRequest, Encoded
from .. import parts
from ..base import Run, Stage
from ..diffusers_family import Network
from ..tokenizers import tokenize_padded
from . import checkpoint, networks, text_encoder, vae, vae_layers
from .causal_vae import decode_causal, encode_picture
from .checkpoint import LAYOUT, SETTINGS, WanCheckpoint
from .networks import VisionEncoder
from .text_encoder import TOKENS, clean, encode_texts

ENCODER = ("vae_encoder_first", "vae_encoder_next", "vae_encoder_last")
DECODER = ("vae_decoder_first", "vae_decoder_next")
"""The VAE, in the order in which a clip needs its parts."""
NO_MOTION = "Wan is told to move by its prompt: motion bucket and noise augmentation are not used."
HINT = "Wan makes a frame and then 4 at a time, 81 as published, by the schedulers unipc, euler and dpmpp_2m."
CODE = (sys.modules[__name__], checkpoint, networks, kernels, fp8_product, text_encoder, vae, vae_layers, parts)
VISION_SETTINGS: dict[str, dict[str, type]] = {
    "image_encoder": {"image_size": int, "patch_size": int, "hidden_size": int},
    "image_processor": {"image_mean": list, "image_std": list},
}
VISION_LAYOUT: dict[str, tuple[str, ...]] = {
    "image_encoder": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "image_processor": ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPImageProcessorFast"),
}


class Wan(WanCheckpoint):
    """Base of all Wan models: from a picture and a prompt to a prediction, and to frames."""

    pipeline_class: ClassVar[str] = "WanImageToVideoPipeline"
    hints: ClassVar[tuple[str, ...]] = (HINT,)
    unused: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("motion_bucket_id", "noise_aug_strength", "noise_aug_seed"), NO_MOTION),
        "last_picture": "This Wan does not end in a given picture: last_picture is not used.",
    }
    ignored_fields: ClassVar[frozenset[str]] = frozenset({"fps"})
    schedulers: ClassVar[tuple[str, ...]] = tuple(FLOW_SCHEDULERS)
    decoder_component: ClassVar[str] = "vae_decoder_next"
    made_by: ClassVar[tuple[ModuleType, ...]] = CODE

    @property
    def latent_scale(self) -> float:
        return 1.0

    def to_latent(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        return self.latent.pack(x * std + mean)

    def from_latent(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        return (self.latent.unpack(latents) - mean) / std

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the VAE's latents, float32 [1, channels, 1, 1]."""
        names = ("latents_mean", "latents_std")
        mean, std = (torch.tensor(self.config("vae")[name]).reshape(1, -1, 1, 1) for name in names)
        return mean, std

    def decoder(self, run: Run, tensors: Mapping[str, torch.Tensor]) -> DecodeChunk:
        return decode_causal(run)

    def encode(self, request: ClipRequest, run: Run, stage: Stage) -> Encoded:
        """The prompts through the text encoder, the picture through the VAE and, in 2.1, through CLIP."""
        stage("encode text", 0, 3)
        ids, counts = self._tokenize(request)
        found = {"text_states": encode_texts(run, ids, counts)}
        stage("encode picture", 1, 3)
        scaled = crop_to_aspect(request.picture, request.width, request.height)
        picture = scaled.resize((request.width, request.height), Image.Resampling.LANCZOS)
        found.update(self.see(picture, run))
        stage("encode latents", 2, 3)
        image = to_unit_tensor(picture) * 2 - 1
        found.update(self.condition(image, self.latent.frames(request.num_frames), run, stage))
        stage("encode latents", 3, 3)
        named = zip(("negative prompt", "prompt"), counts, strict=True)
        notes = (f"The {name} has {n} tokens: only the first {TOKENS} count." for name, n in named if n > TOKENS)
        return Encoded({name: tensor.float().cpu() for name, tensor in found.items()}, tuple(notes))

    def see(self, picture: Image.Image, run: Run) -> dict[str, torch.Tensor]:
        """CLIP's encoding of the picture by input name, where the denoiser takes one."""
        return {}

    def condition(self, image: torch.Tensor, frames: int, run: Run, stage: Stage) -> dict[str, torch.Tensor]:
        """The denoiser's latents of the picture, [1, 3, height, width] in -1..1, for a clip of `frames`."""
        latents = encode_picture(run, image, frames, lambda *_: stage("encode latents", 2, 3)).float().cpu()
        known = torch.zeros(1, self.latent.time_factor, *latents.transpose(0, 1).shape[1:])
        known[:, :, 0] = 1
        return {"condition": torch.cat([known, latents.transpose(0, 1)[None]], dim=1)}

    def noise(self, width: int, height: int, num_frames: int, generator: torch.Generator) -> torch.Tensor:
        frames, channels, *plane = self.latent.shape(width, height, num_frames)
        return torch.randn(channels, frames, *plane, generator=generator).transpose(0, 1)

    def prepare_input(
        self, x: torch.Tensor, t: torch.Tensor, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        return {**tensors, "sample": x.transpose(0, 1)[None], "timestep": t.float().reshape(1)}

    def combine(self, outputs: Mapping[str, torch.Tensor], guidance_scale: GuidanceScale) -> torch.Tensor:
        return guide(outputs["prediction"].transpose(1, 2), guidance_scale, rescale_of(self.scheduler_config))

    def _tokenize(self, request: ClipRequest) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Token ids int64 [2, 512] of the negative and the positive prompt, and how many each has, uncut."""
        part, size = self.checkpoint.parts["tokenizer"], self.config("text_encoder")["vocab_size"]
        ids, counts = tokenize_padded(part, [clean(request.negative_prompt), clean(request.prompt)], TOKENS)
        if int(ids.max()) >= size:
            raise CheckpointError(
                f"{part.folder}: expected token numbers below the text encoder's {size}, found {int(ids.max())}."
            )
        return ids, counts


class Wan21(Wan):
    """Wan 2.1 I2V."""

    @classmethod
    def recognises(cls, index: Mapping[str, Any]) -> bool:
        others = index.get("expand_timesteps") or is_named(index, "transformer_2")
        return super().recognises(index) and not others

    family: ClassVar[str] = "wan21"
    title: ClassVar[str] = "Wan 2.1"
    engine_gain: ClassVar[float] = 0.12
    """From 3311 ms a call to 2899, on an H200."""
    engine_components: ClassVar[tuple[str, ...]] = ("text_encoder", "image_encoder", *ENCODER, "core", *DECODER)
    build_order: ClassVar[tuple[str, ...]] = ("core", "text_encoder", *DECODER, *ENCODER, "image_encoder")
    layout: ClassVar[Mapping[str, tuple[str, ...]]] = {**LAYOUT, **VISION_LAYOUT}
    settings: ClassVar[Mapping[str, Mapping[str, type]]] = {**SETTINGS, **VISION_SETTINGS}

    def networks(self) -> Mapping[str, Network]:
        vision, side = self.config("image_encoder"), self.config("image_encoder")["image_size"]
        pixels = TensorSpec("pixel_values", (1, 3, side, side), scope=Scope.CLIP)
        states = TensorSpec("image_states", (1, _patches(vision), vision["hidden_size"]), scope=Scope.CLIP)
        encoder = Network("image_encoder", VisionEncoder, (pixels,), (states,), ())
        return {"image_encoder": encoder, **super().networks()}

    def picture_inputs(self) -> tuple[TensorSpec, ...]:
        vision = self.config("image_encoder")
        states = TensorSpec("image_states", ("batch", _patches(vision), vision["hidden_size"]), scope=Scope.CLIP)
        return (*super().picture_inputs(), states)

    def see(self, picture: Image.Image, run: Run) -> dict[str, torch.Tensor]:
        processor, side = self.config("image_processor"), self.config("image_encoder")["image_size"]
        mean, std = (torch.tensor(processor[name]).reshape(1, 3, 1, 1) for name in ("image_mean", "image_std"))
        pixels = (to_unit_tensor(middle_square(picture, side)) - mean) / std
        return {"image_states": run("image_encoder", {"pixel_values": pixels})["image_states"]}


def _patches(vision: Mapping[str, Any]) -> int:
    """Number of CLIP's tokens of a picture."""
    return (vision["image_size"] // vision["patch_size"]) ** 2 + 1


def is_named(index: Mapping[str, Any], part: str) -> bool:
    """Whether an index names a part's class; published indexes list parts that a pipeline does without, too."""
    entry = index.get(part)
    return isinstance(entry, list) and any(entry)
