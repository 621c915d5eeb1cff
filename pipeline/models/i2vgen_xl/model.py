"""I2VGen-XL (Zhang et al. 2023, arXiv:2311.04145) in the layout of ali-vilab/i2vgen-xl.

diffusers gives the UNet and the VAE, transformers the CLIP encoders; the way through them is ours. The
UNet is split in two: a conditioner, which runs once per clip, and a denoiser, which runs at every step and
exports with every dimension dynamic (diffusers' own forward does not: its `repeat_interleave` breaks for
batches, its adaptive pooling for other sizes).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import ClassVar

import torch
from PIL import Image

from ....common.spec import Guidance, Scope, TensorSpec
from ...decode import BYTES_PER_PIXEL
from ...denoising.guidance import BOTH, GuidanceScale, branch_inputs, branch_values, guide, rescale_of
from ...fused import blocks, cross_attention, kernels
from ...media.image import cover, to_unit_tensor
from ...request import ClipRequest, Encoded
from .. import deep_features, fused_unet3d, fused_vae, parts, unet3d
from ..base import Run, Stage
from ..checkpoints.diffusers_folder import Checkpoint
from ..deep_features import deep_channels
from ..diffusers_family import DiffusersFamily, Network
from ..fused_vae import FusedVaeDecoder
from ..model_networks import DEEP, SHALLOW
from ..parts import ImageEncoder, TextEncoder, VaeDecoder, VaeEncoder
from ..tokenizers import tokenize_prompts
from . import fused, networks
from .fused import DENOISER_REWRITES, FusedDeep, FusedDenoiser, FusedShallow
from .networks import Conditioner, DeepNetwork, DenoiserNetwork, ShallowNetwork

LAYOUT: dict[str, tuple[str, ...]] = {
    "unet": ("I2VGenXLUNet",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "image_encoder": ("CLIPVisionModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "feature_extractor": ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPImageProcessorFast"),
    "scheduler": ("DDIMScheduler",),
}
CODE = (
    *(sys.modules[__name__], networks, fused, unet3d, fused_unet3d, deep_features),
    *(blocks, cross_attention, fused_vae, parts, kernels),
)
SETTINGS: dict[str, dict[str, type]] = {
    "unet": {"in_channels": int, "cross_attention_dim": int, "block_out_channels": list},
    "vae": {"scaling_factor": float},
    "text_encoder": {"max_position_embeddings": int, "vocab_size": int},
    "image_encoder": {"image_size": int, "projection_dim": int},
    "feature_extractor": {"image_mean": list, "image_std": list},
}
PICTURE_TOKENS = 64
"""Number of tokens that the conditioner makes of the picture's latents: 32x32 after pooling, halved twice."""
TRAIN_TIMESTEPS = 1000
NO_MOTION = "I2VGen-XL is told to move by its prompt: motion bucket and noise augmentation are not used."


def _networks(checkpoint: Checkpoint) -> dict[str, Network]:
    """Every component of the family, with sizes read from the checkpoint's configurations."""
    unet, text, vision = (checkpoint.parts[name].config for name in ("unet", "text_encoder", "image_encoder"))
    tokens, width = text["max_position_embeddings"], unet["cross_attention_dim"]
    context = tokens + PICTURE_TOKENS + unet["in_channels"]
    embedding = unet["block_out_channels"][0] * 4
    clip, branch = Scope.CLIP, Guidance.PER_BRANCH
    plane = ("latent_height", "latent_width")
    pixel_plane = ("latent_height*8", "latent_width*8")
    volume = ("batch", unet["in_channels"], "frames", *plane)
    ids = TensorSpec("input_ids", ("batch", tokens), "int64", clip, branch, (0, text["vocab_size"]))
    text_states = TensorSpec("text_states", ("batch", tokens, width), scope=clip, guidance=branch)
    image_embeds = TensorSpec("image_embeds", (1, vision["projection_dim"]), scope=clip, guidance=branch)
    pixels = TensorSpec("pixel_values", (1, 3, vision["image_size"], vision["image_size"]), scope=clip)
    image_cond = TensorSpec("image_cond", volume, scope=clip)
    fps_emb = TensorSpec("fps_emb", ("batch", embedding), scope=clip)
    context_spec = TensorSpec("context", ("batch", context, width), scope=clip, guidance=branch)
    conditioner_inputs = (
        TensorSpec("fps", ("batch",), "float32", clip, span=(1, 120)),
        TensorSpec("image_latents", volume, scope=clip),
        TensorSpec("image_embeds", ("batch", 1, vision["projection_dim"]), scope=clip, guidance=branch),
        text_states,
    )
    denoiser_inputs = (
        TensorSpec("sample", volume),
        TensorSpec("timestep", ("batch",), "float32", span=(0, TRAIN_TIMESTEPS)),
        image_cond,
        fps_emb,
        context_spec,
    )
    deep = TensorSpec("deep", ("batch", "frames", deep_channels(unet), *plane), guidance=branch)
    picture, frames = (TensorSpec("image", (n, 3, *pixel_plane), scope=clip) for n in (1, "chunk"))
    first, latents = (TensorSpec("latents", (n, 4, *plane), scope=clip) for n in (1, "chunk"))
    core = Network(
        "unet",
        DenoiserNetwork,
        denoiser_inputs,
        (TensorSpec("prediction", volume),),
        ("batch", "frames", *plane),
        rewritten=FusedDenoiser,
    )
    return {
        "text_encoder": Network("text_encoder", TextEncoder, (ids,), (text_states,), ("batch",)),
        "image_encoder": Network("image_encoder", ImageEncoder, (pixels,), (image_embeds,), ()),
        "vae_encoder": Network("vae", VaeEncoder, (picture,), (first,), plane),
        "conditioner": Network(
            "unet", Conditioner, conditioner_inputs, (image_cond, fps_emb, context_spec), (), exportable=False
        ),
        "core": core,
        **core.with_deep(deep, (DeepNetwork, ShallowNetwork), (FusedDeep, FusedShallow)),
        "vae_decoder": Network("vae", VaeDecoder, (latents,), (frames,), ("chunk", *plane), rewritten=FusedVaeDecoder),
    }


class I2VGenXL(DiffusersFamily):
    """A checkpoint of the I2VGen-XL architecture."""

    family: ClassVar[str] = "i2vgen_xl"
    title: ClassVar[str] = "I2VGen-XL"
    pipeline_class: ClassVar[str] = "I2VGenXLPipeline"
    engine_gain: ClassVar[float] = 0.54
    """From 203 ms a call to 92, on an H200."""
    engine_components: ClassVar[tuple[str, ...]] = (
        "text_encoder",
        "image_encoder",
        "vae_encoder",
        "core",
        "vae_decoder",
    )
    build_order: ClassVar[tuple[str, ...]] = (
        "core",
        "text_encoder",
        "vae_decoder",
        "vae_encoder",
        "image_encoder",
    )

    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **dict.fromkeys(("core", DEEP, SHALLOW), DENOISER_REWRITES),
        "vae_decoder": fused_vae.REWRITES,
    }

    layout: ClassVar[Mapping[str, tuple[str, ...]]] = LAYOUT
    settings: ClassVar[Mapping[str, Mapping[str, type]]] = SETTINGS
    made_by: ClassVar[tuple[ModuleType, ...]] = CODE
    denoiser_scratch_bytes: ClassVar[Mapping[str, int]] = {"eager": 21_200, "inductor": 11_300}
    """2.6 and 1.4 GiB at 512x512, 16 frames, guided: measured on an H200."""
    decoder_scratch_bytes: ClassVar[Mapping[str, int]] = {"eager": 64 * BYTES_PER_PIXEL, "inductor": 64 * 1250}
    """4.0 and 2.5 GiB for 8 frames of 512x512: measured on an H200."""
    rewriting_backends: ClassVar[frozenset[str]] = frozenset({"inductor"})
    unused: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("motion_bucket_id", "noise_aug_strength", "noise_aug_seed"), NO_MOTION),
        "last_picture": "I2VGen-XL does not end in a given picture: last_picture is not used.",
    }

    def networks(self) -> Mapping[str, Network]:
        return _networks(self.checkpoint)

    def encode(self, request: ClipRequest, run: Run, stage: Stage) -> Encoded:
        """Text, picture and frame rate, each through its encoder, then together through the conditioner."""
        stage("encode picture", 0, 4)
        image_embeds = run("image_encoder", {"pixel_values": self._clip_pixels(request)})["image_embeds"]
        stage("encode latents", 1, 4)
        image_latents = self._image_latents(request, run)
        stage("encode text", 2, 4)
        ids, notes = self._tokenize(request)
        text_states = run("text_encoder", {"input_ids": ids})["text_states"]
        stage("condition", 3, 4)
        network = self.networks()["conditioner"]
        values = _conditioner_values(text_states, image_embeds, image_latents, request.fps)
        outputs = run("conditioner", branch_inputs(network.inputs, values, BOTH))
        stage("condition", 4, 4)
        tensors = branch_values(network.outputs, outputs)
        return Encoded({name: tensor.float().cpu() for name, tensor in tensors.items()}, notes)

    def noise(self, width: int, height: int, num_frames: int, generator: torch.Generator) -> torch.Tensor:
        frames, channels, *plane = self.latent.shape(width, height, num_frames)
        return torch.randn(channels, frames, *plane, generator=generator).transpose(0, 1)

    def prepare_input(
        self, x: torch.Tensor, t: torch.Tensor, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        return {**tensors, "sample": x.transpose(0, 1)[None], "timestep": t.float().reshape(1)}

    def combine(self, outputs: Mapping[str, torch.Tensor], guidance_scale: GuidanceScale) -> torch.Tensor:
        return guide(outputs["prediction"].transpose(1, 2), guidance_scale, rescale_of(self.scheduler_config))

    def _tokenize(self, request: ClipRequest) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Token ids int64 [2, 77] of the negative and the positive prompt, and notes on prompts that were cut."""
        return tokenize_prompts(self.checkpoint.parts["tokenizer"], self.config("text_encoder"), request)

    def _clip_pixels(self, request: ClipRequest) -> torch.Tensor:
        """The picture's middle square for CLIP, float32 [1, 3, side, side], normalised.

        As I2VGenXLPipeline: cropped to width x width first, whatever the height.
        """
        extractor, side = self.config("feature_extractor"), self.config("image_encoder")["image_size"]
        square = cover(request.picture, request.width, request.width).resize((side, side), Image.Resampling.BILINEAR)
        mean, std = (torch.tensor(extractor[name]).reshape(1, 3, 1, 1) for name in ("image_mean", "image_std"))
        return (to_unit_tensor(square) - mean) / std

    def _image_latents(self, request: ClipRequest, run: Run) -> torch.Tensor:
        """The picture's latents at frame 0 and each later frame's position, float32 [1, 4, frames, h, w]."""
        image = to_unit_tensor(cover(request.picture, request.width, request.height)) * 2 - 1
        first = run("vae_encoder", {"image": image})["latents"].float().cpu() * self.latent_scale
        positions = torch.arange(request.num_frames) / max(request.num_frames - 1, 1)
        latents = positions.reshape(1, 1, -1, 1, 1) * torch.ones_like(first).unsqueeze(2)
        latents[:, :, 0] = first
        return latents


def _conditioner_values(
    text_states: torch.Tensor, image_embeds: torch.Tensor, image_latents: torch.Tensor, fps: int
) -> dict[str, torch.Tensor]:
    """Inputs of the conditioner; the unconditional branch has zeros as picture embedding."""
    embeds = image_embeds.unsqueeze(1)
    return {
        "fps": torch.tensor([float(fps)]),
        "image_latents": image_latents,
        "image_embeds": torch.cat([torch.zeros_like(embeds), embeds]),
        "text_states": text_states,
    }
